//! A process of one of our programs: its events as they come, its signals, its end.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;

/// How long anything that a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running program whose stdout is one JSON object a line.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Value>,
    log: PathBuf,
    /// Everything that it has said so far.
    pub(crate) events: Vec<Value>,
    /// How many of them have been waited for.
    seen: usize,
}

impl Program {
    /// Starts it; its log goes to a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let stderr = File::options().append(true).create(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = channel();
        // Read all along: a program whose events nobody reads stops at a full pipe.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("not an event ({error}): {line}"));
                if tx.send(event).is_err() {
                    return;
                }
            }
        });
        Program { child, lines, log: log.to_owned(), events: Vec::new(), seen: 0 }
    }

    /// The next event of this type, after those that were waited for before.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Value {
        self.wait_until(kind, |event| event["type"] == kind)
    }

    /// The next journal entry about this (`batch_ended`, …); gives the entry.
    pub(crate) fn wait_for_entry(&mut self, kind: &str) -> Value {
        self.wait_until(kind, |event| event["entry"]["event"]["event"] == kind)["entry"].clone()
    }

    /// The next event that is wanted.
    pub(crate) fn wait_until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.events.get(self.seen) {
                self.seen += 1;
                if wanted(event) {
                    return event.clone();
                }
            }
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) => self.events.push(event),
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("{what} did not come in time")),
                Err(RecvTimeoutError::Disconnected) => self.fail(&format!("it ended before {what}")),
            }
        }
    }

    /// What has come meanwhile counts as waited for: the next wait is for something new.
    pub(crate) fn skip_to_now(&mut self) {
        self.events.extend(self.lines.try_iter());
        self.seen = self.events.len();
    }

    /// Its exit code, once it has ended by itself and everything that it said is in `events`.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) => self.events.push(event),
                Err(RecvTimeoutError::Timeout) => self.fail("it did not end in time"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// Ends it in a way that it cannot notice, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Takes what a killed program had said before.
    pub(crate) fn drain(&mut self) {
        self.events.extend(self.lines.iter());
    }

    /// Sends it a signal by its name, such as `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// Stops it in the middle of whatever it does, until [`Program::go_on`]: when this returns, none of its threads runs any more, which a
    /// signal that was merely sent does not promise.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let pid = Pid::from_child(&self.child);
        // Without EXITED: a program that ends instead is left for `exit_code` to find.
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    }

    /// Ends a pause.
    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    /// The events of one type.
    pub(crate) fn all(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["type"] == kind).collect()
    }

    /// The journal as it was told: every entry once and in order from 1, `job_ended` the last. Gives the entries' kinds.
    pub(crate) fn whole_journal(&self) -> Vec<String> {
        let entries: Vec<&Value> = self.all("journal").into_iter().map(|event| &event["entry"]).collect();
        let seqs: Vec<u64> = entries.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=entries.len() as u64).collect::<Vec<_>>(), "every entry once and in order");
        let kinds: Vec<String> = entries.iter().map(|entry| entry["event"]["event"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds.last().map(String::as_str), Some("job_ended"), "{kinds:?}");
        assert!(!kinds.iter().any(|kind| kind == "gap"), "messages of the trainer were lost");
        kinds
    }

    fn fail(&self, why: &str) -> ! {
        let last: Vec<String> = self.events.iter().rev().take(5).rev().map(Value::to_string).collect();
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect();
        panic!("{why}; its last events:\n{}\nits log, {}:\n{}", last.join("\n"), self.log.display(), tail.join("\n"));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
