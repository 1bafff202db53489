//! Disks that are full, or become full in the middle.

use std::{fs, io::Write, path::PathBuf, time::Instant};

use crate::stack::{Plan, Program, Said, Stack, Trainer, on_a_disk_of_its_own};

/// A lab whose worker has a disk of its own.
fn small_disk(size: &'static str) -> Stack {
    let mut plan = Plan::new(Trainer::Odd("floods"));
    plan.disk = Some(size);
    plan.start()
}

/// The worker's data directory, seen from outside its mount namespace.
fn inside(stack: &Stack) -> PathBuf {
    let root = format!("/proc/{}/root", stack.worker.as_ref().unwrap().id());
    PathBuf::from(root).join(stack.worker_data().strip_prefix("/").unwrap())
}

/// The demo's package with so many bytes of video beside it.
fn big_package(stack: &Stack, bytes: usize) -> String {
    let folder = stack.package(1);
    let mut state = 1u64;
    let noise = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32
    };
    let video: Vec<u8> = (0..bytes / 4).map(noise).flat_map(u32::to_le_bytes).collect();
    fs::write(format!("{folder}/video.mp4"), video).unwrap();
    folder
}

/// The package's upload, without what follows.
fn upload(stack: &Stack, package: &str) -> Program {
    Program::start(&mut stack.client(&["train", package, "--config", "centroid.yaml", "--detach"]))
}

fn event<'a>(said: &'a Said, kind: &str) -> &'a serde_json::Value {
    said.events.iter().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("no {kind}: {}", said.stdout))
}

#[test]
fn a_package_that_does_not_fit_is_refused_before_its_first_byte() {
    let stack = small_disk("2m");
    let package = big_package(&stack, 4 << 20);
    let said = upload(&stack, &package).end();
    said.refuses(8, &["not enough disk space", "are needed", "are free", "free some space"]);
    assert!(!said.events.iter().any(|event| event["type"] == "uploading" && event["done"] != 0), "{}", said.stdout);
}

#[test]
fn a_disk_that_fills_in_the_middle_ends_the_upload_and_the_next_run_continues_it() {
    let stack = small_disk("128m");
    let package = big_package(&stack, 96 << 20);
    let first = upload(&stack, &package);
    first.event(|event| event["type"] == "uploading" && event["done"].as_u64() > Some(1 << 20));
    let filler = inside(&stack).join("filler");
    let mut other = fs::File::create(&filler).unwrap();
    while other.write_all(&[0; 1 << 16]).is_ok() {}
    let full = Instant::now();
    let said = first.end();
    said.refuses(8, &["disk", "space"]);
    assert!(full.elapsed().as_secs() < 3, "{:?}", full.elapsed());
    assert!(!holds(&inside(&stack).join("store/packages"), "video.mp4"), "a part is visible as a package");
    assert!(!holds(&inside(&stack).join("jobs"), "video.mp4"), "a part is visible to a trainer");
    fs::remove_file(filler).unwrap();
    let second = upload(&stack, &package).end();
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert!(event(&second, "plan")["already_there"].as_u64() > Some(1 << 20), "{}", event(&second, "plan"));
    assert!(holds(&inside(&stack).join("store/packages"), "video.mp4"));
}

#[test]
fn models_that_do_not_fit_here_stay_at_the_worker() {
    let stack = Plan::new(Trainer::Odd("floods")).start();
    let (package, output) = (stack.package(1), stack.output());
    fs::create_dir_all(&output).unwrap();
    let args = ["train", &package, "--config", "centroid.yaml", "--output", output.to_str().unwrap()];
    let said = Program::start(&mut on_a_disk_of_its_own(stack.client(&args), &output, "64k")).end();
    said.refuses(8, &["not enough disk space", "are needed", "are free"]);
    assert!(fs::read_dir(&output).unwrap().next().is_none());
    let again = stack.run(&args);
    assert_eq!((again.code, again.finished().0), (0, "completed"), "{}", again.stderr);
    assert!(output.join("flies.centroid.n=8/best.ckpt").is_file());
}

fn holds(folder: &std::path::Path, name: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), entry.path())).any(|(found, path)| found == name || path.is_dir() && holds(&path, name))
}
