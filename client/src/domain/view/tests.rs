//! What people see, event by event.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const JOB: &str = "1a2b3c4d00000000000000000000000f";

fn job() -> JobId {
    JOB.parse().unwrap()
}

/// Events as `--json` would print them, `job` filled in.
fn event(mut value: serde_json::Value) -> Event {
    value.as_object_mut().unwrap().entry("job").or_insert(json!(JOB));
    serde_json::from_value(value).unwrap()
}

fn journal(seq: u64, value: serde_json::Value) -> Event {
    event(json!({"type": "journal", "entry": {"seq": seq, "at_ms": seq * 1000, "event": value}}))
}

fn worker() -> serde_json::Value {
    json!({"peer": "w1", "name": "lab", "version": "0.1.0", "gpus": [], "trainers": ["sleap-nn"], "jobs": 1, "disk_free": 5_000_000_000u64})
}

fn status(state: serde_json::Value) -> Event {
    let mut status =
        json!({"type": "job_state", "job": JOB, "name": "fly.zip", "last_seq": 0, "submitted_at": 0, "message": "", "results": null});
    status.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
    event(status)
}

/// A view, and every line that it said.
struct Shown {
    view: View,
    lines: Vec<String>,
    now: Duration,
}

impl Shown {
    fn new() -> Self {
        Self::with(ViewOptions { verbose: false, options: " --invite-file i.txt".into() })
    }

    fn with(options: ViewOptions) -> Self {
        Shown { view: View::new(options), lines: vec![], now: Duration::ZERO }
    }

    fn see(&mut self, events: impl IntoIterator<Item = Event>) -> &mut Self {
        for event in events {
            self.now += Duration::from_millis(500);
            self.lines.extend(self.view.handle(self.now, &event).iter().map(|line| line.text().to_owned()));
        }
        self
    }

    fn live(&self) -> Vec<String> {
        self.view.live(self.now).iter().map(|live| live.text().to_owned()).collect()
    }

    fn summary(&self) -> Vec<String> {
        self.view.summary().iter().map(|line| line.text().to_owned()).collect()
    }
}

fn upload() -> Vec<Event> {
    vec![
        event(json!({"type": "connecting", "server": "http://h:8001", "room": "r", "attempt": 1})),
        event(json!({"type": "connected", "worker": worker(), "grant": "submit", "resumed": false, "elapsed_ms": 412,
            "route": {"kind": "direct_through_nat", "local": "x", "remote": "y", "rtt": 0.0123}})),
        event(json!({"type": "plan", "known": false, "files": 4, "bytes": 3_000_000, "already_there": 1_000_000, "to_send": 2_000_000,
            "disk_free": 5_000_000_000u64})),
        event(json!({"type": "uploading", "done": 0, "total": 2_000_000})),
        event(json!({"type": "uploading", "done": 1_000_000, "total": 2_000_000})),
    ]
}

/// A run of two models, as sleap-nn reports it: bare NaN before the first validation, `train/loss` one epoch late.
fn training() -> Vec<Event> {
    let events = [
        json!({"event": "job_started", "trainer": "sleap-nn", "steps": ["centroid", "centered_instance"]}),
        json!({"event": "step_started", "step": 0, "name": "centroid", "run": "centroid.n=1", "max_epochs": 2}),
        json!({"event": "phase_entered", "step": 0, "phase": "starting"}),
        json!({"event": "phase_entered", "step": 0, "phase": "training"}),
        json!({"event": "epoch_started", "step": 0, "epoch": 0}),
        json!({"event": "batch_ended", "step": 0, "epoch": 0, "batch": 0, "metrics": {"loss": "NaN"}}),
        json!({"event": "batch_ended", "step": 0, "epoch": 0, "batch": 1, "metrics": {"loss": 0.0123}}),
        json!({"event": "epoch_ended", "step": 0, "epoch": 0, "metrics": {"loss": 0.0121, "val/loss": 0.02}}),
        json!({"event": "epoch_started", "step": 0, "epoch": 1}),
        json!({"event": "epoch_ended", "step": 0, "epoch": 1, "metrics": {"loss": 0.0101, "val/loss": 0.03, "train/loss": 0.0121}}),
        json!({"event": "phase_entered", "step": 0, "phase": "evaluating"}),
        json!({"event": "step_ended", "step": 0, "outcome": "completed", "message": ""}),
        json!({"event": "step_started", "step": 1, "name": "centered_instance", "run": "ci.n=1", "max_epochs": null}),
        json!({"event": "phase_entered", "step": 1, "phase": "training"}),
        json!({"event": "epoch_ended", "step": 1, "epoch": 0, "metrics": {"loss": 0.5, "val_loss": "NaN"}}),
    ];
    events.into_iter().zip(1..).map(|(value, seq)| journal(seq, value)).collect()
}

#[test]
fn an_upload_says_route_plan_rate_and_end() {
    let mut shown = Shown::new();
    shown.see(upload().into_iter().take(1));
    assert_eq!(shown.live(), ["connecting through http://h:8001"]);
    assert_eq!(shown.view.stage(), Stage::Preparing);
    shown.see(upload().into_iter().skip(1));
    assert_eq!(
        shown.lines,
        [
            "connected to lab in 0.4 s, direct, through NAT, round trip 12 ms; no GPU",
            "job 1a2b3c4d: 4 files, 3.00 MB; the worker has 1.00 MB of it, 2.00 MB to send",
        ]
    );
    assert_eq!(shown.live(), ["uploading 1.00 MB of 2.00 MB, 2.00 MB/s, 0.5 s left"]);
    assert_eq!(shown.view.stage(), Stage::Uploading);
    shown.see([event(json!({"type": "uploaded", "bytes": 2_000_000, "elapsed_ms": 1000})), status(json!({"state": "queued", "ahead": 2}))]);
    assert_eq!(shown.lines[2..], ["uploaded 2.00 MB in 1.0 s (2.00 MB/s)", "queued: 2 jobs before this one"]);
    assert_eq!(shown.live(), ["queued: 2 jobs before this one"]);
    assert_eq!(shown.view.stage(), Stage::Following);
}

#[test]
fn a_package_is_read_beside_connecting() {
    let mut shown = Shown::new();
    let read = |bytes: u64| event(json!({"type": "scanning", "bytes": bytes, "total": 3_000_000}));
    let [connecting, connected, ..] = &upload()[..] else { panic!("an upload begins with a connection") };
    shown.see([read(0), connecting.clone(), read(1_000_000)]);
    let live = shown.live();
    assert!(live.len() == 2 && live[0].starts_with("connecting") && live[1].starts_with("reading 1.00 MB of 3.00 MB"), "{live:?}");
    shown.see([connected.clone()]);
    assert!(shown.live()[0].starts_with("reading 1.00 MB of 3.00 MB"), "{:?}", shown.live());
    shown.see([event(json!({"type": "disconnected", "reason": "gone", "retry_in_ms": 0})), connecting.clone()]);
    assert_eq!(shown.live().len(), 2, "it goes on without a connection");
    shown.see([read(3_000_000)]);
    assert_eq!(shown.live(), ["connecting through http://h:8001"]);
}

#[test]
fn an_upload_to_a_worker_met_before_says_when_it_will_be_there() {
    let mut shown = Shown::new();
    shown
        .see([event(json!({"type": "plan", "known": false, "files": 1, "bytes": 480_000_000, "already_there": 0, "to_send": 480_000_000,
        "disk_free": 1_000_000, "speed": {"bytes_per_second": 12_000_000, "basis": "last_transfer"}, "expected_ms": 40_000, "ahead": 2}))]);
    assert_eq!(
        shown.lines,
        [
            "job 1a2b3c4d: 1 file, 480 MB; 480 MB to send, about 40 s at 12.0 MB/s (as the last time); 2 jobs before it",
            "the worker has only 1.00 MB of free disk space",
        ]
    );
    shown.lines.clear();
    shown.see([event(
        json!({"type": "plan", "known": false, "files": 1, "bytes": 480_000_000, "already_there": 479_000_000, "to_send": 1_000_000,
        "disk_free": 2_000_000, "speed": {"bytes_per_second": 12_000_000, "basis": "last_transfer"}, "expected_ms": 83, "ahead": 0}),
    )]);
    assert_eq!(shown.lines, ["job 1a2b3c4d: 1 file, 480 MB; the worker has 479 MB of it, 1.00 MB to send"]);
}

/// The answer to `--plan`, with these changes.
fn answered(changes: serde_json::Value) -> Event {
    let mut plan = json!({"type": "plan", "only": true, "name": "fly.zip", "known": false, "files": 4, "bytes": 600_000_000,
        "already_there": 120_000_000, "to_send": 480_000_000, "disk_free": 5_000_000_000u64, "expected_ms": 40_000, "ahead": 1,
        "speed": {"bytes_per_second": 12_000_000, "basis": "probe"}, "status": null, "worker": worker(), "running": ["bees.zip"],
        "route": {"kind": "direct_through_nat", "local": "x", "remote": "y", "rtt": 0.0123}, "notices": [], "refused": null});
    plan.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    event(plan)
}

#[test]
fn a_plan_is_a_table_and_leaves_nothing_to_come_back_to() {
    let mut shown = Shown::new();
    shown.see(upload().into_iter().take(2)).see([answered(json!({}))]);
    assert_eq!(shown.lines.len(), 1, "the table is for stdout: {:?}", shown.lines);
    assert_eq!(
        shown.summary(),
        [
            "package  fly.zip, 4 files, 600 MB",
            "job      1a2b3c4d, new to the worker",
            "worker   lab, no GPU",
            "path     direct, through NAT, round trip 12 ms",
            "there    120 MB",
            "to send  480 MB, about 40 s at 12.0 MB/s",
            "space    5.00 GB free",
            "queue    1 job before it; running now: bees.zip",
            "verdict  the worker would take it",
        ]
    );
    assert_eq!((shown.view.stage(), shown.live()), (Stage::Preparing, vec![]));
}

#[test]
fn a_plan_of_a_job_that_is_there_says_what_train_would_do() {
    let status = |state: &str| {
        let mut status =
            json!({"job": JOB, "name": "fly.zip", "state": state, "last_seq": 0, "submitted_at": 0, "message": "", "results": null});
        if state == "ended" {
            status["outcome"] = "completed".into();
        }
        status
    };
    for (state, job, queue, verdict) in [
        ("running", "running already", "it runs already", "train would follow it"),
        ("uploading", "begun before, its upload is not complete", "next in line", "the worker would go on with it"),
        ("ended", "completed already", "it has run already", "--again trains once more"),
    ] {
        let mut shown = Shown::new();
        let changes = json!({"known": true, "status": status(state), "to_send": 0, "already_there": 600_000_000, "ahead": 0, "running": [],
            "speed": null, "expected_ms": null});
        let summary = shown.see([answered(changes)]).summary();
        assert_eq!(summary[1], format!("job      1a2b3c4d, {job}"));
        assert_eq!((&summary[5][..], &summary[7][9..]), ("to send  nothing", queue));
        assert!(summary[8].ends_with(verdict), "{summary:?}");
    }
}

#[test]
fn a_plan_that_would_be_refused_says_so() {
    let mut shown = Shown::new();
    let changes = json!({"refused": {"code": "NO_SPACE", "message": "m"}, "disk_free": 7000, "speed": null, "expected_ms": null,
        "notices": ["sleap-nn\u{1b}[2J is not to be found"]});
    let summary = shown.see([answered(changes)]).summary();
    assert_eq!(summary[5], "to send  480 MB");
    assert_eq!(summary[6], "space    7.00 kB free, too little for it");
    assert!(summary[8].starts_with("note     sleap-nn") && !summary[8].contains('\u{1b}'), "{summary:?}");
    assert_eq!(summary[9], "verdict  the worker would refuse it");
}

#[test]
fn training_is_one_live_line_and_a_line_an_epoch() {
    let mut shown = Shown::new();
    let events = training();
    shown.see(events[..6].iter().cloned());
    assert_eq!(shown.live(), ["[1/2] centroid  epoch 1/2  batch 1  loss NaN"]);
    shown.see(events[6..7].iter().cloned());
    assert_eq!(shown.live(), ["[1/2] centroid  epoch 1/2  batch 2  loss 0.01230"]);
    shown.see(events[7..].iter().cloned());
    assert_eq!(
        shown.lines,
        [
            "sleap-nn trains 2 models: centroid, centered_instance",
            "[1/2] centroid  starting, at most 2 epochs",
            "[1/2] centroid  training",
            "[1/2] centroid  epoch 1/2  loss 0.01210  val 0.02000 (best)  3.0 s",
            "[1/2] centroid  epoch 2/2  loss 0.01010  val 0.03000  1.0 s",
            "[1/2] centroid  evaluating",
            "[1/2] centroid  completed",
            "[2/2] centered_instance  starting",
            "[2/2] centered_instance  training",
            "[2/2] centered_instance  epoch 1  loss 0.5000  val NaN",
        ]
    );
    assert_eq!(shown.live(), ["[2/2] centered_instance  epoch 1  last val NaN"]);
}

#[test]
fn the_end_says_how_where_and_how_long() {
    let mut shown = Shown::new();
    shown.see(upload()).see([status(json!({"state": "running"}))]).see(training()).see([
        journal(16, json!({"event": "step_ended", "step": 1, "outcome": "stopped", "message": "on request"})),
        journal(17, json!({"event": "job_ended", "outcome": "stopped", "message": "on request"})),
        event(json!({"type": "downloading", "done": 1, "total": 9})),
    ]);
    assert_eq!(shown.view.stage(), Stage::Fetching);
    shown.see([
        event(json!({"type": "downloaded", "path": "/home/a/models-fly", "files": ["c/best.ckpt", "c/x.csv"], "bytes": 20_000_000, "elapsed_ms": 900})),
        event(json!({"type": "finished", "outcome": "stopped", "message": "stopped on request", "elapsed_ms": 723_000})),
    ]);
    assert!(shown.lines.last().unwrap().contains("weights_only"), "{:?}", shown.lines);
    assert_eq!(
        shown.summary(),
        [
            "  centroid           completed, 2 epochs, best validation loss 0.02000 (epoch 1)",
            "  centered_instance  stopped, 1 epoch",
            "models: /home/a/models-fly (2 files, 20.0 MB)",
            "fly.zip (job 1a2b3c4d) stopped after 12 min 03 s: stopped on request",
        ]
    );
    assert_eq!(shown.live(), Vec::<String>::new());
    assert_eq!(shown.view.stage(), Stage::Over);
}

#[test]
fn leaving_says_how_to_come_back() {
    let mut shown = Shown::new();
    shown.see(upload()).view.set_detached(&job());
    assert!(shown.summary()[0].contains("run the same command again to continue"), "{:?}", shown.summary());
    shown.see([status(json!({"state": "running"}))]);
    assert_eq!(shown.summary()[1], "  webrtc-client watch 1a2b3c4d --invite-file i.txt");
    shown.see([status(json!({"state": "ended", "outcome": "completed"}))]);
    assert_eq!(shown.summary()[1], "  webrtc-client fetch 1a2b3c4d --invite-file i.txt");
}

#[test]
fn models_that_were_not_fetched_are_at_the_worker() {
    let mut shown = Shown::new();
    shown.see([event(json!({"type": "finished", "outcome": "completed", "message": "", "elapsed_ms": 1000}))]);
    assert_eq!(shown.summary()[0], "models: at the worker; get them with: webrtc-client fetch 1a2b3c4d --invite-file i.txt");
    let mut failed = Shown::new();
    failed.see([event(json!({"type": "finished", "outcome": "failed", "message": "out of memory", "elapsed_ms": 1000}))]);
    assert_eq!(failed.summary(), ["job 1a2b3c4d failed after 1.0 s: out of memory"]);
}

#[test]
fn many_failed_tries_are_few_lines() {
    let mut shown = Shown::new();
    let lost = event(json!({"type": "disconnected", "reason": "timed out", "retry_in_ms": 2000}));
    shown.see(std::iter::repeat_n(lost.clone(), 11));
    assert_eq!(shown.lines.len(), 3);
    assert_eq!(shown.lines[1], "no connection: timed out; next try in 2.0 s (6 tries so far)");
    shown.see(upload()).see([status(json!({"state": "running"})), lost]);
    assert_eq!(shown.lines.last().unwrap(), "no connection: timed out; next try in 2.0 s; the job goes on");
}

#[test]
fn a_step_of_a_command_is_told_once() {
    let mut shown = Shown::new();
    let answer = event(json!({"type": "command", "id": "c1", "command": "stop", "state": "applied", "message": ""}));
    let entry = journal(5, json!({"event": "command_advanced", "id": "c1", "command": "stop", "state": "applied"}));
    shown.see([answer, entry.clone(), entry]);
    assert_eq!(shown.lines, ["stop: the trainer finishes its batch, validates and saves"]);
}

#[test]
fn the_trainers_lines_are_for_who_asks() {
    let log = journal(1, json!({"event": "log", "step": 0, "line": "END_OF_FILE"}));
    let mut quiet = Shown::new();
    quiet.see([log.clone()]);
    assert_eq!(quiet.lines, Vec::<String>::new());
    let mut verbose = Shown::with(ViewOptions { verbose: true, options: String::new() });
    verbose.see([log]);
    assert_eq!(verbose.lines, ["  | END_OF_FILE"]);
}

#[test]
fn tables_align_and_stay_narrow() {
    let mut shown = Shown::new();
    let row = |job: &str, name: &str, state: serde_json::Value| {
        let mut row = json!({"job": job, "name": name, "last_seq": 1, "submitted_at": 0});
        row.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
        row
    };
    let jobs = [
        row("1a2b3c4d00", "fly.zip", json!({"state": "running"})),
        row("ffffffffff", &"long".repeat(50), json!({"state": "queued", "ahead": 1})),
    ];
    shown.see([event(json!({"type": "jobs", "worker": worker(), "jobs": jobs}))]);
    let summary = shown.summary();
    assert_eq!(summary[0], "lab: no GPU, 5.00 GB disk free");
    assert!(summary[1].starts_with("JOB       NAME"), "{summary:?}");
    assert!(summary[2].starts_with("1a2b3c4d  fly.zip "), "{summary:?}");
    assert!(summary[3].contains('…') && summary[3].contains("queued, 1 ahead"), "{summary:?}");
    let column = |line: &str, text: &str| line.split(text).next().unwrap().chars().count();
    assert_eq!(column(&summary[2], "running"), column(&summary[3], "queued"));
}

#[test]
fn a_list_of_workers_tells_the_memory_of_every_kind_of_gpu() {
    let gpu = |name: &str, free: u64| json!({"name": name, "memory": 48u64 << 30, "memory_free": free << 30, "driver": "1"});
    let mut who = worker();
    let long = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition";
    who["gpus"] = json!([gpu(long, 20), gpu("NVIDIA RTX 6000 Ada Generation", 30), gpu(long, 20)]);
    let mut shown = Shown::with(ViewOptions { verbose: false, options: String::new() });
    shown.see([event(json!({"type": "workers", "workers": [who]}))]);
    let summary = shown.summary();
    let told = summary.last().unwrap();
    assert!(told.contains("2 × NVIDIA RTX PRO 6000 Blackwel…, 20.0 GiB free; NVIDIA RTX 6000 Ada Generation, 30.0 GiB free  1 "), "{told}");
}

#[test]
fn a_hostile_worker_cannot_write_on_the_terminal() {
    let evil = "\x1b[2J\x1b]0;owned\x07\u{202e}\u{9b}1A\r";
    let mut who = worker();
    who["name"] = json!(evil);
    who["gpus"] = json!([{"name": evil, "memory": 1, "memory_free": 1, "driver": evil}]);
    let mut shown = Shown::with(ViewOptions { verbose: true, options: String::new() });
    shown.see([
        event(json!({"type": "connecting", "server": evil, "room": "r", "attempt": 2})),
        event(json!({"type": "connected", "worker": who, "grant": "watch", "resumed": true, "elapsed_ms": 1, "route": null})),
        event(json!({"type": "disconnected", "reason": evil, "retry_in_ms": 1})),
        event(json!({"type": "notice", "message": evil})),
        journal(1, json!({"event": "job_started", "trainer": evil, "steps": [evil]})),
        journal(2, json!({"event": "step_started", "step": 4_294_967_295u32, "name": evil, "run": evil, "max_epochs": 4_294_967_295u32})),
        journal(3, json!({"event": "phase_entered", "step": 4_294_967_295u32, "phase": "training"})),
        journal(4, json!({"event": "log", "step": 0, "line": evil})),
        journal(5, json!({"event": "gap", "step": 0, "what": evil, "from": 4_294_967_295u32, "to": 0})),
        journal(6, json!({"event": "epoch_ended", "step": 4_294_967_295u32, "epoch": 4_294_967_295u32, "metrics": {"loss": 1e308}})),
        event(json!({"type": "command", "id": "c", "command": "stop", "state": "refused", "message": evil})),
        event(json!({"type": "downloaded", "path": evil, "files": [evil], "bytes": 0, "elapsed_ms": 0})),
        event(json!({"type": "workers", "workers": [who]})),
    ]);
    let mut all = shown.lines.clone();
    all.extend(shown.live());
    all.extend(shown.summary());
    shown.see([event(json!({"type": "finished", "outcome": "failed", "message": evil, "elapsed_ms": 1}))]);
    all.extend(shown.summary());
    assert!(all.len() > 14, "{all:#?}");
    for line in all {
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
}

proptest! {
    #[test]
    fn no_journal_makes_the_view_panic_or_grow(steps in prop::collection::vec((any::<u32>(), any::<u32>(), 0..7), 0..600)) {
        let mut shown = Shown::new();
        for (seq, (step, n, kind)) in steps.into_iter().enumerate() {
            let value = match kind {
                0 => json!({"event": "step_started", "step": step, "name": "m", "run": "r", "max_epochs": n}),
                1 => json!({"event": "epoch_started", "step": step, "epoch": n}),
                2 => json!({"event": "batch_ended", "step": step, "epoch": null, "batch": n, "metrics": {}}),
                3 => json!({"event": "epoch_ended", "step": step, "epoch": n, "metrics": {"loss": "Infinity"}}),
                4 => json!({"event": "phase_entered", "step": step, "phase": "later"}),
                5 => json!({"event": "step_ended", "step": step, "outcome": "new", "message": "x"}),
                _ => json!({"event": "tea_break"}),
            };
            shown.see([journal(seq as u64, value)]);
        }
        prop_assert!(shown.live().len() <= 2);
        prop_assert!(shown.summary().len() <= 256);
    }
}

#[test]
fn a_saved_checkpoint_is_told_and_is_the_last_word_when_nothing_else_comes() {
    let saved = |epoch: u32, path: &str| {
        event(json!({"type": "checkpoint_saved", "step": 0, "epoch": epoch, "metric": 0.25, "path": path, "bytes": 9, "already_here": 0}))
    };
    let mut shown = Shown::new();
    shown.see([
        journal(1, json!({"event": "job_started", "trainer": "sleap-nn", "steps": ["centroid"]})),
        journal(2, json!({"event": "step_started", "step": 0, "name": "centroid", "run": "c", "max_epochs": 9})),
        saved(3, "/m/checkpoints/1a2b3c4d/step-1/epoch-4-aa"),
        saved(5, "/m/checkpoints/1a2b3c4d/step-1/epoch-6-bb\u{1b}[2J"),
    ]);
    assert!(
        shown.lines[2].starts_with("centroid  best checkpoint of epoch 4 (val 0.25") && shown.lines[2].ends_with("epoch-4-aa"),
        "{:?}",
        shown.lines
    );
    shown.view.set_left();
    let summary: Vec<String> = shown.view.summary().iter().map(|line| line.text().to_owned()).collect();
    let last = summary.last().unwrap();
    assert!(last.contains("best checkpoint of epoch 6") && last.contains("epoch-6-bb") && !last.contains('\u{1b}'), "{summary:?}");
    assert_eq!(summary.iter().filter(|line| line.contains("best checkpoint")).count(), 1);
    // With the models in place nothing is left to say of it.
    shown.see([event(
        json!({"type": "downloaded", "path": "/m", "files": ["c/best.ckpt"], "bytes": 50, "already_here": 40, "elapsed_ms": 900}),
    )]);
    assert!(shown.lines.iter().any(|line| line.contains("10 B") && line.contains("40 B were here already")), "{:?}", shown.lines);
    assert!(!shown.view.summary().iter().any(|line| line.text().contains("checkpoint of epoch")));
}
