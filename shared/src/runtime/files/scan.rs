//! A source → its manifest, on several cores.

use std::{
    collections::HashMap,
    io,
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
    cut::{Cutter, Described},
    failed,
};
use crate::domain::{
    error::{Code, Failure},
    manifest::{Entry, MAX_MANIFEST, Manifest},
};

/// The most files that are read at once.
const MAX_THREADS: usize = 8;

/// What the threads report.
enum Report {
    Bytes(u64),
    Done(usize, Result<Described, Failure>),
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
        let mut known = self.cache.as_ref().map(|cache| cache.load(&key)).unwrap_or_default();
        let described = self.describe_all(&known, progress, cancel)?;
        if let Some(cache) = &self.cache {
            known = self.items.iter().zip(&described).map(|(item, described)| (item.stamp, described.clone())).collect();
            cache.save(&key, &known, begun);
        }
        let entries = self.items.iter().zip(described).map(|(item, described)| Entry {
            path: item.path.clone(),
            size: described.size,
            executable: item.executable,
            root: described.root,
            chunks: described.chunks,
        });
        let manifest = Manifest::new(entries.collect())?;
        // The most that a file and a chunk take in the encoding.
        let names: usize = manifest.entries.iter().map(|entry| entry.path.as_str().len() + 64).sum();
        if u64::from(manifest.chunk_count()) * 36 + names as u64 > MAX_MANIFEST {
            return Err(Failure::new(Code::TooLarge, "this is more than one transfer can carry; split it into several packages"));
        }
        Ok(manifest)
    }

    /// Describes all items: those of the cache at once, the others on several threads, the longest first.
    fn describe_all(
        &self,
        known: &HashMap<Stamp, Described>,
        progress: &mut dyn FnMut(u64),
        cancel: &CancellationToken,
    ) -> Result<Vec<Described>, Failure> {
        let mut all: Vec<Option<Described>> = self.items.iter().map(|item| known.get(&item.stamp).cloned()).collect();
        let mut done: u64 = all.iter().flatten().map(|described| described.size).sum();
        let mut todo: Vec<usize> = (0..all.len()).filter(|&at| all[at].is_none()).collect();
        todo.sort_by_key(|&at| std::cmp::Reverse(self.items[at].size));
        progress(done);

        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut failure = None;
        thread::scope(|scope| {
            let (reports, incoming) = sync_channel(256);
            let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(todo.len());
            for _ in 0..threads {
                let (reports, next, stop, todo) = (reports.clone(), &next, &stop, &todo);
                scope.spawn(move || {
                    let mut cutter = Cutter::default();
                    while let Some(&at) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ended = || stop.load(Ordering::Relaxed) || cancel.is_cancelled();
                        let described = describe(&self.items[at], &mut cutter, &reports, &ended);
                        if reports.send(Report::Done(at, described)).is_err() || ended() {
                            break;
                        }
                    }
                });
            }
            drop(reports);
            for report in incoming {
                match report {
                    Report::Bytes(bytes) => {
                        done += bytes;
                        progress(done);
                    }
                    Report::Done(at, Ok(described)) => all[at] = Some(described),
                    Report::Done(_, Err(error)) => {
                        stop.store(true, Ordering::Relaxed);
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
        Ok(all.into_iter().map(|described| described.expect("every item was described or the scan has failed")).collect())
    }
}

fn describe(item: &Item, cutter: &mut Cutter, reports: &SyncSender<Report>, ended: &dyn Fn() -> bool) -> Result<Described, Failure> {
    let mut each = |len: u32| {
        if ended() || reports.send(Report::Bytes(u64::from(len))).is_err() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    };
    let unreadable = |error: io::Error| {
        let mut failure = failed("read", &item.path, &error);
        if error.kind() == io::ErrorKind::InvalidData {
            failure.code = Code::BadPackage;
        }
        failure
    };
    if let Origin::Zipped(archive, index) = &item.origin {
        return cutter.describe(&mut archive.read(*index), &mut each).map_err(unreadable);
    }
    let mut file = item.open_file().map_err(unreadable)?;
    let described = cutter.describe(&mut file, &mut each).map_err(unreadable)?;
    let now = file.metadata().map_err(unreadable)?;
    if described.size != item.size || Stamp::of(&now) != item.stamp {
        return Err(item.changed());
    }
    Ok(described)
}
