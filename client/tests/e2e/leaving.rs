//! Clients that leave with Ctrl-C, and come back.

use super::{lab::Lab, package::Steady};

#[test]
fn ctrl_c_leaves_the_job_running_and_watch_sees_all_of_it() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady { epochs: 4, ..Steady::default() }), &[]);
    client.wait_for_entry("batch_ended");
    client.signal("INT");
    assert_eq!(client.exit_code(), 0);
    assert_eq!(client.all("detached").len(), 1);
    let mut watch = lab.client(&["watch"]);
    assert_eq!(watch.exit_code(), 0);
    assert_eq!(watch.whole_journal().iter().filter(|kind| *kind == "batch_ended").count(), 80);
}

#[test]
fn who_detaches_leaves_a_job_and_not_an_upload_that_nobody_finishes() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &["--detach"]);
    assert_eq!(client.exit_code(), 0);
    let at = |wanted: &dyn Fn(&serde_json::Value) -> bool| client.events.iter().position(wanted);
    let job = at(&|event| event["type"] == "job_state" && !event["state"].to_string().contains("uploading"));
    let detached = at(&|event| event["type"] == "detached");
    assert!(job.is_some() && job < detached, "{:?}", client.events);
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let lab = Lab::new();
    let (_server, worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    // Who gets no answer to the goodbye waits for it a little: time for the second one.
    worker.pause();
    client.signal("INT");
    client.wait_for("detached");
    client.signal("INT");
    assert_eq!(client.exit_code(), 130);
    worker.go_on();
}
