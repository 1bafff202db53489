//! Jobs in real processes: a runner, a trainer that does what it is told, agents that come and go.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use shared::domain::{
    error::Code,
    job::{Command, CommandState, JobEvent, JobSpec, JobState, JournalEntry, Outcome, Phase},
    manifest::{Hash, ManifestSummary},
};
use worker::{
    domain::trainer::TrainerSettings,
    runtime::{
        journal::JournalReader,
        processes::Group,
        runner::{self, Attached, End, RunnerHandle},
        workspace::{Ended, JobDir, JobRecord, Workspace},
    },
};

/// A job on the disk, and what its processes are.
struct Trial {
    _folder: tempfile::TempDir,
    dir: JobDir,
    settings: TrainerSettings,
}

fn exe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let trial = test.ancestors().nth(2).unwrap().join("examples/trial");
    assert!(trial.is_file(), "cargo builds {} with `cargo test`, but not with `--test`: cargo build -p worker --examples", trial.display());
    trial
}

impl Trial {
    /// A job with one configuration for each act.
    fn new(acts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Deeper than a socket's address is long.
        let root = folder.path().join("deep".repeat(30));
        let job = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let dir = Workspace::open(&root).unwrap().job(&job);
        dir.create().unwrap();
        std::fs::create_dir(dir.package()).unwrap();
        std::fs::write(dir.package().join("x.pkg.slp"), "labels").unwrap();
        for (index, act) in acts.iter().enumerate() {
            let (epochs, batches) = match *act {
                "flood" => (1, 5000),
                "for ever" | "ignore SIGTERM" => (1_000_000, 20),
                _ => (2, 3),
            };
            let text = format!(
                "data_config: {{train_labels_path: [x.pkg.slp]}}\nmodel_config: {{}}\n\
                 trainer_config: {{act: '{act}', max_epochs: {epochs}, batches: {batches}}}\n"
            );
            std::fs::write(dir.package().join(format!("config{index}.yaml")), text).unwrap();
        }
        let spec = JobSpec { name: "trial".into(), trainer: None, configs: vec![], labels: None, attempt: 0 };
        let package = ManifestSummary { id: Hash([0; 32]), encoded_len: 0, files: 0, chunks: 0, bytes: 0 };
        let record = JobRecord {
            job,
            spec,
            package,
            state: JobState::Running,
            order: 1,
            owner: "0011".into(),
            submitted_at: 0,
            ended_at: None,
            fetched_at: None,
            message: String::new(),
            results: None,
        };
        dir.set_record(&record).unwrap();
        let sleap_nn = vec![exe().to_str().unwrap().to_owned(), "trainer".into()];
        Trial { _folder: folder, dir, settings: TrainerSettings { sleap_nn, grace_secs: 1, ..TrainerSettings::default() } }
    }

    async fn start(&self) -> RunnerHandle {
        runner::spawn(&exe(), &self.dir, &self.settings).await.unwrap()
    }

    /// An agent in a process of its own, with a runner; returned when the trainer is under way.
    async fn start_agent(&self) -> Child {
        std::fs::write(self.dir.root().join("settings.json"), serde_json::to_vec(&self.settings).unwrap()).unwrap();
        let agent = Process::new(exe()).arg("agent").arg(self.dir.root()).stdin(Stdio::null()).spawn().unwrap();
        let mut reader = JournalReader::from_seq(&self.dir.journal(), 1).unwrap();
        within(async {
            while !reader.read(100).unwrap().iter().any(|entry| matches!(entry.event, JobEvent::BatchEnded { .. })) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        agent
    }

    /// All entries; the seqs are 1, 2, 3, … whatever happened.
    fn entries(&self) -> Vec<JournalEntry> {
        let mut reader = JournalReader::from_seq(&self.dir.journal(), 1).unwrap();
        let mut entries = Vec::new();
        loop {
            let more = reader.read(1000).unwrap();
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        let seqs: Vec<_> = entries.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=entries.len() as u64).collect::<Vec<_>>());
        entries
    }

    fn events(&self) -> Vec<JobEvent> {
        self.entries().into_iter().map(|entry| entry.event).collect()
    }

    fn trainer(&self) -> Group {
        serde_json::from_slice(&std::fs::read(self.dir.trainer_pid()).unwrap()).unwrap()
    }

    fn runner(&self) -> Group {
        serde_json::from_slice(&std::fs::read(self.dir.runner_pid()).unwrap()).unwrap()
    }
}

impl Drop for Trial {
    /// A test that failed half way leaves nothing running.
    fn drop(&mut self) {
        for file in [self.dir.runner_pid(), self.dir.trainer_pid()] {
            let group = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Group>(&bytes).ok());
            for pid in group.map(|group| group.members()).unwrap_or_default() {
                kill(pid);
            }
        }
    }
}

fn kill(pid: i32) {
    let _ = Process::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

async fn end(handle: &RunnerHandle) -> Ended {
    match within(handle.ended()).await {
        End::Ended(ended) => ended,
        End::Lost => panic!("the runner was lost"),
    }
}

/// Waits until the trainer has trained a batch.
async fn under_way(trial: &Trial, handle: &RunnerHandle) {
    seen(trial, handle, |event| matches!(event, JobEvent::BatchEnded { .. })).await;
}

async fn seen(trial: &Trial, handle: &RunnerHandle, what: impl Fn(&JobEvent) -> bool) {
    let mut reader = JournalReader::from_seq(&trial.dir.journal(), 1).unwrap();
    let mut appended = handle.appended();
    within(async { while !reader.wait(&mut appended, 100).await.unwrap().iter().any(|entry| what(&entry.event)) {} }).await;
}

fn count(events: &[JobEvent], what: impl Fn(&JobEvent) -> bool) -> usize {
    events.iter().filter(|event| what(event)).count()
}

fn states(events: &[JobEvent], wanted: &str) -> Vec<CommandState> {
    let state = |event: &JobEvent| match event {
        JobEvent::CommandAdvanced { id, state, .. } if id.as_str() == wanted => Some(*state),
        _ => None,
    };
    events.iter().filter_map(state).collect()
}

#[tokio::test]
async fn a_job_of_two_steps_runs_to_its_end() {
    let trial = Trial::new(&["normal", "normal"]);
    let handle = trial.start().await;
    let ended = end(&handle).await;
    assert_eq!((ended.outcome, ended.message.as_str()), (Outcome::Completed, "all 2 steps are complete"));
    let events = trial.events();
    assert_eq!(ended.last_seq, events.len() as u64);
    assert_eq!(*handle.appended().borrow(), ended.last_seq);
    assert!(matches!(&events[0], JobEvent::JobStarted { trainer, steps } if trainer == "sleap-nn" && steps == &["config0", "config1"]));
    for step in 0..2 {
        let phases: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                JobEvent::PhaseEntered { step: s, phase } if *s == step => Some(*phase),
                _ => None,
            })
            .collect();
        assert_eq!(phases, [Phase::Starting, Phase::Training, Phase::Evaluating]);
        let batches = count(&events, |event| matches!(event, JobEvent::BatchEnded { step: s, .. } if *s == step));
        assert_eq!(batches, 6);
        assert!(trial.dir.results().join(format!("config{step}/best.ckpt")).is_file());
    }
    assert_eq!(count(&events, |event| matches!(event, JobEvent::Gap { .. } | JobEvent::Notice { .. })), 0, "{events:?}");
    assert_eq!(count(&events, |event| matches!(event, JobEvent::Log { line, .. } if line == "started")), 2);
    assert!(matches!(events.last(), Some(JobEvent::JobEnded { outcome: Outcome::Completed, .. })));
    assert!(!trial.dir.trainer_pid().exists() && !trial.dir.runner_sock().exists());
    assert!(matches!(runner::attach(&trial.dir).await.unwrap(), Attached::Ended(again) if again == ended));
    assert_eq!(runner::spawn(&exe(), &trial.dir, &trial.settings).await.err().unwrap().code, Code::WrongState);
}

#[tokio::test]
async fn a_stop_ends_the_whole_job_with_its_model() {
    let trial = Trial::new(&["for ever", "normal"]);
    let handle = trial.start().await;
    under_way(&trial, &handle).await;
    assert_eq!(handle.command("stop-1".parse().unwrap(), Command::Stop).await.unwrap().0, CommandState::Received);
    let ended = end(&handle).await;
    assert_eq!(ended.outcome, Outcome::Stopped, "{}", ended.message);
    let events = trial.events();
    assert_eq!(states(&events, "stop-1"), [CommandState::Received, CommandState::Applied, CommandState::Observed]);
    assert_eq!(count(&events, |event| matches!(event, JobEvent::StepStarted { .. })), 1);
    assert!(trial.dir.results().join("config0/best.ckpt").is_file());
    assert_eq!(handle.command("late".parse().unwrap(), Command::Stop).await.unwrap_err().code, Code::WrongState);
}

#[tokio::test]
async fn a_stop_before_the_trainer_listens_is_not_lost() {
    let trial = Trial::new(&["for ever"]);
    let handle = trial.start().await;
    assert_eq!(handle.command("early".parse().unwrap(), Command::Stop).await.unwrap().0, CommandState::Received);
    let ended = end(&handle).await;
    assert_eq!(ended.outcome, Outcome::Stopped, "{}", ended.message);
    assert_eq!(states(&trial.events(), "early").last(), Some(&CommandState::Observed));
}

#[tokio::test]
async fn a_cancel_kills_what_does_not_end() {
    let trial = Trial::new(&["ignore SIGTERM", "normal"]);
    let handle = trial.start().await;
    under_way(&trial, &handle).await;
    let group = trial.trainer();
    assert!(!group.members().is_empty());
    handle.command("c".parse().unwrap(), Command::Cancel).await.unwrap();
    // In the second that the trainer has for its end.
    assert_eq!(
        handle.command("c".parse().unwrap(), Command::Cancel).await.unwrap().0,
        CommandState::Applied,
        "known, and not applied again"
    );
    handle.command("s".parse().unwrap(), Command::Stop).await.unwrap();
    let ended = end(&handle).await;
    assert_eq!(ended.outcome, Outcome::Cancelled);
    assert_eq!(states(&trial.events(), "s"), [CommandState::Received, CommandState::Refused]);
    assert_eq!(group.members(), [] as [i32; 0]);
    let events = trial.events();
    assert_eq!(states(&events, "c"), [CommandState::Received, CommandState::Applied, CommandState::Observed]);
    assert_eq!(count(&events, |event| matches!(event, JobEvent::StepStarted { .. })), 1);
}

#[tokio::test]
async fn failures_say_what_to_do() {
    for (act, words) in [
        ("fail", vec!["exit code 1", "batch size", "Tried to allocate 2 GiB"]),
        ("exit at once", vec!["without having trained"]),
        ("NaN", vec!["every loss was NaN", "learning rate"]),
    ] {
        let trial = Trial::new(&[act, "normal"]);
        let ended = end(&trial.start().await).await;
        assert_eq!(ended.outcome, Outcome::Failed, "{act}");
        for word in words.into_iter().chain(["config0 (step 1 of 2)"]) {
            assert!(ended.message.contains(word), "{word:?} in {}", ended.message);
        }
        assert_eq!(count(&trial.events(), |event| matches!(event, JobEvent::StepStarted { .. })), 1, "{act}");
    }
}

#[tokio::test]
async fn a_trainer_that_is_not_there_and_a_package_without_a_job_are_failures_too() {
    let mut trial = Trial::new(&["normal"]);
    trial.settings.sleap_nn = vec!["no-such-trainer".into()];
    let ended = end(&trial.start().await).await;
    assert!(ended.message.contains("no-such-trainer was not found") && ended.message.contains("pip install sleap-nn"), "{}", ended.message);

    let trial = Trial::new(&[]);
    let ended = end(&trial.start().await).await;
    assert!(ended.message.contains("no training job was found"), "{}", ended.message);
    assert!(matches!(&trial.events()[..], [JobEvent::JobEnded { outcome: Outcome::Failed, .. }]));
}

#[tokio::test]
async fn a_flood_arrives_whole_and_in_order() {
    let trial = Trial::new(&["flood"]);
    let handle = trial.start().await;
    let ended = end(&handle).await;
    assert_eq!(ended.outcome, Outcome::Completed, "{}", ended.message);
    let batches: Vec<_> = trial
        .events()
        .into_iter()
        .filter_map(|event| match event {
            JobEvent::BatchEnded { batch, .. } => Some(batch),
            JobEvent::Gap { .. } => panic!("{event:?}"),
            _ => None,
        })
        .collect();
    assert_eq!(batches, (0..5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn garbage_changes_nothing() {
    let trial = Trial::new(&["garbage"]);
    let ended = end(&trial.start().await).await;
    assert_eq!(ended.outcome, Outcome::Completed, "{}", ended.message);
    let events = trial.events();
    assert_eq!(count(&events, |event| matches!(event, JobEvent::Notice { .. })), 1, "{events:?}");
    assert_eq!(count(&events, |event| matches!(event, JobEvent::Log { line, .. } if line == "END_OF_FILE")), 1);
    assert_eq!(count(&events, |event| matches!(event, JobEvent::BatchEnded { .. })), 6);
}

#[tokio::test]
async fn nothing_of_a_trainer_is_left_behind() {
    let trial = Trial::new(&["leave children"]);
    let ended = end(&trial.start().await).await;
    assert_eq!(ended.outcome, Outcome::Completed, "{}", ended.message);
    let events = trial.events();
    let notices = |word: &str| count(&events, |event| matches!(event, JobEvent::Notice { message } if message.contains(word)));
    assert_eq!((notices("left processes behind"), notices("had left the trainer's group")), (1, 1), "{events:?}");
    let session = trial.runner().session;
    let cwd = trial.dir.run().canonicalize().unwrap();
    let left: Vec<_> = running_in(&cwd);
    assert!(left.is_empty(), "session {session}: {left:?}");
}

/// The processes whose working directory this is.
fn running_in(folder: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let here = processes.filter(|process| std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == folder));
    here.map(|process| std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default()).collect()
}

#[tokio::test]
async fn an_agents_death_costs_nothing() {
    let trial = Trial::new(&["for ever"]);
    let mut agent = trial.start_agent().await;
    let (runner, trainer) = (trial.runner(), trial.trainer());
    let before = trial.entries().len();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let Attached::Running(handle) = runner::attach(&trial.dir).await.unwrap() else { panic!("the runner is gone") };
    assert_eq!(trial.trainer(), trainer);
    let mut reader = JournalReader::from_seq(&trial.dir.journal(), before as u64 + 1).unwrap();
    let mut appended = handle.appended();
    let mut next = before as u64 + 1;
    for _ in 0..20 {
        for entry in within(reader.wait(&mut appended, 100)).await.unwrap() {
            assert_eq!(entry.seq, next);
            next += 1;
        }
    }
    handle.command("s".parse().unwrap(), Command::Stop).await.unwrap();
    assert_eq!(end(&handle).await.outcome, Outcome::Stopped);
    assert_eq!(count(&trial.events(), |event| matches!(event, JobEvent::Gap { .. })), 0);
    within(async {
        while !runner.members().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_runners_death_is_a_definite_end_and_frees_the_machine() {
    let trial = Trial::new(&["ignore SIGTERM"]);
    let handle = trial.start().await;
    under_way(&trial, &handle).await;
    let (runner, trainer) = (trial.runner(), trial.trainer());
    assert_eq!(runner::settle_lost(&trial.dir, Duration::ZERO).await.unwrap_err().code, Code::WrongState);
    let killed = Instant::now();
    kill(runner.pgid);
    assert_eq!(within(handle.ended()).await, End::Lost);
    assert!(!trainer.members().is_empty());
    assert!(matches!(runner::attach(&trial.dir).await.unwrap(), Attached::Lost));
    let ended = runner::settle_lost(&trial.dir, Duration::from_secs(1)).await.unwrap();
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!((ended.outcome, trainer.members()), (Outcome::Failed, vec![]));
    assert!(ended.message.contains("was lost"), "{}", ended.message);
    assert_eq!(trial.events().last(), Some(&JobEvent::JobEnded { outcome: ended.outcome, message: ended.message.clone() }));
    assert_eq!(runner::settle_lost(&trial.dir, Duration::ZERO).await.unwrap(), ended, "once settled, it stays so");
    assert!(matches!(runner::attach(&trial.dir).await.unwrap(), Attached::Ended(_)));
}

#[tokio::test]
async fn the_machines_shutdown_ends_the_job_in_order() {
    let trial = Trial::new(&["for ever"]);
    let handle = trial.start().await;
    under_way(&trial, &handle).await;
    let trainer = trial.trainer();
    Process::new("kill").arg(trial.runner().pgid.to_string()).status().unwrap();
    let ended = end(&handle).await;
    assert_eq!(ended.outcome, Outcome::Failed);
    assert!(ended.message.contains("SIGTERM"), "{}", ended.message);
    assert_eq!(trainer.members(), [] as [i32; 0]);
}

#[tokio::test]
async fn an_operators_own_trainer_runs_and_can_be_cancelled_only() {
    let mut trial = Trial::new(&[]);
    let custom = r#"{"command": ["sh", "-c", "read x < \"$0\"; echo \"$x\"; echo $MINE; echo w > \"$1/model.pt\"; exec sleep 1002", "{config}", "{output}"],
                     "configs": "*.toml", "results": ["model.pt"]}"#;
    trial.settings.trainers = [("mine".to_owned(), serde_json::from_str(custom).unwrap())].into();
    std::fs::write(trial.dir.package().join("m.toml"), "rate = 1\n").unwrap();
    let handle = trial.start().await;
    seen(&trial, &handle, |event| matches!(event, JobEvent::Log { line, .. } if line == "rate = 1")).await;
    handle.command("s".parse().unwrap(), Command::Stop).await.unwrap();
    seen(&trial, &handle, |event| matches!(event, JobEvent::CommandAdvanced { state: CommandState::Refused, .. })).await;
    handle.command("c".parse().unwrap(), Command::Cancel).await.unwrap();
    assert_eq!(end(&handle).await.outcome, Outcome::Cancelled);
    assert!(trial.dir.results().join("m/model.pt").is_file());
}

/// From the trainer's send to an agent that has read the journal: no step of the way may wait for a clock.
#[tokio::test]
async fn progress_arrives_at_once() {
    let trial = Trial::new(&["for ever"]);
    let handle = trial.start().await;
    let mut reader = JournalReader::from_seq(&trial.dir.journal(), 1).unwrap();
    let mut appended = handle.appended();
    let mut delays = Vec::new();
    while delays.len() < 200 {
        for entry in within(reader.wait(&mut appended, 100)).await.unwrap() {
            if let JobEvent::BatchEnded { metrics, .. } = entry.event {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as f64;
                delays.push((now - metrics["sent_us"].0) / 1000.0);
            }
        }
    }
    handle.command("s".parse().unwrap(), Command::Stop).await.unwrap();
    end(&handle).await;
    delays.sort_by(f64::total_cmp);
    let (median, p95) = (delays[delays.len() / 2], delays[delays.len() * 95 / 100]);
    println!("trainer to agent: median {median:.2} ms, p95 {p95:.2} ms");
    assert!(median < 20.0, "median {median:.2} ms, p95 {p95:.2} ms");
}
