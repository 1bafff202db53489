//! The other processes of the runner's tests: the runner itself, an agent that can be killed, and a trainer that does what it is told.
//!
//! * `trial run-job DIR`: the runner, as the worker's hidden subcommand starts it
//! * `trial agent DIR`: starts the runner for a job and waits until it is killed
//! * `trial trainer train --config-name NAME --config-dir DIR`: speaks sleap-nn's messages; `trainer_config.act` says what it does

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use worker::{
    domain::{config, trainer::TrainerSettings},
    runtime::{runner, workspace::JobDir},
};
use zeromq::{Socket, SocketRecv, SocketSend, SubSocket, XPubSocket};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run-job", dir] => runner::run(Path::new(dir)).await,
        ["agent", dir] => agent(Path::new(dir)).await,
        ["trainer", "train", "--config-name", name, "--config-dir", dir] => Trainer::new(&Path::new(dir).join(name)).train().await,
        _ => panic!("not a call of this program: {words:?}"),
    }
}

async fn agent(dir: &Path) -> ExitCode {
    let exe = std::env::current_exe().expect("a program has a path");
    let settings: TrainerSettings = serde_json::from_slice(&std::fs::read(dir.join("settings.json")).unwrap()).unwrap();
    let _handle = runner::spawn(&exe, &JobDir::at(dir), &settings).await.unwrap();
    std::future::pending().await
}

struct Trainer {
    act: String,
    epochs: u64,
    batches: u64,
    folder: PathBuf,
    publish: u64,
    controller: u64,
    progress: XPubSocket,
    control: SubSocket,
}

impl Trainer {
    fn new(path: &Path) -> Self {
        let value = config::read_yaml("config", &std::fs::read(path).unwrap()).unwrap();
        let number = |key: &str| u64::from(value.at(key).and_then(config::Value::whole).unwrap_or(2));
        let text = |key: &str| value.at(key).and_then(config::Value::text).unwrap_or_default().to_owned();
        let labels = value.at("data_config.train_labels_path").unwrap().texts()[0].to_owned();
        assert_eq!(std::fs::read_to_string(labels).unwrap(), "labels");
        Trainer {
            act: text("trainer_config.act"),
            epochs: number("trainer_config.max_epochs"),
            batches: number("trainer_config.batches"),
            folder: Path::new(&text("trainer_config.ckpt_dir")).join(text("trainer_config.run_name")),
            publish: number("trainer_config.zmq.publish_port"),
            controller: number("trainer_config.zmq.controller_port"),
            progress: XPubSocket::new(),
            control: SubSocket::new(),
        }
    }

    async fn train(mut self) -> ExitCode {
        println!("starting\r\u{1b}[1mstarted\u{1b}[0m");
        match self.act.as_str() {
            "exit at once" => return ExitCode::SUCCESS,
            "fail" => {
                eprintln!("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB");
                return ExitCode::FAILURE;
            }
            "leave children" => self.leave_children(),
            "ignore SIGTERM" => {
                let mut ignored = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
                tokio::spawn(async move { while ignored.recv().await.is_some() {} });
            }
            _ => {}
        }
        self.connect().await;
        self.send(r#"{"what": "", "event": "train_begin", "logs": null, "wandb_url": null}"#).await;
        if self.act == "garbage" {
            for text in ["END_OF_FILE", "{", "[NaN]", r#"{"event": "x", "epoch": {"py/reduce": 1}}"#] {
                println!("{text}\nTRAIN_JOB_END::{{}}");
                self.send(text).await;
            }
        }
        self.epochs().await;
        self.send(r#"{"what": "", "event": "train_end", "logs": null}"#).await;
        std::fs::create_dir_all(&self.folder).unwrap();
        std::fs::write(self.folder.join("best.ckpt"), "weights").unwrap();
        std::fs::write(self.folder.join("training_config.yaml"), "a: 1").unwrap();
        ExitCode::SUCCESS
    }

    /// Processes in this group and in one of their own, which outlive the trainer and ignore SIGTERM.
    fn leave_children(&self) {
        for wrapper in [&["sh"][..], &["setsid", "sh"]] {
            let script = "trap '' TERM; sleep 1001; sleep 1001";
            let mut child = Command::new(wrapper[0]).args(&wrapper[1..]).args(["-c", script]).spawn().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "it outlives this process");
        }
    }

    async fn connect(&mut self) {
        self.control.connect(&format!("tcp://127.0.0.1:{}", self.controller)).await.unwrap();
        self.control.subscribe("").await.unwrap();
        self.progress.connect(&format!("tcp://127.0.0.1:{}", self.publish)).await.unwrap();
        assert_eq!(self.progress.recv().await.unwrap().get(0).unwrap().as_ref(), b"\x01", "the runner takes everything");
    }

    async fn send(&mut self, text: &str) {
        self.progress.send(text.to_owned().into()).await.unwrap();
    }

    async fn epochs(&mut self) {
        for epoch in 0..self.epochs {
            self.send(&format!(r#"{{"what": "", "event": "epoch_begin", "logs": null, "epoch": {epoch}}}"#)).await;
            let mut stopped = false;
            for batch in 0..self.batches {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
                let loss = if self.act == "NaN" { "NaN".to_owned() } else { format!("{}", 1.0 / (1 + epoch + batch) as f64) };
                self.send(&format!(r#"{{"what": "", "event": "batch_start", "logs": null, "batch": {batch}}}"#)).await;
                let logs = format!(r#"{{"loss": {loss}, "sent_us": {now}}}"#);
                self.send(&format!(r#"{{"what": "", "event": "batch_end", "logs": {logs}, "epoch": {epoch}, "batch": {batch}}}"#)).await;
                stopped = self.pause(batch).await;
                if stopped {
                    break;
                }
            }
            let loss = if self.act == "NaN" { "NaN" } else { "0.5" };
            let logs = format!(r#"{{"loss": {loss}, "val/loss": {loss}, "eval/val/distance": Infinity}}"#);
            self.send(&format!(r#"{{"what": "", "event": "epoch_end", "logs": {logs}, "epoch": {epoch}}}"#)).await;
            if stopped {
                return;
            }
        }
    }

    /// The time a batch takes; whether a stop came in it.
    async fn pause(&mut self, batch: u64) -> bool {
        let millis = match self.act.as_str() {
            // 5,000 messages a second: two a batch, five batches in two milliseconds.
            "flood" if batch.is_multiple_of(5) => 2,
            "flood" => return false,
            _ => 2,
        };
        match tokio::time::timeout(Duration::from_millis(millis), self.control.recv()).await {
            Ok(message) => {
                assert_eq!(message.unwrap().get(0).unwrap().as_ref(), br#"{"command": "stop"}"#);
                true
            }
            Err(_) => false,
        }
    }
}
