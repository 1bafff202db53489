//! Jobs that wait for others.

use super::{lab::Lab, package::Steady};

#[test]
fn jobs_run_one_after_the_other_and_a_waiting_one_can_be_cancelled() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut first = lab.train(&lab.package("first", &Steady::endless()), &["--no-fetch"]);
    first.wait_for_entry("batch_ended");
    let mut second = lab.train(&lab.package("second", &Steady::default()), &[]);
    second.wait_until("place 1", |event| event["state"] == "queued" && event["ahead"] == 1);
    let mut third = lab.train(&lab.package("third", &Steady { epochs: 3, ..Steady::default() }), &["--no-fetch"]);
    let waiting = third.wait_until("place 2", |event| event["state"] == "queued" && event["ahead"] == 2);
    assert_eq!(lab.client(&["cancel", waiting["job"].as_str().unwrap()]).exit_code(), 0);
    assert_eq!(third.exit_code(), 7);
    assert!(third.whole_journal().iter().all(|kind| kind != "job_started"));
    assert_eq!(lab.client(&["stop", "first"]).exit_code(), 0);
    assert_eq!((first.exit_code(), second.exit_code()), (0, 0));
    second.whole_journal();
    lab.assert_models_are_those_of(&lab.job(second.all("finished")[0]));
}
