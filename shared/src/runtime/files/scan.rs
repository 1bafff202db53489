//! A source → its manifest, on several cores.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::SystemTime,
};

use tokio_util::sync::CancellationToken;

use super::{
    Item, Origin, Source, Stamp,
    cut::{AVERAGE, Describer},
    failed,
};
use crate::domain::{
    error::{Code, Failure},
    manifest::{Chunk, Entry, MAX_MANIFEST, Manifest},
};

/// The most threads that read and hash.
const MAX_THREADS: usize = 8;
/// A long file is described in parts of so many bytes, by several threads at once. Nobody knows where a chunk begins before the chunks in front of it are
/// cut, so a part is cut as if one began where it does; from the first place on where the part before would cut, too, it is right. That is
/// half a megabyte on average.
const PART: u64 = if cfg!(test) { 2 << 20 } else { 32 << 20 };
/// Progress is told about so often, in bytes.
const TELL: u64 = 1 << 20;

/// A part of a file, or a whole one.
#[derive(Clone, Copy)]
struct Part {
    /// Which of the source's items.
    item: usize,
    /// Which of the item's parts.
    number: u32,
    from: u64,
    /// The first chunk that begins here, or later, belongs to the next part.
    until: u64,
}

impl Part {
    fn len(&self) -> u64 {
        self.until - self.from
    }
}

/// What the threads report.
enum Report {
    /// So many bytes more are described.
    Progress(u64),
    /// The chunks of a part, as if one began where it does.
    Described(Part, Vec<Chunk>),
    Failed(Failure),
}

/// What the threads share.
struct Work<'a> {
    source: &'a Source,
    /// The longest files first, each file's parts in order.
    parts: &'a [Part],
    next: AtomicUsize,
    failed: AtomicBool,
    cancel: &'a CancellationToken,
}

impl Work<'_> {
    /// Describes part after part, until none is left or the scan has ended early.
    fn run(&self, reports: &SyncSender<Report>) {
        let mut describer = Describer::new();
        while let Some(&part) = self.parts.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let described = self.describe(part, &mut describer, reports);
            if reports.send(described.map_or_else(Report::Failed, |chunks| Report::Described(part, chunks))).is_err() || self.ended() {
                return;
            }
        }
    }

    fn describe(&self, part: Part, describer: &mut Describer, reports: &SyncSender<Report>) -> Result<Vec<Chunk>, Failure> {
        let item = &self.source.items[part.item];
        let mut chunks = Vec::with_capacity(about(part.len()));
        let (mut position, mut told) = (0, 0);
        let mut each = |chunk: Chunk| {
            if self.ended() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            position += u64::from(chunk.len);
            chunks.push(chunk);
            // The last chunk may reach into the next part.
            let reached = position.min(part.len());
            if reached >= told + TELL || reached == part.len() {
                let more = reached - std::mem::replace(&mut told, reached);
                return reports.send(Report::Progress(more)).map_err(|_| io::ErrorKind::Interrupted.into());
            }
            Ok(())
        };
        let length = describe_part(item, part, describer, &mut each)?;
        let (end, last) = (part.from + length, part.until == item.size);
        if end < part.until || (last && end != item.size) {
            return Err(item.changed());
        }
        Ok(chunks)
    }

    fn ended(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }
}

/// Cuts a part of a file, or a zip's entry, and sees whether it is still what the source was made of.
fn describe_part(
    item: &Item,
    part: Part,
    describer: &mut Describer,
    each: &mut dyn FnMut(Chunk) -> io::Result<()>,
) -> Result<u64, Failure> {
    // Of the last part, everything: also what should not be there.
    let until = if part.until == item.size { u64::MAX } else { part.len() };
    if let Origin::Zipped(archive, index) = &item.origin {
        return describer.describe(&mut archive.read(*index), until, each).map_err(|error| unreadable(item, &error));
    }
    let mut file = open_at(item, part.from)?;
    soon_needed(&file, part);
    let length = describer.describe(&mut file, until, each).map_err(|error| unreadable(item, &error))?;
    if Stamp::of(&file.metadata().map_err(|error| unreadable(item, &error))?) != item.stamp {
        return Err(item.changed());
    }
    Ok(length)
}

fn open_at(item: &Item, from: u64) -> Result<File, Failure> {
    let open = || {
        let mut file = item.open_file()?;
        file.seek(SeekFrom::Start(from))?;
        Ok(file)
    };
    open().map_err(|error| unreadable(item, &error))
}

/// Several threads read parts of the same file: a disk with a head should read each part whole before it moves on.
fn soon_needed(file: &File, part: Part) {
    #[cfg(target_os = "linux")]
    if part.len() >= TELL {
        let advice = rustix::fs::Advice::WillNeed;
        if let Err(error) = rustix::fs::fadvise(file, part.from, std::num::NonZeroU64::new(part.len()), advice) {
            tracing::trace!(%error, "the file system takes no advice");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, part);
}

/// About how many chunks so many bytes have.
fn about(bytes: u64) -> usize {
    bytes.min(MAX_MANIFEST / 36 * AVERAGE as u64).div_ceil(AVERAGE as u64) as usize
}

fn unreadable(item: &Item, error: &io::Error) -> Failure {
    let mut failure = failed("read", &item.path, error);
    if error.kind() == io::ErrorKind::InvalidData {
        failure.code = Code::BadPackage;
    }
    failure
}

/// A file's chunks, as its parts come: nearly in order.
struct Joined {
    /// The file's length.
    size: u64,
    chunks: Vec<Chunk>,
    /// Where they end.
    end: u64,
    /// Parts that are in `chunks`: the first ones.
    parts: u32,
    /// Parts that have come before others that precede them.
    early: BTreeMap<u32, (Part, Vec<Chunk>)>,
}

impl Joined {
    /// Of a file of this size.
    fn new(size: u64) -> Joined {
        Joined { size, chunks: Vec::new(), end: 0, parts: 0, early: BTreeMap::new() }
    }

    /// Adds a part. `cut` says what chunk begins at a place: asked where a part's own chunks do not go on from those before.
    fn add(&mut self, part: Part, chunks: Vec<Chunk>, cut: &mut dyn FnMut(u64) -> Result<Chunk, Failure>) -> Result<(), Failure> {
        if part.len() == self.size {
            (self.chunks, self.end, self.parts) = (chunks, self.size, 1);
            return Ok(());
        }
        // All get their place at once: to move them as they grow would take twice the memory.
        self.chunks.reserve_exact(if self.chunks.is_empty() { about(self.size) } else { 0 });
        self.early.insert(part.number, (part, chunks));
        while let Some((part, chunks)) = self.early.remove(&self.parts) {
            self.join(part.from, chunks, cut)?;
            self.parts += 1;
        }
        Ok(())
    }

    fn join(&mut self, from: u64, chunks: Vec<Chunk>, cut: &mut dyn FnMut(u64) -> Result<Chunk, Failure>) -> Result<(), Failure> {
        let (mut begin, mut rest) = (from, chunks.into_iter());
        loop {
            while begin < self.end {
                let Some(chunk) = rest.next() else { return Ok(()) };
                begin += u64::from(chunk.len);
            }
            if begin == self.end {
                self.end += rest.as_slice().iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
                self.chunks.extend(rest);
                return Ok(());
            }
            let chunk = cut(self.end)?;
            self.end += u64::from(chunk.len);
            self.chunks.push(chunk);
        }
    }
}

/// Says what chunk begins where, of one file after the other.
struct Recut {
    describer: Describer,
    /// The file that was read last, open.
    open: Option<(usize, File)>,
}

impl Recut {
    fn cut(&mut self, source: &Source, at: usize, from: u64) -> Result<Chunk, Failure> {
        let item = &source.items[at];
        if self.open.as_ref().is_none_or(|(open, _)| *open != at) {
            self.open = Some((at, open_at(item, from)?));
        }
        let (_, file) = self.open.as_mut().expect("it was just opened");
        let mut found = None;
        let mut each = |chunk| {
            found = Some(chunk);
            Ok(())
        };
        let read = file.seek(SeekFrom::Start(from)).and_then(|_| self.describer.describe(&mut file.by_ref(), 1, &mut each));
        read.map_err(|error| unreadable(item, &error))?;
        found.ok_or_else(|| item.changed())
    }
}

impl Source {
    /// Cuts and hashes everything. `progress` hears how many bytes are done so far.
    ///
    /// # Errors
    /// [`Code::BadFile`] for what cannot be read or changes meanwhile, [`Code::BadPackage`] for a damaged zip or names that
    /// collide, [`Code::TooLarge`] for more than one transfer can carry, [`Code::JobCancelled`] when it was cancelled.
    pub fn scan(&self, progress: &mut dyn FnMut(u64), cancel: &CancellationToken) -> Result<Manifest, Failure> {
        let begun = SystemTime::now();
        let key = self.cache_key();
        let known = self.cache.as_ref().map(|cache| cache.load(&key)).unwrap_or_default();
        let described = self.describe_all(known, progress, cancel)?;
        if let Some(cache) = &self.cache {
            cache.save(&key, self.items.iter().zip(&described).map(|(item, chunks)| (item.stamp, &chunks[..])), begun);
        }
        let entries = self.items.iter().zip(described).map(|(item, chunks)| Entry {
            path: item.path.clone(),
            size: item.size,
            executable: item.executable,
            chunks,
        });
        let manifest = Manifest::new(entries.collect())?;
        if manifest.encoded_most() > MAX_MANIFEST {
            return Err(Failure::new(Code::TooLarge, "this is more than one transfer can carry; split it into several packages"));
        }
        Ok(manifest)
    }

    /// The chunks of all items: those of the cache at once, the others by several threads.
    fn describe_all(
        &self,
        known: HashMap<Stamp, Vec<Chunk>>,
        progress: &mut dyn FnMut(u64),
        cancel: &CancellationToken,
    ) -> Result<Vec<Vec<Chunk>>, Failure> {
        let mut all: Vec<Option<Vec<Chunk>>> = self.items.iter().map(|item| known.get(&item.stamp).cloned()).collect();
        drop(known);
        let mut done: u64 = all.iter().flatten().flatten().map(|chunk| u64::from(chunk.len)).sum();
        let mut todo: Vec<usize> = (0..all.len()).filter(|&at| all[at].is_none()).collect();
        todo.sort_by_key(|&at| std::cmp::Reverse(self.items[at].size));
        progress(done);

        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let parts: Vec<Part> = todo.iter().flat_map(|&at| self.parts(at, threads)).collect();
        let work = Work { source: self, parts: &parts, next: AtomicUsize::new(0), failed: AtomicBool::new(false), cancel };
        let mut failure = None;
        let mut joined: HashMap<usize, Joined> = HashMap::new();
        let mut recut = Recut { describer: Describer::new(), open: None };
        thread::scope(|scope| {
            let (reports, incoming) = sync_channel(256);
            for _ in 0..threads.min(parts.len()) {
                let (reports, work) = (reports.clone(), &work);
                scope.spawn(move || work.run(&reports));
            }
            drop(reports);
            for report in incoming {
                let added = match report {
                    Report::Progress(more) => {
                        done += more;
                        progress(done);
                        Ok(())
                    }
                    Report::Described(part, chunks) => {
                        let file = joined.entry(part.item).or_insert_with(|| Joined::new(self.items[part.item].size));
                        file.add(part, chunks, &mut |from| recut.cut(self, part.item, from))
                    }
                    Report::Failed(error) => Err(error),
                };
                if let Err(error) = added {
                    work.failed.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        });
        if cancel.is_cancelled() {
            return Err(Failure::new(Code::JobCancelled, "interrupted while the files were being read"));
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        for at in todo {
            all[at] = joined.remove(&at).map(|file| file.chunks);
        }
        Ok(all.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// An item as parts, of which so many threads take one after the other. A zip's entry has only one: it can be read from its beginning alone.
    fn parts(&self, at: usize, threads: usize) -> impl Iterator<Item = Part> + use<> {
        let item = &self.items[at];
        let whole = threads == 1 || matches!(item.origin, Origin::Zipped(..));
        let (size, part) = (item.size, if whole { u64::MAX } else { PART });
        let count = size.div_ceil(part).max(1);
        (0..count).map(move |number| Part {
            item: at,
            number: number as u32,
            from: number * part,
            until: size.min((number + 1).saturating_mul(part)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::manifest::Hash, runtime::files::noise};

    fn describe(bytes: &[u8], from: u64, until: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut each = |chunk| {
            chunks.push(chunk);
            Ok(())
        };
        Describer::new().describe(&mut &bytes[from as usize..], until - from, &mut each).unwrap();
        chunks
    }

    #[test]
    fn parts_are_joined_to_what_the_whole_would_be() {
        let zeros = [&noise(1, 99_999)[..], &vec![0; 6_000_000], &noise(2, 3_000_000)].concat();
        // Noise comes together again at once; what repeats at an odd distance, never.
        let period: Vec<u8> = noise(3, 70_001).into_iter().cycle().take(7_000_000).collect();
        for (name, bytes, most) in [("noise", noise(4, 20_000_000), 45), ("zeros", zeros, 60), ("period", period, 60)] {
            let size = bytes.len() as u64;
            let whole = describe(&bytes, 0, size);
            let mut asked = 0;
            let mut joined = Joined::new(size);
            let count = size.div_ceil(PART);
            // The last part comes first.
            for number in (0..count).rev() {
                let part = Part { item: 0, number: number as u32, from: number * PART, until: size.min((number + 1) * PART) };
                let mut cut = |from| {
                    asked += 1;
                    Ok(describe(&bytes, from, from + 1).remove(0))
                };
                joined.add(part, describe(&bytes, part.from, part.until), &mut cut).unwrap();
            }
            assert!(joined.chunks == whole && joined.end == size, "{name}");
            assert!((1..=most).contains(&asked), "{name}: {asked} of {} chunks were cut once more", whole.len());
        }
    }

    #[test]
    fn a_part_that_cannot_be_joined_fails() {
        let part = Part { item: 0, number: 0, from: 5, until: 9 };
        let mut refuse = |_| Err(Failure::new(Code::BadFile, "gone"));
        let chunk = Chunk { hash: Hash::of(b""), len: 4 };
        assert_eq!(Joined::new(9).add(part, vec![chunk], &mut refuse).unwrap_err().code, Code::BadFile);
    }
}
