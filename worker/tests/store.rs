//! `webrtc-worker store`, the real program, beside a process that uses the store (this one).

use std::{fs, path::Path, process::Command, sync::Arc, time::SystemTime};

use serde_json::Value;
use shared::{
    domain::{
        id::JobId,
        job::{JobSpec, JobState},
        transfer::WholeChunk,
    },
    runtime::{
        files::Source,
        listing::Listing,
        store::{Begun, Finished, PackageDir, Store},
    },
};
use worker::runtime::workspace::{JobRecord, Workspace};

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

fn says(data: &Path, args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webrtc-worker"));
    command.arg("store").args(args).arg("--data-dir").arg(data).current_dir(data).env_clear().env("HOME", data);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn json(data: &Path, args: &[&str]) -> Vec<Value> {
    let said = says(data, &[args, &["--json"]].concat());
    assert_eq!(said.code, 0, "{}", said.stderr);
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Stores a package with one file of these bytes, last used so many days ago.
fn put(data: &Path, store: &Store, owner: &str, bytes: &[u8], days: u64) -> PackageDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("labels.slp"), bytes).unwrap();
    let source = Arc::new(Source::folder(folder.path()).unwrap());
    let manifest = source.scan(&mut |_| {}, &Default::default()).unwrap();
    let encoded = manifest.encode();
    let summary = manifest.summary(&encoded);
    let Begun::New(announced) = store.begin(owner, &summary).unwrap() else { panic!("it is new") };
    let mut reader = source.reader(Arc::new(Listing::new(&manifest, folder.path()))).unwrap();
    let partial = announced.accept(manifest).unwrap();
    for index in 0..partial.layout().len() {
        let place = partial.layout().get(index).unwrap();
        let mut bytes = Vec::new();
        reader.read(index, place, &mut bytes, true).unwrap();
        partial.write(&WholeChunk { index, place, bytes: bytes.into() }).unwrap();
    }
    let Finished::Whole(dir) = partial.finish(&Default::default()).unwrap() else { panic!("it is whole") };
    let then = SystemTime::now() - std::time::Duration::from_secs(days * 24 * 3600);
    for name in ["summary", "chunks.log"] {
        fs::File::options().write(true).open(dir.path().with_file_name(name)).unwrap().set_modified(then).unwrap();
    }
    assert!(dir.path().starts_with(data.canonicalize().unwrap()));
    dir
}

fn queue(data: &Path, owner: &str, package: &PackageDir) -> JobId {
    let workspace = Workspace::open(data).unwrap();
    let spec = JobSpec { name: "x".into(), trainer: None, configs: vec![], labels: None, attempt: 0 };
    let job = spec.job_id(&package.summary().id);
    let dir = workspace.job(&job);
    dir.create().unwrap();
    let record = JobRecord {
        job: job.clone(),
        spec,
        package: package.summary(),
        state: JobState::Queued { ahead: 0 },
        order: 1,
        owner: owner.into(),
        submitted_at: 1,
        ended_at: None,
        fetched_at: None,
        message: String::new(),
        results: None,
    };
    dir.set_record(&record).unwrap();
    job
}

#[test]
fn packages_are_shown_and_only_those_that_nobody_uses_are_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let store = Store::open(&data.join("store"), None).unwrap();
    let old = put(data, &store, "ann", &[1; 300_000], 20);
    let queued = put(data, &store, "ann", &[2; 200_000], 30);
    let open = put(data, &store, "bob", &[3; 100_000], 40);
    let job = queue(data, "ann", &queued);
    let [old, queued] = [old, queued].map(|dir| dir.summary());

    let lines = json(data, &[]);
    let ids: Vec<&str> = lines[..3].iter().map(|line| line["package"].as_str().unwrap()).collect();
    assert_eq!(ids, [open.summary().id, queued.id, old.id].map(|id| id.to_string()), "the longest unused first");
    assert_eq!(lines[0]["open"], true);
    assert_eq!(lines[1]["used_by"][0], job.as_str());
    assert_eq!(
        (lines[2]["in_use"].as_bool(), lines[2]["bytes"].as_u64(), lines[2]["files"].as_u64()),
        (Some(false), Some(300_000), Some(1))
    );
    assert_eq!((&lines[3]["type"], &lines[3]["packages"]), (&"store".into(), &3.into()));
    let table = says(data, &["show"]).stdout;
    assert!(table.contains("300.0 kB") && table.contains("20 d ago") && table.contains("whole"), "{table}");
    assert!(table.contains(&format!("job {}", &job.as_str()[..8])) && table.contains("3 packages, "), "{table}");

    let removed = |lines: &[Value]| lines.iter().filter(|line| line["type"] == "removed").count();
    assert_eq!(removed(&json(data, &["prune", "--older-than", "21"])), 0);
    assert_eq!(removed(&json(data, &["prune"])), 0, "the limit is kept");
    assert_eq!(removed(&json(data, &["prune", "--to", "1GB"])), 0);
    let dry = says(data, &["prune", "--older-than", "20", "--dry-run"]).stdout;
    assert!(dry.contains(&old.id.to_string()[..8]) && dry.contains("1 package would be removed"), "{dry}");
    assert!(store.package("ann", &old.id).unwrap().is_some());
    let lines = json(data, &["prune", "--all"]);
    assert_eq!((removed(&lines), &lines[0]["package"]), (1, &old.id.to_string().into()));
    assert!(lines[1]["freed"].as_u64().unwrap() >= 300_000);
    assert!(store.package("ann", &old.id).unwrap().is_none() && store.package("ann", &queued.id).unwrap().is_some());
    drop(open);
    assert_eq!(removed(&json(data, &["prune", "--to", "250 kB"])), 1);
    assert_eq!(json(data, &["show"]).len(), 2);
}

#[test]
fn where_no_store_is_none_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let said = says(folder.path(), &[]);
    assert!(said.code == 3 && said.stderr.contains("--data-dir"), "{} {}", said.code, said.stderr);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let said = says(folder.path(), &["prune", "--to", "much"]);
    assert!(said.code == 2 && said.stderr.contains("500MB"), "{}", said.stderr);
}
