//! Packages that cannot be trained, and what is left of them: nothing.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::stack::{Plan, Said, Stack, Trainer, flies};

/// A lab with a worker, and what a user tries there.
struct Try(Stack);

impl Try {
    fn new() -> Self {
        Try(Plan::new(Trainer::Lite).start())
    }

    /// Training with these arguments is refused with exit code 3 in one sentence, and neither side keeps anything.
    #[track_caller]
    fn train(&self, args: &[&str], words: &[&str]) {
        let output = self.0.output();
        let said = self.0.run(&[&["train"], args, &["--output", output.to_str().unwrap()]].concat());
        said.refuses(3, words);
        self.left_nothing(&said);
    }

    #[track_caller]
    fn left_nothing(&self, said: &Said) {
        assert!(!self.0.output().exists(), "{}", said.stdout);
        let status = self.0.run(&["status"]);
        let jobs = status.events.iter().find(|event| event["type"] == "jobs").unwrap();
        assert_eq!(jobs["jobs"], serde_json::json!([]), "{}", status.stdout);
        assert_eq!(files_below(&self.0.worker_data().join("store")), 0);
    }
}

fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.file_type().unwrap().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[test]
fn what_the_user_can_mend_is_told_in_a_sentence_and_leaves_nothing() {
    let lab = Try::new();
    let (zip, slp) = (flies("zip"), flies("plain-slp"));
    let (zip, slp) = (zip.to_str().unwrap(), slp.to_str().unwrap());
    let config = flies("folder").join("centroid.yaml");
    let config = config.to_str().unwrap();
    lab.train(&["no.zip"], &["no.zip does not exist"]);
    lab.train(&[zip, "--config", "nope.yaml"], &["nope.yaml", "centroid.yaml"]);
    lab.train(&[slp, "--config", config], &["has no images in it"]);
    let broken = lab.0.file("broken.zip", "this is no zip");
    lab.train(&[broken.to_str().unwrap()], &["broken.zip", "zip"]);
    let empty = lab.0.file("empty/readme.txt", "nothing to train");
    lab.train(&[empty.parent().unwrap().to_str().unwrap()], &["no training configuration"]);
}

#[test]
fn an_unknown_trainer_is_refused_with_the_ones_there_are() {
    let lab = Try::new();
    let zip = flies("zip");
    let output = lab.0.output();
    let said = lab.0.run(&["train", zip.to_str().unwrap(), "--trainer", "nope", "--output", output.to_str().unwrap()]);
    said.refuses(3, &["nope", "sleap-nn"]);
    lab.left_nothing(&said);
}

#[test]
fn a_damaged_package_is_refused_at_once_while_no_worker_is_there() {
    let mut lab = Plan::new(Trainer::Lite).start();
    drop(lab.worker.take());
    let mut bytes = fs::read(flies("zip")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    let zip = lab.home().join("damaged.zip");
    fs::write(&zip, bytes).unwrap();
    let began = Instant::now();
    let said = lab.run(&["train", zip.to_str().unwrap(), "--output", lab.output().to_str().unwrap()]);
    said.refuses(3, &["the zip is damaged"]);
    assert!(began.elapsed() < Duration::from_secs(15), "an absent worker is waited for 20 s: {:?}", began.elapsed());
}
