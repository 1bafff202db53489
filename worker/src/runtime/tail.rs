//! Follows the trainer's log file and tells its lines.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::now_ms;
use crate::domain::log::{Admission, LineCutter, RateLimit};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How much is read at once.
const WINDOW: usize = 64 * 1024;
/// When the trainer writes faster than we read, the part before this many bytes from the end is passed over.
const MAX_BEHIND: u64 = 4 * 1024 * 1024;
/// How many last lines are kept for the diagnosis.
const LAST_LINES: usize = 60;

/// Follows a file from its present end on.
pub struct Tail {
    path: PathBuf,
    offset: u64,
    cutter: LineCutter,
    limit: RateLimit,
    last: VecDeque<String>,
    lines: mpsc::Sender<String>,
}

impl Tail {
    /// A tail of this file, which need not exist yet; lines go to `lines`.
    pub fn new(path: &Path, lines: mpsc::Sender<String>) -> Self {
        let offset = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let (cutter, limit) = (LineCutter::default(), RateLimit::new(now_ms()));
        Tail { path: path.to_owned(), offset, cutter, limit, last: VecDeque::new(), lines }
    }

    /// Follows until told that nothing more comes, reads to the end, and gives the last lines, hidden ones included.
    pub async fn run(mut self, done: CancellationToken) -> Vec<String> {
        loop {
            // Asked before reading: what was written before the word is read after it.
            let last_round = done.is_cancelled();
            self.read_on().await;
            if last_round {
                break;
            }
            tokio::select! {
                () = done.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        if let Some(line) = self.cutter.finish() {
            self.tell(line).await;
        }
        if let Some(sentence) = self.limit.take_hidden() {
            let _ = self.lines.send(sentence).await;
        }
        self.last.into()
    }

    async fn read_on(&mut self) {
        let Ok(file) = File::open(&self.path) else { return };
        if let Ok(metadata) = file.metadata()
            && metadata.len().saturating_sub(self.offset) > MAX_BEHIND
        {
            let to = metadata.len() - MAX_BEHIND / 4;
            let _ = self.lines.send(format!("… {} bytes not shown, see trainer.log on the worker", to - self.offset)).await;
            self.offset = to;
        }
        let mut buffer = vec![0; WINDOW];
        let mut budget = MAX_BEHIND;
        while budget > 0 {
            let read = match file.read_at(&mut buffer, self.offset) {
                Ok(0) => return,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "the trainer's log cannot be read");
                    return;
                }
            };
            self.offset += read as u64;
            budget = budget.saturating_sub(read as u64);
            for line in self.cutter.push(&buffer[..read]) {
                self.tell(line).await;
            }
        }
    }

    async fn tell(&mut self, line: String) {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.clone());
        let before = match self.limit.admit(now_ms()) {
            Admission::Hidden => return,
            Admission::Shown => None,
            Admission::ShownAfter(sentence) => Some(sentence),
        };
        // A closed channel: nobody wants lines any more, and the last ones are kept all the same.
        for line in before.into_iter().chain([line]) {
            let _ = self.lines.send(line).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn lines_come_as_they_are_written_and_the_end_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "of an earlier step\n").unwrap();
        let (send, mut lines) = mpsc::channel(4);
        let done = CancellationToken::new();
        let tail = tokio::spawn(Tail::new(&path, send).run(done.clone()));
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines.recv().await.unwrap(), "one");
        file.write_all(b"o\nthree").unwrap();
        assert_eq!(lines.recv().await.unwrap(), "two");
        file.write_all(b"\rfour").unwrap();
        done.cancel();
        assert_eq!(lines.recv().await.unwrap(), "four");
        assert_eq!(tail.await.unwrap(), ["one", "two", "four"]);
    }

    #[tokio::test]
    async fn a_flood_is_passed_over_and_the_last_lines_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (send, mut lines) = mpsc::channel(4);
        let done = CancellationToken::new();
        let tail = tokio::spawn(Tail::new(&path, send).run(done.clone()));
        let text: String = (0..400_000).map(|n| format!("line number {n}\n")).collect();
        std::fs::write(&path, text).unwrap();
        done.cancel();
        let mut told = Vec::new();
        while let Some(line) = lines.recv().await {
            told.push(line);
        }
        assert!(told[0].ends_with("bytes not shown, see trainer.log on the worker"), "{}", told[0]);
        assert!(told.len() < 2000 && told.last().unwrap().contains("lines not shown"), "{} {:?}", told.len(), told.last());
        assert_eq!(tail.await.unwrap().last().unwrap(), "line number 399999");
    }
}
