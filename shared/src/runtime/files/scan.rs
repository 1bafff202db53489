//! A source → its manifest, on several cores.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::SystemTime,
};

use tokio_util::sync::CancellationToken;

use super::{
    Item, Origin, Source, Stamp,
    cut::{AVERAGE, Block, cut_blocks},
    failed,
};
use crate::domain::{
    error::{Code, Failure},
    manifest::{Chunk, Entry, MAX_MANIFEST, Manifest},
};

/// The most threads that read and hash.
const MAX_THREADS: usize = 8;

/// What the threads report.
enum Report {
    /// The chunks of a file's block of this number.
    Hashed(usize, u32, Vec<Chunk>),
    Failed(Failure),
}

/// What the threads share: each hashes blocks while there are any, else cuts the next file into blocks.
struct Work<'a> {
    source: &'a Source,
    /// The files to cut, the longest first.
    todo: &'a [usize],
    room: usize,
    shared: Mutex<Shared>,
    changed: Condvar,
    failed: AtomicBool,
    cancel: &'a CancellationToken,
}

#[derive(Default)]
struct Shared {
    /// Where in `todo` the next file is.
    next: usize,
    /// How many threads are cutting.
    cutting: usize,
    /// Of a file, its block of this number: cut, to be hashed.
    blocks: VecDeque<(usize, u32, Block)>,
    /// Blocks to be used again.
    spare: Vec<Block>,
}

enum Task {
    Hash(usize, u32, Block),
    Cut(usize, Block),
}

impl Work<'_> {
    fn run(&self, reports: &SyncSender<Report>) {
        while let Some(task) = self.next() {
            let reported = match task {
                Task::Hash(at, number, block) => self.hash(at, number, block, reports).map(|block| self.lock().spare.push(block)).is_ok(),
                Task::Cut(at, block) => {
                    let cut = self.cut(at, block, reports);
                    self.lock().cutting -= 1;
                    self.changed.notify_all();
                    cut.is_ok() || cut.is_err_and(|failure| reports.send(Report::Failed(failure)).is_ok())
                }
            };
            if !reported {
                self.stop();
            }
        }
    }

    /// What to do next; `None`: nothing is left, or the scan has ended early.
    fn next(&self) -> Option<Task> {
        let mut shared = self.lock();
        loop {
            if self.ended() {
                return None;
            }
            if let Some((at, number, block)) = shared.blocks.pop_front() {
                return Some(Task::Hash(at, number, block));
            }
            if let Some(&at) = self.todo.get(shared.next) {
                shared.next += 1;
                shared.cutting += 1;
                let block = shared.spare.pop().unwrap_or_default();
                return Some(Task::Cut(at, block));
            }
            if shared.cutting == 0 {
                return None;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn hash(&self, at: usize, number: u32, block: Block, reports: &SyncSender<Report>) -> Result<Block, io::Error> {
        let hashed = Report::Hashed(at, number, block.hash());
        reports.send(hashed).map_err(|_| io::ErrorKind::Interrupted)?;
        Ok(block)
    }

    /// Cuts a file. Its blocks go to the threads that are free; where none is, they are hashed here.
    fn cut(&self, at: usize, block: Block, reports: &SyncSender<Report>) -> Result<(), Failure> {
        let item = &self.source.items[at];
        let mut number = 0;
        let mut each = |block: Block| {
            if self.ended() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            number += 1;
            let mut shared = self.lock();
            if shared.blocks.len() < self.room {
                shared.blocks.push_back((at, number, block));
                let spare = shared.spare.pop().unwrap_or_default();
                drop(shared);
                self.changed.notify_one();
                return Ok(spare);
            }
            drop(shared);
            self.hash(at, number, block, reports)
        };
        let size = cut_item(item, block, &mut each)?;
        if size != item.size {
            return Err(item.changed());
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    fn stop(&self) {
        self.failed.store(true, Ordering::Relaxed);
        let _shared = self.lock();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file's chunks, as its blocks come: nearly in order.
struct Joined {
    chunks: Vec<Chunk>,
    /// Blocks that are in `chunks`: the first ones.
    blocks: u32,
    /// Blocks that have come before others that precede them.
    early: BTreeMap<u32, Vec<Chunk>>,
}

impl Joined {
    /// Of a file of this size, whose chunks get their place at once: to move them as they grow would take twice the memory.
    fn new(size: u64) -> Joined {
        let about = size.min(MAX_MANIFEST / 36 * AVERAGE as u64).div_ceil(AVERAGE as u64);
        Joined { chunks: Vec::with_capacity(about as usize), blocks: 0, early: BTreeMap::new() }
    }

    /// Adds the block of this number, of which the first is 1.
    fn add(&mut self, number: u32, chunks: Vec<Chunk>) {
        self.early.insert(number, chunks);
        while let Some(next) = self.early.remove(&(self.blocks + 1)) {
            self.chunks.extend(next);
            self.blocks += 1;
        }
    }
}

/// Cuts a file or a zip's entry, and sees whether it is still what the source was made of.
fn cut_item(item: &Item, block: Block, each: &mut dyn FnMut(Block) -> io::Result<Block>) -> Result<u64, Failure> {
    let unreadable = |error: io::Error| {
        let mut failure = failed("read", &item.path, &error);
        if error.kind() == io::ErrorKind::InvalidData {
            failure.code = Code::BadPackage;
        }
        failure
    };
    if let Origin::Zipped(archive, index) = &item.origin {
        return cut_blocks(&mut archive.read(*index), block, each).map_err(unreadable);
    }
    let mut file = item.open_file().map_err(unreadable)?;
    let size = cut_blocks(&mut file, block, each).map_err(unreadable)?;
    let now = file.metadata().map_err(unreadable)?;
    if Stamp::of(&now) != item.stamp {
        return Err(item.changed());
    }
    Ok(size)
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

        let cores = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (shared, changed, failed) = Default::default();
        let work = Work { source: self, todo: &todo, room: cores - 1, shared, changed, failed, cancel };
        let mut failure = None;
        let mut joined: HashMap<usize, Joined> = HashMap::new();
        thread::scope(|scope| {
            let (reports, incoming) = sync_channel(256);
            // One file keeps two threads busy: one cuts, one hashes.
            for _ in 0..cores.min(todo.len() * 2) {
                let (reports, work) = (reports.clone(), &work);
                scope.spawn(move || work.run(&reports));
            }
            drop(reports);
            for report in incoming {
                match report {
                    Report::Hashed(at, number, chunks) => {
                        done += chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
                        joined.entry(at).or_insert_with(|| Joined::new(self.items[at].size)).add(number, chunks);
                        progress(done);
                        if cancel.is_cancelled() {
                            work.stop();
                        }
                    }
                    Report::Failed(error) => {
                        work.stop();
                        failure.get_or_insert(error);
                    }
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
}
