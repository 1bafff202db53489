//! Stop and cancel, as clients give them.

use super::{
    lab::{Lab, members},
    package::Steady,
};

#[test]
fn a_stopped_job_keeps_its_models() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    let finished = client.all("finished")[0];
    assert_eq!(finished["outcome"], "stopped");
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(finished));
}

#[test]
fn a_stop_before_the_trainer_listens_is_not_lost() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady { late: 3, ..Steady::endless() }), &[]);
    client.wait_for_entry("step_started");
    let mut stop = lab.client(&["stop"]);
    stop.wait_until("its receipt", |event| event["type"] == "command" && event["state"] == "received");
    assert_eq!((stop.exit_code(), client.exit_code()), (0, 0));
    assert_eq!(client.all("finished")[0]["outcome"], "stopped");
    client.whole_journal();
}

#[test]
fn a_cancelled_job_leaves_no_process_behind() {
    let lab = Lab::new();
    let (_server, _worker) = (lab.server(), lab.worker("odd_trainers/stubborn.py"));
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    let trainer = lab.job(client.all("plan")[0]).trainer();
    assert_eq!(members(trainer).len(), 2, "the trainer and its child");
    assert_eq!(lab.client(&["cancel"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 7);
    assert_eq!(members(trainer), [0; 0]);
    assert_eq!(client.all("finished")[0]["outcome"], "cancelled");
    client.whole_journal();
}
