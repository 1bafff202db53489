//! Trainings go on whatever ends around them.

use std::time::{Duration, Instant};

use super::{
    lab::{Lab, eventually, members},
    package::{self, Steady},
};

#[test]
fn one_submits_and_another_watches_to_the_end() {
    let lab = Lab::new();
    let (_server, _worker) = (lab.server(), lab.worker("trainer/sleap_nn_lite.py"));
    let mut anna = lab.train(&package::flies(&lab.path("flies.zip")), &[]);
    anna.wait_for_entry("batch_ended");
    let mut ben = lab.watcher(&["watch"]);
    ben.wait_for("caught_up");
    assert_eq!(lab.watcher(&["stop"]).exit_code(), 5, "who may watch may not stop");
    assert_eq!((anna.exit_code(), ben.exit_code()), (0, 0));
    assert_eq!(anna.whole_journal(), ben.whole_journal());
    let finished = anna.all("finished")[0];
    assert_eq!(finished["outcome"], "completed");
    lab.assert_models_are_those_of(&lab.job(finished));
}

#[test]
fn over_tls_with_a_ca_of_our_own_a_job_runs_and_everybody_comes_back_to_a_restarted_server() {
    let lab = Lab::new().secure();
    let (mut server, worker) = lab.open();
    assert!(worker.all("invite")[0]["invite"].is_string());
    server.kill9();
    server.start_again();
    let mut client = lab.train(&lab.package("steady", &Steady::default()), &[]);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(client.all("finished")[0]));
    // Without the CA nobody is fooled, and told what to do.
    let mut doctor = lab.client(&["doctor", "--ca-file", ""]);
    assert_eq!(doctor.exit_code(), 11);
    let report = serde_json::to_string(&doctor.events).unwrap();
    assert!(report.contains("UnknownIssuer") || report.contains("untrusted"), "{report}");
}

#[test]
fn an_agent_killed_three_times_is_not_noticed_by_the_trainer() {
    let lab = Lab::new();
    let (_server, mut worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    let job = lab.job(&client.all("plan")[0].clone());
    let trainer = job.trainer();
    for _ in 0..3 {
        worker.kill9();
        worker.start_again();
        client.wait_for("connected");
        client.wait_for_entry("batch_ended");
        assert_eq!(job.trainer(), trainer);
    }
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&job);
}

#[test]
fn a_worker_stopped_politely_and_started_again_goes_on() {
    let lab = Lab::new();
    let (_server, mut worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady { epochs: 10, ..Steady::default() }), &[]);
    client.wait_for_entry("batch_ended");
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    worker.start_again();
    client.wait_for("connected");
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
}

#[test]
fn a_killed_server_does_not_disturb_a_training() {
    let lab = Lab::new();
    let (mut server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    server.kill9();
    client.skip_to_now();
    for _ in 0..20 {
        client.wait_for_entry("batch_ended");
    }
    server.start_again();
    // Who comes now finds the worker in its room again.
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    assert!(client.all("disconnected").is_empty());
    client.whole_journal();
}

#[test]
fn a_killed_runner_fails_its_job_and_the_next_one_starts() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut first = lab.train(&lab.package("first", &Steady::endless()), &[]);
    first.wait_for_entry("batch_ended");
    let job = lab.job(&first.all("plan")[0].clone());
    let mut second = lab.train(&lab.package("second", &Steady::default()), &["--no-fetch"]);
    second.wait_until("its place", |event| event["state"] == "queued");
    let (trainer, killed) = (job.trainer(), Instant::now());
    job.kill_runner();
    assert_eq!(first.exit_code(), 6);
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    first.whole_journal();
    eventually("the trainer's group is gone", || members(trainer).is_empty());
    assert_eq!(second.exit_code(), 0);
    second.whole_journal();
}
