//! Workers that leave by themselves: after one job, or when nobody has needed them.

use std::time::Instant;

use super::{lab::Lab, package::Steady};

const TRAINER: &str = "odd_trainers/steady.py";

#[test]
fn an_ephemeral_worker_ends_as_its_one_job_once_the_models_are_fetched_and_closes_the_room() {
    let lab = Lab::new();
    let _server = lab.server();
    let mut worker = lab.worker_with(TRAINER, &["--ephemeral"]);
    let mut client = lab.train(&lab.package("one", &Steady::default()), &[]);
    assert_eq!(client.exit_code(), 0);
    // Far sooner than results would wait for somebody to fetch them.
    assert_eq!(worker.exit_code(), 0);
    lab.assert_models_are_those_of(&lab.job(client.all("finished")[0]));
    assert_eq!(lab.client(&["status"]).exit_code(), 5, "there is no such room any more");
    assert!(!lab.path("worker/room.json").exists(), "the next worker opens a new one");
}

#[test]
fn an_ephemeral_worker_takes_no_second_job_and_tells_the_outcome_by_its_exit_code() {
    let lab = Lab::new();
    let _server = lab.server();
    let mut worker = lab.worker_with(TRAINER, &["--ephemeral"]);
    let mut first = lab.train(&lab.package("first", &Steady::endless()), &[]);
    first.wait_for_entry("batch_ended");
    let mut second = lab.train(&lab.package("second", &Steady::default()), &[]);
    assert_eq!(second.exit_code(), 4);
    assert!(second.all("error")[0]["message"].as_str().unwrap().contains("this worker takes one job"), "{:?}", second.events);
    assert_eq!(lab.client(&["cancel", "first"]).exit_code(), 0);
    assert_eq!(first.exit_code(), 7);
    assert_eq!(worker.exit_code(), 7);
}

#[test]
fn a_killed_ephemeral_worker_goes_on_with_its_job_and_results_wait_only_for_a_while() {
    let lab = Lab::new();
    let _server = lab.server();
    let mut worker = lab.worker_with(TRAINER, &["--ephemeral", "--fetch-within", "1s"]);
    let mut client = lab.train(&lab.package("one", &Steady { epochs: 4, ..Steady::default() }), &["--detach"]);
    assert_eq!(client.exit_code(), 0);
    worker.kill9();
    worker.start_again();
    // The job is its one job, and nobody comes for the models.
    assert_eq!(worker.exit_code(), 0);
    let job = lab.job(client.all("detached")[0]);
    assert!(job.has("results"), "they are on its disk");
}

#[test]
fn an_idle_worker_ends_after_its_time_and_not_while_there_is_a_job() {
    let lab = Lab::new();
    let _server = lab.server();
    let mut worker = lab.worker_with(TRAINER, &["--idle-timeout", "2s"]);
    let began = Instant::now();
    let mut client = lab.train(&lab.package("one", &Steady { epochs: 3, ..Steady::default() }), &["--detach"]);
    assert_eq!(client.exit_code(), 0);
    assert_eq!(worker.exit_code(), 0);
    assert!(began.elapsed().as_secs() >= 2);
    let job = lab.job(client.all("detached")[0]);
    assert!(job.has("results/") && job.has("outcome.json"), "the job was over");
    assert_eq!(lab.client(&["status"]).exit_code(), 5);
}

#[test]
fn a_probe_sees_whether_the_worker_is_alive_and_in_its_room() {
    let lab = Lab::new();
    let mut server = lab.server();
    let mut worker = lab.worker(TRAINER);
    assert_eq!(lab.probe(&["--ready"]), 0);
    server.kill9();
    worker.wait_for("waiting");
    // It would not help to restart a worker whose server is away.
    assert_eq!((lab.probe(&[]), lab.probe(&["--ready"])), (0, 4));
    worker.signal("TERM");
    assert_eq!(worker.exit_code(), 0);
    assert_eq!(lab.probe(&[]), 4);
}
