//! Best checkpoints come while training goes on, whole, and are not sent again with the results.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{
    lab::{Lab, eventually, python, test_files},
    package,
    program::Program,
};

/// A training by `odd_trainers/slow_saves.py`.
struct SlowSaves {
    epochs: u32,
    /// Bytes of a model that are new in every epoch.
    model: u64,
    /// Bytes of it that stay the same.
    kept: u64,
    /// Seconds that writing a model takes.
    save: f64,
    /// Seconds that it stays after its last epoch.
    evaluate: u32,
}

impl Default for SlowSaves {
    /// Goes on until it is stopped.
    fn default() -> Self {
        SlowSaves { epochs: 1_000_000, model: 200_000, kept: 0, save: 0.8, evaluate: 0 }
    }
}

impl SlowSaves {
    fn write(&self, folder: &Path) -> PathBuf {
        let SlowSaves { epochs, model, kept, save, evaluate } = self;
        fs::create_dir_all(folder).unwrap();
        let config = format!(
            "data_config: {{train_labels_path: [flies.pkg.slp]}}\nmodel_config: {{}}\n\
             trainer_config: {{max_epochs: {epochs}, model_bytes: {model}, kept_bytes: {kept}, save_seconds: {save}, evaluate_seconds: {evaluate}}}\n"
        );
        fs::write(folder.join("slow.yaml"), config).unwrap();
        fs::write(folder.join("flies.pkg.slp"), "labels that this trainer does not read").unwrap();
        folder.to_owned()
    }
}

/// The one run's folder in that of a checkpoint, or of the results.
fn run(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.join("training_config.yaml").is_file())
}

fn path(event: &Value) -> PathBuf {
    PathBuf::from(event["path"].as_str().unwrap())
}

/// What the slow trainer wrote, each as a whole.
fn written(results: &Path) -> Vec<Vec<u8>> {
    let kept = run(results).expect("there is a run").join("kept");
    fs::read_dir(kept).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn assert_none_is_left(lab: &Lab, client: &Program) {
    assert!(!lab.models().join("checkpoints").exists());
    lab.assert_models_are_those_of(&lab.job(client.all("finished")[0]));
}

#[test]
fn a_machine_that_dies_for_good_leaves_a_model_that_predicts() {
    let lab = Lab::new();
    let (_server, mut worker) = (lab.server(), lab.worker("trainer/sleap_nn_lite.py"));
    let package = package::flies(&lab.path("flies.zip"));
    let mut client = lab.train(&package, &[]);
    client.wait_for("checkpoint_saved");
    client.wait_for("checkpoint_saved");
    let job = lab.job(client.all("plan")[0]);
    let trainer = job.trainer();
    worker.kill9();
    job.kill_runner();
    let _ = Command::new("kill").args(["-9", "--", &format!("-{trainer}")]).status().unwrap();
    client.wait_for("disconnected");
    client.signal("INT");
    assert_eq!(client.exit_code(), 0);
    let saved = client.all("checkpoint_saved").last().map(|event| path(event)).unwrap();
    let model = run(&saved).unwrap_or_else(|| panic!("a run with its configuration in {}", saved.display()));
    // It is what the trainer had written, and good for what it is for.
    let unpack =
        |archive: &Path| Command::new(python()).args(["-m", "zipfile", "-e"]).arg(archive).arg(lab.path("unpacked")).status().unwrap();
    assert!(unpack(&package).success());
    let labels = fs::read_dir(lab.path("unpacked")).unwrap().map(|entry| entry.unwrap().path());
    let labels = labels.into_iter().find(|path| path.to_str().unwrap().ends_with(".pkg.slp")).expect("labels in the package");
    let mut predict = Command::new(python());
    predict.arg(test_files().join("trainer/sleap_nn_lite.py")).arg("predict").arg("-i").arg(labels);
    predict.arg("-m").arg(model).arg("-o").arg(lab.path("found.json"));
    assert!(predict.status().unwrap().success());
    assert!(lab.path("found.json").is_file());
}

#[test]
fn half_of_a_model_is_never_delivered_and_the_results_do_not_bring_it_again() {
    let lab = Lab::new();
    let (_server, _worker) = (lab.server(), lab.worker("odd_trainers/slow_saves.py"));
    let slow = SlowSaves { epochs: 4, model: 2_000_000, kept: 1_000_000, save: 1.6, evaluate: 4 };
    let mut client = lab.train(&slow.write(&lab.path("slow")), &[]);
    let mut seen = Vec::new();
    for epoch in 0..4 {
        // Not of each: a newer one may come before a copy is made.
        let event = client.wait_until("a checkpoint of this epoch or a later one", |event| {
            event["type"] == "checkpoint_saved" && event["epoch"].as_u64() >= Some(epoch)
        });
        // The next one may have taken its place.
        seen.extend(run(&path(&event)).and_then(|run| fs::read(run.join("best.ckpt")).ok()));
        if event["epoch"] == 3 {
            break;
        }
    }
    assert!(seen.len() >= 2, "{} were seen", seen.len());
    // Content that all models share comes once.
    let later = client.all("checkpoint_saved").last().map(|event| (*event).clone()).unwrap();
    assert!(later["already_here"].as_u64() > Some(500_000), "{later}");
    assert_eq!(client.exit_code(), 0);
    let all = written(&lab.models());
    assert_eq!(all.len(), 4);
    assert!(seen.iter().all(|content| all.contains(content)), "what was never written as a whole came");
    let journal = client.whole_journal();
    assert!(journal.iter().filter(|kind| *kind == "checkpoint").count() >= seen.len());
    let downloaded = client.all("downloaded")[0];
    let here = downloaded["already_here"].as_u64().unwrap();
    assert!(here >= 3_000_000, "the last model was sent again: {downloaded}");
    assert_none_is_left(&lab, &client);
}

#[test]
fn who_comes_later_gets_the_newest_and_who_does_not_want_any_gets_none() {
    let lab = Lab::new();
    let (_server, _worker) = (lab.server(), lab.worker("odd_trainers/slow_saves.py"));
    let mut without = lab.train(&SlowSaves::default().write(&lab.path("slow")), &["--no-checkpoints", "--no-fetch"]);
    let first = without.wait_for_entry("checkpoint");
    without.wait_for_entry("checkpoint");
    let models = lab.models();
    let mut watch = lab.client(&["watch", "--output", models.to_str().unwrap()]);
    let saved = watch.wait_for("checkpoint_saved");
    assert!(saved["epoch"].as_u64() > first["event"]["epoch"].as_u64(), "{saved}");
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!((watch.exit_code(), without.exit_code()), (0, 0));
    assert!(without.all("checkpoint_saved").is_empty());
    assert_none_is_left(&lab, &watch);
}

#[test]
fn a_model_that_is_half_written_when_its_job_is_cancelled_is_the_one_before_it() {
    let lab = Lab::new();
    let (_server, _worker) = (lab.server(), lab.worker("odd_trainers/slow_saves.py"));
    let slow = SlowSaves { save: 4.0, ..SlowSaves::default() };
    let mut client = lab.train(&slow.write(&lab.path("slow")), &[]);
    let saved = client.wait_for("checkpoint_saved");
    client.wait_until("a later epoch's end", |event| event["entry"]["event"]["event"] == "epoch_ended");
    // Half of its model is written, and stays so.
    let trainer = lab.job(&saved).trainer();
    assert!(Command::new("kill").args(["-STOP", "--", &format!("-{trainer}")]).status().unwrap().success());
    assert_eq!(lab.client(&["cancel"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 7);
    let run = run(&lab.models()).unwrap();
    let best = fs::read(run.join("best.ckpt")).unwrap();
    let newest = fs::read_dir(run.join("kept")).unwrap().count() - 1;
    assert_ne!(best, fs::read(run.join(format!("kept/epoch-{newest}.ckpt"))).unwrap(), "the trainer was too fast");
    assert!(written(&lab.models()).contains(&best), "{} bytes are half of a model", best.len());
    eventually("nothing is left of it at the worker", || !lab.job(&saved).has("checkpoints"));
    assert_none_is_left(&lab, &client);
}

#[test]
fn results_overtake_a_checkpoint_that_is_under_way_and_take_what_has_come_of_it() {
    let lab = Lab::heavy();
    let (_server, _worker) = (lab.server(), lab.worker("odd_trainers/slow_saves.py"));
    const MODEL: u64 = 60_000_000;
    let slow = SlowSaves { epochs: 1, model: MODEL, kept: 0, save: 0.4, evaluate: 600 };
    let mut client = lab.train(&slow.write(&lab.path("slow")), &[]);
    client.wait_for_entry("checkpoint");
    let job = lab.job(client.all("plan")[0]);
    let arriving = lab.models().join("checkpoints");
    eventually("some of it is here", || has_chunks(&arriving));
    client.pause();
    assert_eq!(lab.client(&["cancel"]).exit_code(), 0);
    eventually("the results are there", || job.has("results.manifest"));
    client.go_on();
    assert_eq!(client.exit_code(), 7);
    client.whole_journal();
    assert!(client.all("checkpoint_saved").is_empty() && client.all("notice").is_empty(), "it was sent to its end before the results");
    let here = client.all("downloaded")[0]["already_here"].as_u64().unwrap();
    assert!((1..MODEL).contains(&here), "{here}");
    assert_none_is_left(&lab, &client);
}

/// Whether a transfer into a folder below this has acknowledged something.
fn has_chunks(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let is_log = entry.file_name() == "chunks.log" && entry.metadata().is_ok_and(|log| log.len() > 0);
        is_log || entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_chunks(&entry.path())
    })
}

#[test]
fn checkpoints_come_again_when_the_agent_was_killed_meanwhile() {
    let lab = Lab::new();
    let (_server, mut worker) = (lab.server(), lab.worker("odd_trainers/slow_saves.py"));
    let mut client = lab.train(&SlowSaves::default().write(&lab.path("slow")), &[]);
    let before = client.wait_for("checkpoint_saved");
    worker.kill9();
    worker.start_again();
    client.wait_for("connected");
    let after = client.wait_for("checkpoint_saved");
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64(), "{before} {after}");
    assert!(run(&path(&after)).is_some() && !path(&before).exists());
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    assert_none_is_left(&lab, &client);
}
