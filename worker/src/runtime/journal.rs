//! A job's journal: everything that happened, in order, without a gap; append-only and checksummed.
//!
//! One record a line: `<checksum> <seq> <at_ms> <event as JSON>`, the checksum being the first 8 bytes of BLAKE3 of what follows it, as
//! hexadecimal digits.
//!
//! * a record that [`Journal::append`] has written survives a kill of every process; a power cut may cost what [`Journal::syncing`] has not
//!   yet brought to the disk (the runner does so twice a second)
//! * a torn end is cut off on opening; a damaged record in the middle is told as a notice under its own seq
//! * when the disk is full, small things are counted, important ones kept, and both written once there is space

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::domain::{
    error::Failure,
    job::{JobEvent, JournalEntry},
};
use tokio::sync::watch;

use super::workspace::failure;

/// The longest record, in bytes; whatever is longer is not one.
const MAX_RECORD: usize = 256 * 1024;
/// How much is read at once.
const WINDOW: usize = 64 * 1024;
/// How many important events wait for space.
const MAX_WAITING: usize = 1000;

/// The writing end; there is one for a journal.
pub struct Journal {
    path: PathBuf,
    medium: Box<dyn Medium>,
    /// The length of what is whole.
    len: u64,
    /// Bytes of a failed write may stand behind it.
    torn: bool,
    appended: watch::Sender<u64>,
    /// Events that could not be written and are gone.
    lost: u64,
    /// Events that could not be written and will be.
    waiting: VecDeque<(u64, JobEvent)>,
    dirty: bool,
}

/// What a journal is written to: a file; in tests, one that can be full.
trait Medium: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn cut(&mut self, len: u64) -> io::Result<()>;
    fn file(&self) -> Arc<File>;
}

impl Medium for Arc<File> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&mut &**self).write_all(bytes)
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
    fn file(&self) -> Arc<File> {
        self.clone()
    }
}

impl Journal {
    /// Opens a journal for appending, or begins one. A torn end is cut off.
    ///
    /// # Errors
    /// [`shared::domain::error::Code::BadFile`] or `NoSpace`.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let open = || -> io::Result<(File, Scan)> {
            let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
            let mut scan = Scan::default();
            while scan.step(&file, u64::MAX)?.is_some() {}
            file.set_len(scan.whole)?;
            if let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok((file, scan))
        };
        let (file, scan) = open().map_err(|error| failure("open", path, &error))?;
        Ok(Journal {
            path: path.to_owned(),
            medium: Box::new(Arc::new(file)),
            len: scan.whole,
            torn: false,
            appended: watch::Sender::new(scan.last_seq),
            lost: 0,
            waiting: VecDeque::new(),
            dirty: false,
        })
    }

    /// The seq of the last record; 0: there is none.
    pub fn last_seq(&self) -> u64 {
        *self.appended.borrow()
    }

    /// Tells the seq of the last record, whenever it has changed.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    /// Appends events with one write; gives the seq of the last record. Readers are told after it.
    ///
    /// The write goes to the page cache and is a matter of microseconds: no need for a thread of its own.
    ///
    /// # Errors
    /// When the disk takes no more. The events are then kept (or counted, see [`is_important`]) and written before the next ones.
    pub fn append(&mut self, at_ms: u64, events: impl IntoIterator<Item = JobEvent>) -> Result<u64, Failure> {
        let late = self.waiting.len() as u64 + self.lost;
        let notice = (late > 0).then(|| JobEvent::Notice {
            message: format!("the worker's disk was full: {} events are missing here, {} come late", self.lost, self.waiting.len()),
        });
        let notice = notice.map(|event| (at_ms, event)).into_iter().collect::<Vec<_>>();
        let fresh: Vec<_> = events.into_iter().map(|event| (at_ms, event)).collect();
        let mut seq = self.last_seq();
        let mut bytes = if self.torn { vec![b'\n'] } else { Vec::new() };
        for (at_ms, event) in notice.iter().chain(&self.waiting).chain(&fresh) {
            seq += 1;
            encode(&mut bytes, seq, *at_ms, event);
        }
        if seq == self.last_seq() {
            return Ok(seq);
        }
        if let Err(error) = self.medium.write(&bytes) {
            self.torn = self.medium.cut(self.len).is_err();
            self.keep(fresh);
            return Err(failure("write", &self.path, &error));
        }
        if std::mem::take(&mut self.torn) {
            // What the failed write left is in front of it. Not knowing the length, nothing may be cut off any more.
            self.len = self.medium.file().metadata().map_or(u64::MAX, |metadata| metadata.len());
        } else {
            self.len = self.len.saturating_add(bytes.len() as u64);
        }
        self.lost = 0;
        self.waiting.clear();
        self.dirty = true;
        self.appended.send_replace(seq);
        Ok(seq)
    }

    fn keep(&mut self, events: Vec<(u64, JobEvent)>) {
        for (at_ms, event) in events {
            let is_end = matches!(event, JobEvent::StepEnded { .. } | JobEvent::JobEnded { .. });
            if is_end || (is_important(&event) && self.waiting.len() < MAX_WAITING) {
                self.waiting.push_back((at_ms, event));
            } else {
                self.lost += 1;
            }
        }
    }

    /// What brings everything appended so far to the disk, if there is anything: for a thread that may block.
    pub fn syncing(&mut self) -> Option<impl FnOnce() -> io::Result<()> + Send + 'static> {
        let file = self.medium.file();
        std::mem::take(&mut self.dirty).then_some(move || file.sync_data())
    }
}

/// Whether an event must not be lost for lack of space: all but the many small ones.
pub fn is_important(event: &JobEvent) -> bool {
    !matches!(event, JobEvent::BatchEnded { .. } | JobEvent::Log { .. } | JobEvent::Gap { .. })
}

fn encode(out: &mut Vec<u8>, seq: u64, at_ms: u64, event: &JobEvent) {
    let json = serde_json::to_string(event).expect("an event has string keys only");
    let body = format!("{seq} {at_ms} {json}");
    out.extend(checksum(body.as_bytes()));
    out.push(b' ');
    out.extend(body.as_bytes());
    out.push(b'\n');
}

fn checksum(body: &[u8]) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let hash = blake3::hash(body);
    let mut text = [0; 16];
    for (index, byte) in hash.as_bytes()[..8].iter().enumerate() {
        text[2 * index] = DIGITS[usize::from(byte >> 4)];
        text[2 * index + 1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// The seq of the last whole record of a journal that somebody else may be writing; 0: there is none.
///
/// # Errors
/// [`shared::domain::error::Code::BadFile`].
pub fn last_seq(path: &Path) -> Result<u64, Failure> {
    let read = || -> io::Result<u64> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let (mut low, mut high, mut last) = (0, file.metadata()?.len(), 0);
        while high.saturating_sub(low) > WINDOW as u64 {
            let middle = low + (high - low) / 2;
            let mut scan = Scan::from(middle);
            match scan.step(&file, high)? {
                Some(record) => (low, last) = (scan.whole, record.seq),
                None => high = middle,
            }
        }
        let mut scan = Scan::from(low);
        while let Some(record) = scan.step(&file, u64::MAX)? {
            last = record.seq;
        }
        Ok(last)
    };
    read().map_err(|error| failure("read", path, &error))
}

/// A record whose checksum is right.
struct Record {
    seq: u64,
    at_ms: u64,
    json: String,
}

fn decode(line: &[u8]) -> Option<Record> {
    let (sum, body) = (line.get(..16)?, line.get(17..)?);
    if line[16] != b' ' || sum != checksum(body) {
        return None;
    }
    let mut parts = std::str::from_utf8(body).ok()?.splitn(3, ' ');
    let (seq, at_ms, json) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    Some(Record { seq, at_ms, json: json.to_owned() })
}

/// Walks over the whole records of a file from an offset on.
#[derive(Default)]
struct Scan {
    /// The end of the last whole record.
    whole: u64,
    last_seq: u64,
    /// Read, from `at - buffer.len()` on, and not yet used.
    buffer: Vec<u8>,
    used: usize,
    at: u64,
    /// In the middle of a line that is too long to be a record.
    skipping: bool,
}

impl Scan {
    fn from(offset: u64) -> Self {
        Scan { whole: offset, at: offset, ..Scan::default() }
    }

    /// The next record, whatever damaged lines are before it, if it begins before `end`.
    fn step(&mut self, file: &File, end: u64) -> io::Result<Option<Record>> {
        loop {
            let rest = &self.buffer[self.used..];
            let line_start = self.at - rest.len() as u64;
            if let Some(length) = rest.iter().position(|&byte| byte == b'\n') {
                if line_start >= end {
                    return Ok(None);
                }
                let record = if std::mem::take(&mut self.skipping) { None } else { decode(&rest[..length]) };
                self.used += length + 1;
                if let Some(record) = record {
                    self.whole = line_start + length as u64 + 1;
                    self.last_seq = record.seq;
                    return Ok(Some(record));
                }
            } else {
                if rest.len() > MAX_RECORD {
                    self.used = self.buffer.len();
                    self.skipping = true;
                }
                if !self.fill(file)? {
                    return Ok(None);
                }
            }
        }
    }

    fn fill(&mut self, file: &File) -> io::Result<bool> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        let old = self.buffer.len();
        self.buffer.resize(old + WINDOW, 0);
        let read = file.read_at(&mut self.buffer[old..], self.at);
        self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
        self.at += read? as u64;
        Ok(self.buffer.len() > old)
    }
}

/// A reading end; there can be many, in other processes, too, while the journal is being written.
pub struct JournalReader {
    path: PathBuf,
    file: Option<File>,
    /// The end of the last record given.
    offset: u64,
    next: u64,
}

impl JournalReader {
    /// A reader whose first entry is the one with this seq (1 is the first). The journal need not exist yet.
    ///
    /// # Errors
    /// [`shared::domain::error::Code::BadFile`].
    pub fn from_seq(path: &Path, seq: u64) -> Result<Self, Failure> {
        let mut reader = JournalReader { path: path.to_owned(), file: None, offset: 0, next: seq.max(1) };
        reader.open().and_then(|()| reader.seek()).map_err(|error| failure("read", path, &error))?;
        Ok(reader)
    }

    /// The seq of the next entry.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The entries that are there now, at most about `limit`; none: all have been read.
    ///
    /// # Errors
    /// [`shared::domain::error::Code::BadFile`].
    pub fn read(&mut self, limit: usize) -> Result<Vec<JournalEntry>, Failure> {
        self.open().and_then(|()| self.read_entries(limit)).map_err(|error| failure("read", &self.path, &error))
    }

    /// As [`JournalReader::read`], but waits until there is an entry. Empty: the writer is gone, and everything has been read.
    ///
    /// # Errors
    /// [`shared::domain::error::Code::BadFile`].
    pub async fn wait(&mut self, appended: &mut watch::Receiver<u64>, limit: usize) -> Result<Vec<JournalEntry>, Failure> {
        loop {
            let gone = appended.has_changed().is_err();
            appended.mark_unchanged();
            let entries = self.read(limit)?;
            if !entries.is_empty() || gone {
                return Ok(entries);
            }
            // An error means that the writer is gone: one more look, since it may have written before it went.
            let _ = appended.changed().await;
        }
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// Finds where to begin: records are in order, so halving works; reading starts at most some windows early.
    fn seek(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (mut low, mut high) = (0, file.metadata()?.len());
        while high.saturating_sub(low) > WINDOW as u64 {
            let middle = low + (high - low) / 2;
            let mut scan = Scan::from(middle);
            // The line that `middle` lies in is not whole from here: its checksum fails, and it is passed over.
            match scan.step(file, high)? {
                Some(record) if record.seq < self.next => low = scan.whole,
                _ => high = middle,
            }
        }
        self.offset = low;
        Ok(())
    }

    fn read_entries(&mut self, limit: usize) -> io::Result<Vec<JournalEntry>> {
        let mut entries = Vec::new();
        let Some(file) = &self.file else { return Ok(entries) };
        let mut scan = Scan::from(self.offset);
        while entries.len() < limit.max(1) {
            let Some(record) = scan.step(file, u64::MAX)? else { break };
            self.offset = scan.whole;
            let damaged = record.seq.saturating_sub(self.next).min(limit as u64 + 1000);
            for _ in 0..damaged {
                let event = JobEvent::Notice { message: "this entry of the worker's journal is damaged".into() };
                entries.push(JournalEntry { seq: self.next, at_ms: record.at_ms, event });
                self.next += 1;
            }
            if record.seq == self.next {
                let event = serde_json::from_str(&record.json).unwrap_or(JobEvent::Unknown);
                entries.push(JournalEntry { seq: record.seq, at_ms: record.at_ms, event });
                self.next += 1;
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
