//! `train --plan`: what would happen, and that nothing does.

use std::{
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;

use super::{lab::Lab, package::Steady};

/// Enough for the upload's speed to be remembered.
const BALLAST: u64 = 8 << 20;

/// What this package would come to: the one `plan` event.
fn plan(lab: &Lab, package: &Path) -> Value {
    let mut client = lab.train(package, &["--plan"]);
    assert_eq!(client.exit_code(), 0);
    let plans = client.all("plan");
    assert_eq!(plans.len(), 1);
    assert!(client.all("job_state").is_empty() && client.all("uploading").is_empty(), "{:?}", client.events);
    plans[0].clone()
}

/// What the worker keeps of packages and jobs: every path, its length, and when it was changed.
fn kept(lab: &Lab) -> Vec<(PathBuf, u64, SystemTime)> {
    fn list(folder: &Path, found: &mut Vec<(PathBuf, u64, SystemTime)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            found.push((path.clone(), metadata.len(), metadata.modified().unwrap()));
            if metadata.is_dir() {
                list(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["worker/store", "worker/jobs"] {
        list(&lab.path(folder), &mut found);
    }
    found.sort();
    found
}

fn number(plan: &Value, name: &str) -> u64 {
    plan[name].as_u64().unwrap_or_else(|| panic!("no {name}: {plan}"))
}

fn jobs(lab: &Lab) -> usize {
    let mut status = lab.client(&["status"]);
    assert_eq!(status.exit_code(), 0);
    status.all("jobs")[0]["jobs"].as_array().unwrap().len()
}

#[test]
fn a_plan_of_a_new_package_says_everything_and_changes_nothing() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let package = lab.package("steady", &Steady { ballast: BALLAST, ..Steady::default() });
    let before = kept(&lab);
    let plan = plan(&lab, &package);
    assert_eq!(
        (&plan["only"], &plan["known"], &plan["refused"], &plan["status"]),
        (&true.into(), &false.into(), &Value::Null, &Value::Null)
    );
    assert_eq!((number(&plan, "to_send"), number(&plan, "already_there"), number(&plan, "ahead")), (number(&plan, "bytes"), 0, 0));
    assert!(number(&plan, "bytes") > BALLAST && number(&plan, "disk_free") > BALLAST);
    assert_eq!((&plan["route"]["kind"], &plan["speed"]["basis"]), (&"direct".into(), &"probe".into()));
    let expected = number(&plan, "bytes") * 1000 / number(&plan["speed"], "bytes_per_second");
    assert_eq!(number(&plan, "expected_ms"), expected);
    assert_eq!(kept(&lab), before);
    assert_eq!(jobs(&lab), 0);
    assert!(!lab.models().exists());
    assert_eq!(lab.watcher(&["train", package.to_str().unwrap(), "--plan"]).exit_code(), 5, "who may only watch may not ask");
}

#[test]
fn a_plan_counts_what_the_worker_has() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let package = lab.package("steady", &Steady { ballast: BALLAST, ..Steady::default() });
    let mut train = lab.train(&package, &[]);
    assert_eq!(train.exit_code(), 0);
    assert!(train.all("plan")[0].get("speed").is_none(), "nothing is known before the first transfer");
    let before = kept(&lab);
    let done = plan(&lab, &package);
    assert_eq!((number(&done, "to_send"), &done["known"], &done["status"]["outcome"]), (0, &true.into(), &"completed".into()));

    let mut ballast = std::fs::File::options().write(true).open(package.join("ballast.bin")).unwrap();
    ballast.seek(SeekFrom::Start(BALLAST / 2)).unwrap();
    ballast.write_all(b"an edited label").unwrap();
    drop(ballast);
    let edited = plan(&lab, &package);
    assert_eq!((&edited["known"], &edited["running"]), (&false.into(), &Value::Array(vec![])));
    assert!((1..=512 << 10).contains(&number(&edited, "to_send")), "{edited}");
    assert_eq!(kept(&lab), before);
    assert_eq!(jobs(&lab), 1);

    let mut train = lab.train(&package, &["--overwrite"]);
    assert_eq!(train.exit_code(), 0);
    let told = train.all("plan")[0];
    assert_eq!((&told["job"], &told["to_send"], &told["only"]), (&edited["job"], &edited["to_send"], &false.into()));
    assert_eq!(told["speed"]["basis"], "last_transfer");
    lab.assert_models_are_those_of(&lab.job(told));
}

#[test]
fn a_plan_says_who_runs_before_us() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let first = lab.package("first", &Steady::endless());
    let mut running = lab.train(&first, &["--no-fetch"]);
    running.wait_for_entry("batch_ended");
    let second = plan(&lab, &lab.package("second", &Steady::default()));
    assert_eq!((number(&second, "ahead"), &second["running"]), (1, &Value::Array(vec!["first".into()])));
    let same = plan(&lab, &first);
    assert_eq!((&same["status"]["state"], number(&same, "ahead"), number(&same, "to_send")), (&"running".into(), 0, 0));
    assert_eq!(lab.client(&["cancel"]).exit_code(), 0);
    assert_eq!(running.exit_code(), 7);
}
