//! Copies on a real disk.

use std::time::{Duration, Instant};

use shared::domain::{
    job::{JobEvent, Metric, Metrics},
    manifest::Manifest,
};

use super::*;
use crate::{
    domain::checkpoint::Found,
    runtime::{checkpoint::copy::Model, workspace::JobDir},
};

/// An archive with this in it, as far as anybody here looks at it.
fn archive(content: &[u8]) -> Vec<u8> {
    let mut file = [b"PK\x03\x04".as_slice(), content].concat();
    let offset = file.len() as u32;
    file.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0\0\0\0\0");
    file.extend(offset.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn job() -> (tempfile::TempDir, JobDir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = JobDir::at(folder.path());
    fs::create_dir_all(dir.results().join("run")).unwrap();
    fs::write(dir.results().join("run/training_config.yaml"), "a: 1").unwrap();
    fs::write(dir.results().join("run/labels.slp"), "not sent").unwrap();
    (folder, dir)
}

fn model(dir: &JobDir) -> Model {
    let home = dir.checkpoints().join("0");
    fs::create_dir_all(&home).unwrap();
    Model { results: dir.results(), run: "run".into(), files: vec!["best.ckpt".into()], home }
}

fn results() -> Vec<String> {
    ["best.ckpt", "training_config.yaml"].map(str::to_owned).to_vec()
}

fn stamps(model: &Model) -> Vec<crate::domain::checkpoint::Stamp> {
    match model.look() {
        Found::There { stamps, sure: true } => stamps,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_copy_is_whole_has_its_configuration_and_replaces_the_one_before() {
    let (_folder, dir) = job();
    let model = model(&dir);
    assert_eq!(model.look(), Found::Missing);
    let best = dir.results().join("run/best.ckpt");
    fs::write(&best, &archive(b"one")[..10]).unwrap();
    assert_eq!(model.look(), Found::Half);
    fs::write(&best, archive(b"one")).unwrap();
    let first = model.copy(&stamps(&model), 0, (Some(3), None)).unwrap().unwrap();
    let held = hold_newest(&model.home).unwrap().unwrap();
    assert_eq!((&held.about, first.epoch), (&first, Some(3)));
    let manifest = Manifest::decode(&held.manifest).unwrap();
    assert_eq!(manifest.entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["run/best.ckpt", "run/training_config.yaml"]);
    assert_eq!(manifest.summary(&held.manifest).id, first.id);
    let old = stamps(&model);
    fs::write(&best, archive(b"another")).unwrap();
    assert_eq!(model.copy(&old, 0, (None, None)).unwrap(), None, "not what was looked at");
    let second = model.copy(&stamps(&model), 0, (Some(4), None)).unwrap().unwrap();
    assert_ne!(first.id, second.id);
    // The first is still held; it goes with the third.
    assert_eq!(fs::read(held.files.join("run/best.ckpt")).unwrap(), archive(b"one"));
    assert_eq!(hold_newest(&model.home).unwrap().unwrap().about, second);
    drop(held);
    fs::write(&best, archive(b"a third")).unwrap();
    let third = model.copy(&stamps(&model), 0, (Some(5), None)).unwrap().unwrap();
    assert_eq!(numbers(&model.home).unwrap(), [3]);
    assert_eq!(hold_newest(&model.home).unwrap().unwrap().about, third);
}

#[test]
fn a_link_is_not_followed() {
    let (folder, dir) = job();
    let secret = folder.path().join("secret");
    fs::write(&secret, archive(b"of somebody else")).unwrap();
    std::os::unix::fs::symlink(&secret, dir.results().join("run/best.ckpt")).unwrap();
    assert_eq!(model(&dir).look(), Found::Missing);
    fs::rename(dir.results().join("run"), folder.path().join("elsewhere")).unwrap();
    fs::remove_file(folder.path().join("elsewhere/best.ckpt")).unwrap();
    fs::write(folder.path().join("elsewhere/best.ckpt"), archive(b"x")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), dir.results().join("run")).unwrap();
    assert_eq!(model(&dir).look(), Found::Missing);
}

#[test]
fn a_half_written_model_is_replaced_at_the_end_and_a_whole_one_is_not() {
    let (_folder, dir) = job();
    let model = model(&dir);
    let best = dir.results().join("run/best.ckpt");
    fs::write(&best, archive(b"good")).unwrap();
    model.copy(&stamps(&model), 0, (None, None)).unwrap().unwrap();
    fs::write(&best, archive(b"newer")).unwrap();
    restore(&dir);
    assert_eq!(fs::read(&best).unwrap(), archive(b"newer"));
    fs::write(&best, &archive(b"newest of all")[..20]).unwrap();
    restore(&dir);
    assert_eq!(fs::read(&best).unwrap(), archive(b"good"));
    fs::remove_file(&best).unwrap();
    restore(&dir);
    assert_eq!(fs::read(&best).unwrap(), archive(b"good"));
    remove_if_settled(&dir);
    dir.set_results_manifest(b"everything is listed").unwrap();
    let held = hold_newest(&model.home).unwrap().unwrap();
    remove_if_settled(&dir);
    assert_eq!(fs::read(held.files.join("run/best.ckpt")).unwrap(), archive(b"good"), "it is being sent");
    drop(held);
    remove_if_settled(&dir);
    remove_if_settled(&dir);
    assert!(!dir.checkpoints().exists());
}

/// A trainer that writes its models slowly and in place: what is copied was whole at some time.
#[tokio::test]
async fn only_whole_models_are_announced_while_they_are_written() {
    let (_folder, dir) = job();
    let mut checkpoints = Checkpoints::watch(&dir, 0, "run", &results());
    let best = dir.results().join("run/best.ckpt");
    let path = best.clone();
    // The next one is begun once the one before was seen.
    let (seen, was_seen) = std::sync::mpsc::channel();
    let writing = std::thread::spawn(move || {
        let mut written = Vec::new();
        for version in 0..4u8 {
            let content = archive(&vec![version; 40_000]);
            fs::write(&path, b"").unwrap();
            for part in content.chunks(10_000) {
                use std::io::Write;
                fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(60));
            }
            written.push(content);
            was_seen.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        written
    });
    let mut found = Vec::new();
    let end = Instant::now() + Duration::from_secs(60);
    let mut epoch = 0;
    while !writing.is_finished() && Instant::now() < end {
        // A few for each model, as many as a slow machine needs time for would push out the one that the model is of.
        if epoch < 8 * (found.len() as u32 + 1) {
            let metrics = Metrics::from([("val/loss".to_owned(), Metric(f64::from(epoch)))]);
            checkpoints.handle_events(&[JobEvent::EpochStarted { step: 0, epoch }, JobEvent::EpochEnded { step: 0, epoch, metrics }]);
            epoch += 1;
        }
        if let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(30), checkpoints.next()).await {
            let held = hold_newest(&dir.checkpoints().join("0")).unwrap().unwrap();
            found.push((event, fs::read(held.files.join("run/best.ckpt")).unwrap()));
            let _ = seen.send(());
        }
    }
    let written = writing.join().unwrap();
    assert_eq!(found.len(), 4);
    for (event, content) in &found {
        assert!(matches!(event, JobEvent::Checkpoint(about) if about.epoch.is_some()), "{event:?}");
        assert!(written.contains(content), "what was never written as a whole was copied");
    }
    fs::write(&best, archive(b"the last")).unwrap();
    let last = checkpoints.finish().await;
    assert_eq!(last.len(), 1, "{last:?}");
    let held = hold_newest(&dir.checkpoints().join("0")).unwrap().unwrap();
    assert_eq!(fs::read(held.files.join("run/best.ckpt")).unwrap(), archive(b"the last"));
}

#[tokio::test]
async fn a_trainer_without_a_model_costs_no_time_at_its_end() {
    let (_folder, dir) = job();
    let began = Instant::now();
    assert_eq!(Checkpoints::watch(&dir, 0, "run", &results()).finish().await, []);
    assert_eq!(Checkpoints::watch(&dir, 0, "run", &["only.yaml".to_owned()]).finish().await, []);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
