use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use shared::domain::job::{Metric, Outcome};

use super::*;

fn log(n: u64) -> JobEvent {
    JobEvent::Log { step: 0, line: format!("line {n}") }
}

fn batch(n: u32) -> JobEvent {
    JobEvent::BatchEnded { step: 0, epoch: Some(0), batch: n, metrics: [("loss".to_owned(), Metric(f64::NAN))].into() }
}

fn journal() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    (folder, path)
}

fn all(path: &Path, from: u64) -> Vec<JournalEntry> {
    let mut reader = JournalReader::from_seq(path, from).unwrap();
    let mut entries = Vec::new();
    loop {
        let more = reader.read(100).unwrap();
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

fn seqs(entries: &[JournalEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}

#[test]
fn what_is_appended_is_read_from_any_seq() {
    let (_folder, path) = journal();
    assert_eq!(all(&path, 1), [], "a journal that is not there yet is empty");
    let mut journal = Journal::open(&path).unwrap();
    for n in 0..5000 {
        let text = "é\"\\".repeat(n % 40);
        journal.append(n as u64, [JobEvent::Log { step: 1, line: text }, batch(n as u32)]).unwrap();
    }
    assert_eq!(journal.last_seq(), 10_000);
    for from in [1, 2, 17, 4999, 5000, 9999, 10_000, 10_001, 20_000] {
        let entries = all(&path, from);
        assert_eq!(seqs(&entries), (from..=10_000).collect::<Vec<_>>(), "from {from}");
    }
    let entry = &all(&path, 9999)[0];
    assert_eq!((entry.at_ms, &entry.event), (4999, &JobEvent::Log { step: 1, line: "é\"\\".repeat(4999 % 40) }));
}

#[test]
fn seqs_go_on_after_opening_again() {
    let (_folder, path) = journal();
    Journal::open(&path).unwrap().append(0, [log(1), log(2)]).unwrap();
    assert_eq!(Journal::open(&path).unwrap().append(0, [log(3)]).unwrap(), 3);
    assert_eq!(all(&path, 1).iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), [log(1), log(2), log(3)]);
}

#[tokio::test]
async fn a_reader_waits_for_what_comes_and_ends_with_the_writer() {
    let (_folder, path) = journal();
    let mut journal = Journal::open(&path).unwrap();
    let mut appended = journal.appended();
    let mut reader = JournalReader::from_seq(&path, 2).unwrap();
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        loop {
            let entries = reader.wait(&mut appended, 10).await.unwrap();
            if entries.is_empty() {
                return got;
            }
            got.extend(seqs(&entries));
        }
    });
    for n in 0..50 {
        journal.append(0, [log(n)]).unwrap();
        tokio::task::yield_now().await;
    }
    drop(journal);
    assert_eq!(reading.await.unwrap(), (2..=50).collect::<Vec<_>>());
}

/// Every way in which the file can end after a kill in the middle of a write.
#[test]
fn a_torn_end_is_cut_off() {
    let (_folder, path) = journal();
    let mut journal = Journal::open(&path).unwrap();
    journal.append(0, [log(1), log(2)]).unwrap();
    let whole = std::fs::metadata(&path).unwrap().len() as usize;
    journal.append(0, [log(3)]).unwrap();
    drop(journal);
    let bytes = std::fs::read(&path).unwrap();
    for end in whole..=bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let mut reader = JournalReader::from_seq(&path, 1).unwrap();
        let before = seqs(&reader.read(10).unwrap());
        let expected = if end == bytes.len() { 3 } else { 2 };
        assert_eq!(before, (1..=expected).collect::<Vec<_>>(), "cut at {end}");
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.append(0, [log(9)]).unwrap(), expected + 1);
        let after = reader.read(10).unwrap();
        assert_eq!((after.len(), &after[0].event), (1, &log(9)), "a reader from before sees it, too");
    }
}

#[test]
fn a_damaged_record_is_told_under_its_own_seq() {
    let (_folder, path) = journal();
    let mut journal = Journal::open(&path).unwrap();
    journal.append(0, (1..=6).map(log)).unwrap();
    drop(journal);
    let mut bytes = std::fs::read(&path).unwrap();
    let ends: Vec<_> = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    bytes[ends[1] + 30] ^= 1; // the third record
    bytes[ends[3]] = b' '; // the fourth and the fifth become one line
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Journal::open(&path).unwrap().last_seq(), 6);
    let entries = all(&path, 1);
    assert_eq!(seqs(&entries), [1, 2, 3, 4, 5, 6]);
    let damaged: Vec<_> = entries.iter().filter(|entry| matches!(entry.event, JobEvent::Notice { .. })).map(|entry| entry.seq).collect();
    assert_eq!(damaged, [3, 4, 5]);
    assert_eq!(seqs(&all(&path, 4)), [4, 5, 6]);
}

/// A file on a disk with so many bytes left, which can be cut back or not.
struct Tight {
    file: Arc<File>,
    left: Arc<AtomicU64>,
    cuts: Arc<AtomicBool>,
}

impl Medium for Tight {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fits = (bytes.len() as u64).min(self.left.load(Ordering::Relaxed));
        Medium::write(&mut self.file, &bytes[..fits as usize])?;
        self.left.fetch_sub(fits, Ordering::Relaxed);
        if fits < bytes.len() as u64 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        if self.cuts.load(Ordering::Relaxed) { self.file.set_len(len) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
    fn file(&self) -> Arc<File> {
        self.file.clone()
    }
}

#[test]
fn a_full_disk_costs_small_events_only_and_says_so() {
    for cuts in [true, false] {
        let (_folder, path) = journal();
        let mut journal = Journal::open(&path).unwrap();
        let (left, cuts) = (Arc::new(AtomicU64::new(300)), Arc::new(AtomicBool::new(cuts)));
        journal.medium = Box::new(Tight { file: journal.medium.file(), left: left.clone(), cuts: cuts.clone() });
        let end = JobEvent::JobEnded { outcome: Outcome::Completed, message: "done".into() };
        let written = (0..100).take_while(|&n| journal.append(0, [batch(n)]).is_ok()).count() as u64;
        assert!((1..10).contains(&written), "{written}");
        let failure = journal.append(0, [batch(101), end.clone()]).unwrap_err();
        assert_eq!(failure.code, shared::domain::error::Code::NoSpace);
        assert_eq!(journal.last_seq(), written);
        left.store(100_000, Ordering::Relaxed);
        journal.append(0, [log(1)]).unwrap();
        let late: Vec<_> = all(&path, written + 1).into_iter().map(|entry| entry.event).collect();
        let JobEvent::Notice { message } = &late[0] else { panic!("{late:?}") };
        assert!(message.contains("2 events are missing") && message.contains("1 come late"), "{message}");
        assert_eq!(late[1..], [end, log(1)]);
        assert_eq!(seqs(&all(&path, 1)), (1..=written + 3).collect::<Vec<_>>());
        // Full once more: what is cut off now is the failed write and nothing else.
        cuts.store(true, Ordering::Relaxed);
        left.store(10, Ordering::Relaxed);
        journal.append(0, [log(2)]).unwrap_err();
        left.store(100_000, Ordering::Relaxed);
        journal.append(0, [log(3)]).unwrap();
        assert_eq!(seqs(&all(&path, 1)), (1..=written + 5).collect::<Vec<_>>());
        assert_eq!(Journal::open(&path).unwrap().last_seq(), written + 5);
    }
}

#[test]
fn an_end_is_kept_however_long_the_disk_is_full() {
    let (_folder, path) = journal();
    let mut journal = Journal::open(&path).unwrap();
    let left = Arc::new(AtomicU64::new(0));
    journal.medium = Box::new(Tight { file: journal.medium.file(), left: left.clone(), cuts: Arc::new(AtomicBool::new(true)) });
    let notice = JobEvent::Notice { message: "n".into() };
    journal.append(0, vec![notice; MAX_WAITING + 5]).unwrap_err();
    let end = JobEvent::JobEnded { outcome: Outcome::Failed, message: "m".into() };
    journal.append(0, [end.clone()]).unwrap_err();
    left.store(1_000_000, Ordering::Relaxed);
    journal.append(0, []).unwrap();
    let entries = all(&path, 1);
    assert_eq!((entries.len(), &entries.last().unwrap().event), (MAX_WAITING + 2, &end));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_opened_and_read(bytes in proptest::collection::vec(any::<u8>(), 0..400), newlines in proptest::collection::vec(0usize..400, 0..10)) {
        let (_folder, path) = journal();
        let mut bytes = bytes;
        for at in newlines {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = b'\n';
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        prop_assert_eq!(all(&path, 1), []);
        let mut journal = Journal::open(&path).unwrap();
        prop_assert_eq!(journal.append(0, [log(1)]).unwrap(), 1);
        prop_assert_eq!(seqs(&all(&path, 1)), [1]);
    }

    #[test]
    fn whatever_is_damaged_seqs_stay_gap_free(count in 1u64..40, hits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6), from in 1u64..45) {
        let (_folder, path) = journal();
        Journal::open(&path).unwrap().append(0, (0..count).map(log)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in hits {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        std::fs::write(&path, &bytes).unwrap();
        let entries = all(&path, from);
        let last = entries.last().map_or(from - 1, |entry| entry.seq);
        prop_assert_eq!(seqs(&entries), (from..=last).collect::<Vec<_>>());
        let mut journal = Journal::open(&path).unwrap();
        let next = journal.append(0, [log(99)]).unwrap();
        prop_assert_eq!(all(&path, next).len(), 1);
    }
}

#[test]
fn the_last_seq_is_found_while_somebody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    assert_eq!(last_seq(&path).unwrap(), 0);
    let mut journal = Journal::open(&path).unwrap();
    for seq in 1..=3000 {
        journal.append(0, [JobEvent::Notice { message: format!("{seq} {}", "x".repeat(100)) }]).unwrap();
        if seq % 500 == 1 {
            assert_eq!(last_seq(&path).unwrap(), seq);
        }
    }
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"torn").unwrap();
    assert_eq!(last_seq(&path).unwrap(), 3000);
}
