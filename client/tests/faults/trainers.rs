//! Trainers that misbehave.

use std::{fs, path::Path};

use crate::stack::{Plan, Trainer, until};

#[test]
fn a_trainer_that_fails_is_a_failed_job_with_its_cause() {
    let stack = Plan::new(Trainer::Odd("fails")).start();
    let said = stack.train(3);
    assert_eq!(said.code, 6, "{}", said.stderr);
    said.journal_is_whole();
    let (outcome, message) = said.finished();
    assert_eq!(outcome, "failed");
    assert!(message.contains("CUDA out of memory") && message.contains("batch size"), "{message}");
    let logged = said.journal("log").iter().any(|event| event["line"].as_str().unwrap().contains("Tried to allocate 20.00 GiB"));
    assert!(logged, "{}", said.stdout);
}

#[test]
fn a_failed_job_shows_the_trainers_words_on_a_screen() {
    let stack = Plan::new(Trainer::Odd("fails")).start();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_webrtc-client"));
    command.args(["train", &stack.package(3), "--config", "centroid.yaml", "--invite-file"]).arg(stack.invite_file());
    let output = command.args(["--bind", "127.0.0.1:0"]).env("XDG_CONFIG_HOME", stack.home()).current_dir(stack.home()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("Tried to allocate 20.00 GiB") && stderr.contains("batch size"), "{stderr}");
}

#[test]
fn a_trainer_that_is_not_installed_says_how_to_configure_it() {
    let said = Plan::new(Trainer::Missing).start().train(3);
    assert_eq!(said.code, 6, "{}", said.stderr);
    let (_, message) = said.finished();
    for word in ["no-such-trainer was not found", "sleap_nn", "pip install sleap-nn"] {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

#[test]
fn a_silent_trainer_can_be_cancelled() {
    let stack = Plan::new(Trainer::Odd("never_starts")).start();
    let train = stack.start_training(3);
    train.event(|event| event["entry"]["event"]["phase"] == "starting");
    let cancel = stack.run(&["cancel"]);
    assert_eq!(cancel.code, 0, "{}", cancel.stderr);
    let said = train.end();
    assert_eq!((said.code, said.finished().0), (7, "cancelled"));
    said.journal_is_whole();
    assert!(stack.trainers().is_empty(), "{:?}", stack.trainers());
}

/// 5,000 messages a second, half of them news: what arrives is in order, and what does not is a gap that is told.
#[test]
fn a_flood_arrives_once_in_order_and_what_is_lost_is_told() {
    const SECONDS: u64 = 3;
    let stack = Plan::new(Trainer::Odd("floods")).start();
    let train = stack.start_training(SECONDS as u32);
    train.event(|event| event["entry"]["event"]["event"] == "epoch_ended" && event["entry"]["event"]["epoch"] == SECONDS - 1);
    let (client, agent) = (train.peak_memory(), stack.worker.as_ref().unwrap().peak_memory());
    let said = train.end();
    assert_eq!((said.code, said.finished().0), (0, "completed"), "{}", said.stderr);
    said.journal_is_whole();
    let numbers: Vec<u64> = said.journal("batch_ended").iter().map(|event| event["metrics"]["seq"].as_f64().unwrap() as u64).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "twice or out of order");
    let lost: u64 = said.journal("gap").iter().map(|gap| gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap() - 1).sum();
    assert_eq!(numbers.len() as u64 + lost, SECONDS * 2500, "{:?}", said.journal("gap"));
    println!("{} batches, {lost} lost and told; client {client} MB, agent {agent} MB", numbers.len());
    assert!(client < 64 && agent < 64, "client {client} MB, agent {agent} MB");
}

/// One that sends faster than anybody reads, with a short queue of its own: ZeroMQ drops, as its manual says, and we say so.
#[test]
fn what_zeromq_dropped_is_told_as_gaps() {
    let stack = Plan::new(Trainer::Odd("drops")).start();
    let said = stack.train(1);
    assert_eq!((said.code, said.finished().0), (0, "completed"), "{}", said.stderr);
    said.journal_is_whole();
    let arrived = said.journal("batch_ended").len() as u64;
    let gaps = said.journal("gap");
    let lost: u64 = gaps.iter().map(|gap| gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap() - 1).sum();
    println!("{arrived} arrived, {lost} lost in {} gaps", gaps.len());
    assert!(lost > 0 && arrived > 0);
    assert_eq!(arrived + lost, 50_000);
}

#[test]
fn garbage_breaks_nothing_and_moves_no_cursor() {
    let stack = Plan::new(Trainer::Odd("garbage")).start();
    let said = stack.train(3);
    assert_eq!((said.code, said.finished().0), (0, "completed"), "{}", said.stderr);
    said.journal_is_whole();
    assert_eq!(said.journal("batch_ended").iter().filter(|event| event["metrics"].get("seq").is_some()).count(), 25);
    let lines: Vec<&str> = said.journal("log").iter().map(|event| event["line"].as_str().unwrap()).collect();
    for word in ["END_OF_FILE", "TRAIN_JOB_END::models", "ZMQ_CTRL::{\"command\": \"stop\"}"] {
        assert!(lines.iter().any(|line| line.ends_with(word)), "no {word:?} in {lines:?}");
    }
    for text in [&said.stdout, &said.stderr] {
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}', '\0']), "{text}");
    }
    assert!(stack.output().join("flies.centroid.n=8/best.ckpt").is_file());
    assert!(!holds_file(stack.home(), "PWNED") && !Path::new("PWNED").exists());
}

#[test]
fn a_stubborn_trainer_and_its_child_end_with_a_cancel() {
    let stack = Plan::new(Trainer::Odd("stubborn")).start();
    let train = stack.start_training(3);
    train.journal("batch_ended");
    assert_eq!(stack.trainers().len(), 2, "{:?}", stack.trainers());
    assert_eq!(stack.run(&["cancel"]).code, 0);
    let said = train.end();
    assert_eq!((said.code, said.finished().0), (7, "cancelled"));
    said.journal_is_whole();
    assert!(stack.trainers().is_empty(), "{:?}", stack.trainers());
    until("the runner's end", || stack.processes().iter().all(|process| !process.command.contains("run-job")));
}

fn holds_file(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder)
        .unwrap()
        .flatten()
        .any(|entry| entry.file_name() == name || entry.file_type().is_ok_and(|kind| kind.is_dir()) && holds_file(&entry.path(), name))
}
