//! Disks that are full, or become full in the middle.

use std::{
    fs,
    io::Write,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    time::Instant,
};

use shared::domain::manifest::MAX_CHUNK;

use crate::stack::{Plan, Program, Said, Stack, Trainer, on_a_disk_of_its_own};

/// A lab whose worker has a disk of its own.
fn small_disk(size: &'static str) -> Stack {
    let mut plan = Plan::new(Trainer::Odd("floods"));
    plan.disk = Some(size);
    plan.start()
}

/// A folder as this program sees it, from outside its mount namespace.
fn as_seen_by(program: &Program, folder: &Path) -> PathBuf {
    Path::new(&format!("/proc/{}/root", program.id())).join(folder.strip_prefix("/").unwrap())
}

/// The worker's data directory, seen from outside its mount namespace.
fn inside(stack: &Stack) -> PathBuf {
    as_seen_by(stack.worker.as_ref().unwrap(), &stack.worker_data())
}

/// A file that takes what is left of the disk of this folder.
fn fill(folder: &Path) -> PathBuf {
    let filler = folder.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 1 << 16]).is_ok() {}
    filler
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
fn a_plan_says_that_a_package_does_not_fit() {
    let stack = small_disk("2m");
    let package = big_package(&stack, 4 << 20);
    let args = ["train", &package, "--config", "centroid.yaml", "--plan"];
    let said = Program::start(&mut stack.client(&args)).end();
    said.refuses(8, &["not enough disk space", "are needed", "are free", "free some space"]);
    let plan = event(&said, "plan");
    assert_eq!((&plan["refused"]["code"], &plan["to_send"]), (&"NO_SPACE".into(), &plan["bytes"]));
    assert!(plan["disk_free"].as_u64() < plan["bytes"].as_u64() && plan.get("speed").is_none(), "{plan}");
    assert!(
        !holds(&inside(&stack).join("store/partial"), "manifest") && fs::read_dir(inside(&stack).join("jobs")).unwrap().next().is_none()
    );
}

#[test]
fn a_plan_says_that_the_quota_is_used_up() {
    let mut plan = Plan::new(Trainer::Odd("floods"));
    plan.worker = vec!["--quota".into(), "1000000".into()];
    let stack = plan.start();
    let package = big_package(&stack, 4 << 20);
    let said = Program::start(&mut stack.client(&["train", &package, "--config", "centroid.yaml", "--plan"])).end();
    said.refuses(8, &["does not fit into the worker's store"]);
    assert!(event(&said, "plan")["disk_free"].as_u64() <= Some(1_000_000), "{}", event(&said, "plan"));
}

#[test]
fn a_disk_that_fills_in_the_middle_ends_the_upload_and_the_next_run_continues_it() {
    let stack = small_disk("128m");
    let package = big_package(&stack, 96 << 20);
    let first = upload(&stack, &package);
    first.event(|event| event["type"] == "uploading" && event["done"].as_u64() > Some(1 << 20));
    let filler = stack.worker.as_ref().unwrap().paused(|| fill(&inside(&stack)));
    let full = Instant::now();
    let said = first.end();
    said.refuses(8, &["disk", "space"]);
    assert!(full.elapsed().as_millis() < 1000, "{:?}", full.elapsed());
    assert!(!holds(&inside(&stack).join("store/packages"), "video.mp4"), "a part is visible as a package");
    assert!(!holds(&inside(&stack).join("jobs"), "video.mp4"), "a part is visible to a trainer");
    fs::remove_file(filler).unwrap();
    let second = upload(&stack, &package).end();
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert!(event(&second, "plan")["already_there"].as_u64() > Some(1 << 20), "{}", event(&second, "plan"));
    assert!(holds(&inside(&stack).join("store/packages"), "video.mp4"));
}

#[test]
fn a_chunk_that_rots_on_the_workers_disk_is_sent_again_and_no_other() {
    let stack = Plan::new(Trainer::Odd("floods")).start();
    let package = big_package(&stack, 96 << 20);
    let mut first = upload(&stack, &package);
    first.event(|event| event["type"] == "uploading" && event["done"].as_u64() > Some(1 << 20));
    first.kill();
    let video = find(&stack.worker_data().join("store"), "video.mp4").expect("a part of it is here");
    // Chunks travel in order: the first ones of the file are here, acknowledged, and will not be written again.
    fs::File::options().write(true).open(video).unwrap().write_all_at(b"rot", 1000).unwrap();
    let second = upload(&stack, &package).end();
    assert_eq!(second.code, 0, "{}", second.stderr);
    let there = event(&second, "plan")["already_there"].as_u64().unwrap();
    let (sent, bytes) = (event(&second, "uploaded")["sent"].as_u64().unwrap(), event(&second, "plan")["bytes"].as_u64().unwrap());
    assert!(there > 1 << 20 && sent <= bytes - there + u64::from(MAX_CHUNK), "{there} of {bytes} were there, {sent} were sent");
    let arrived = find(&stack.worker_data().join("store/packages"), "video.mp4").expect("it is whole");
    assert!(fs::read(arrived).unwrap() == fs::read(Path::new(&package).join("video.mp4")).unwrap());
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_noticed() {
    let stack = Plan::new(Trainer::Odd("floods")).start();
    let package = big_package(&stack, 96 << 20);
    let first = upload(&stack, &package);
    first.event(|event| event["type"] == "uploading" && event["done"].as_u64() > Some(1 << 20));
    let video = Path::new(&package).join("video.mp4");
    first.paused(|| fs::File::options().write(true).open(&video).unwrap().write_all_at(&[7; 1 << 16], 90 << 20).unwrap());
    first.end().refuses(3, &["video.mp4", "changed"]);
    assert!(find(&stack.worker_data().join("store/packages"), "video.mp4").is_none(), "a part is visible as a package");
    let second = upload(&stack, &package).end();
    assert_eq!(second.code, 0, "{}", second.stderr);
    let arrived = find(&stack.worker_data().join("store/packages"), "video.mp4").expect("it is whole");
    assert!(fs::read(arrived).unwrap() == fs::read(video).unwrap());
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

#[test]
fn a_disk_here_that_fills_in_the_middle_ends_the_download_and_nothing_is_lost() {
    let stack = Plan::new(Trainer::Odd("steady")).start();
    let (package, output) = (stack.package(1), stack.output());
    let config = fs::read_to_string(format!("{package}/centroid.yaml")).unwrap();
    let config = config.replace("max_epochs: 1", "max_epochs: 1\n  model_bytes: 200000000");
    fs::write(format!("{package}/centroid.yaml"), config).unwrap();
    fs::create_dir_all(&output).unwrap();
    let args = ["train", &package, "--config", "centroid.yaml", "--output", output.to_str().unwrap()];
    let train = Program::start(&mut on_a_disk_of_its_own(stack.client(&args), &output, "256m"));
    train.event(|event| event["type"] == "downloading" && event["done"].as_u64() > Some(1 << 20));
    // The disk goes with the last process that sees it; ours is open as long as this is.
    let folder = train.paused(|| {
        fill(&as_seen_by(&train, &output));
        fs::File::open(as_seen_by(&train, &output)).unwrap()
    });
    let full = Instant::now();
    train.end().refuses(8, &["disk", "space"]);
    assert!(full.elapsed().as_secs() < 3, "{:?}", full.elapsed());
    let left = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    assert!(
        left.join("filler").exists() && !left.join("flies.centroid.n=8/best.ckpt").exists(),
        "a part is visible under the whole's name"
    );
    assert_eq!(stack.run(&args).code, 0);
    assert_eq!(fs::metadata(output.join("flies.centroid.n=8/best.ckpt")).unwrap().len(), 200_000_000);
}

fn holds(folder: &Path, name: &str) -> bool {
    find(folder, name).is_some()
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).find_map(|path| if path.ends_with(name) { Some(path) } else { find(&path, name) })
}
