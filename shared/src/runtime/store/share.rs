//! Chunks that other owners have sent, for a sender that proves that it has them, too.
//!
//! What somebody with a manifest and no data can see is the same whether the chunks are here or not:
//! * whether a proof is asked for depends on whether there is *anything* of other owners, not on what it is; that others use the
//!   worker is no secret (its list of jobs says so)
//! * what is asked for, and what is needed after wrong tags, are the chunks that the owner's own data lacks
//! * each chunk is decided by its own tag alone: a wrong one changes nothing for the others
//! * for a chunk that is not here the same is computed over bytes that mean nothing. What is not evened out is the time to read a
//!   chunk from the disk.
//!
//! Who has the data learns that somebody has sent the same before, from what need not be sent. Bytes are copied, never linked, and
//! verified by their hash as well.

use std::{hint::black_box, io, path::Path, thread};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    PACKAGES, PARTIAL, log, names,
    packages::parse_id,
    partial::Partial,
    reuse::Wanted,
    slot::{FILES, LOG, read_file, read_manifest},
    verify::ChunkFiles,
};
use crate::{
    domain::{
        error::{Code, Failure},
        id::Secret,
        manifest::{Hash, MAX_CHUNK, Manifest},
        transfer::{ProofKey, Tag, WholeChunk},
    },
    runtime::{
        files::{failed, root::Root},
        listing::Listing,
    },
};

/// The most threads that read and compare.
const MAX_THREADS: usize = 8;

/// Of a chunk that no other owner has.
const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);

/// What a package may be completed from, beside its owner's data.
#[derive(Debug)]
pub(super) struct Others {
    /// The store.
    pub(super) store: Root,
    /// Whose package it is: this owner's folder is not looked at.
    pub(super) owner: String,
    /// What proofs are bound to.
    pub(super) session: Secret<[u8; 32]>,
}

impl Others {
    /// All other owners' folders of packages.
    fn folders(&self) -> io::Result<Vec<Root>> {
        let mut folders = Vec::new();
        for folder in [PACKAGES, PARTIAL] {
            for owner in names(&self.store.path().join(folder))?.into_iter().filter(|owner| *owner != self.owner) {
                folders.extend(self.store.subdir(format!("{folder}/{owner}")));
            }
        }
        Ok(folders)
    }
}

/// A package of another owner that has some of the chunks.
struct Holder {
    files: Root,
    listing: Listing,
}

/// Where other owners have the chunks that a package lacks.
pub struct Shared {
    session: Secret<[u8; 32]>,
    holders: Vec<Holder>,
    /// By chunk: which holder, and which chunk of it.
    found: Vec<(u32, u32)>,
}

impl Partial {
    /// What other owners have of it; `None`: nothing is shared here, or no other owner has anything.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the store cannot be listed.
    pub fn shared(&self) -> Result<Option<Shared>, Failure> {
        let Some(others) = self.others() else { return Ok(None) };
        let unusable = |error: io::Error| failed("list the store in", others.store.path().display(), &error);
        let mut anything = false;
        let found = vec![NOWHERE; self.layout().len() as usize];
        let mut shared = Shared { session: others.session.clone(), holders: Vec::new(), found };
        let wanted = Wanted::new(self)?;
        for folder in others.folders().map_err(unusable)? {
            for name in names(folder.path()).map_err(unusable)? {
                let Some(id) = parse_id(&name) else { continue };
                // One that is just being removed or cannot be read has nothing to offer.
                let Ok(home) = folder.subdir(&name) else { continue };
                if let Some(manifest) = read_manifest(&home, &id) {
                    anything = true;
                    shared.look(&home, &id, &manifest, &wanted, self.scratch());
                }
            }
        }
        Ok(anything.then_some(shared))
    }
}

impl Shared {
    /// What proofs are bound to.
    pub fn session(&self) -> &Secret<[u8; 32]> {
        &self.session
    }

    fn look(&mut self, home: &Root, id: &Hash, manifest: &Manifest, wanted: &Wanted, scratch: &Path) {
        let (Ok(Some(log)), Ok(files)) = (read_file(home, LOG, u64::MAX), home.subdir(FILES)) else { return };
        let there = log::replay(id, manifest.chunk_count(), &log);
        let holder = self.holders.len() as u32;
        let mut useful = false;
        for (at, (_, hash)) in (0u32..).zip(manifest.places()).filter(|(at, _)| there.contains(*at)) {
            for index in wanted.of(&hash) {
                let found = &mut self.found[index as usize];
                if *found == NOWHERE {
                    *found = (holder, at);
                    useful = true;
                }
            }
        }
        if useful {
            self.holders.push(Holder { files, listing: Listing::new(manifest, scratch) });
        }
    }

    /// Gives `partial` those of these chunks that are here and whose tags prove that their sender has them. They are durable, and
    /// present, afterwards.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::BadFile`] or [`Code::JobCancelled`]. A wrong tag is no error: its chunk has to be sent.
    pub fn take(&self, partial: &Partial, key: &ProofKey, tags: &[(u32, Tag)], stop: &CancellationToken) -> Result<(), Failure> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let part = tags.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            let parts = tags.chunks(part).map(|part| scope.spawn(move || self.take_part(partial, key, part, stop)));
            let parts: Vec<_> = parts.collect();
            let ended = |_| Err(Failure::new(Code::Internal, "a comparing thread ended unexpectedly"));
            let parts: Vec<_> = parts.into_iter().map(|part| part.join().unwrap_or_else(ended)).collect();
            parts.into_iter().collect::<Result<(), Failure>>()
        })?;
        partial.sync().map(drop)
    }

    fn take_part(&self, partial: &Partial, key: &ProofKey, tags: &[(u32, Tag)], stop: &CancellationToken) -> Result<(), Failure> {
        let mut files: Vec<Option<ChunkFiles>> = self.holders.iter().map(|_| None).collect();
        let decoy = vec![0; MAX_CHUNK as usize];
        for (index, tag) in tags {
            if stop.is_cancelled() {
                return Err(Failure::new(Code::JobCancelled, "interrupted while proofs were being checked"));
            }
            let Some(own) = partial.layout().get(*index) else { continue };
            match self.read(*index, own.len, &mut files) {
                Some(bytes) if key.proves(tag, bytes) => {
                    partial.write(&WholeChunk { index: *index, place: own, bytes: Bytes::copy_from_slice(bytes) })?;
                }
                Some(_) => {}
                None => {
                    let bytes = &decoy[..own.len as usize];
                    black_box((Hash::of(bytes), key.proves(tag, bytes)));
                }
            }
        }
        Ok(())
    }

    /// Another owner's copy of a chunk, verified.
    fn read<'f>(&self, index: u32, len: u32, files: &'f mut [Option<ChunkFiles>]) -> Option<&'f [u8]> {
        let &(holder, at) = self.found.get(index as usize).filter(|found| **found != NOWHERE)?;
        let Holder { files: root, listing } = self.holders.get(holder as usize)?;
        let place = listing.layout().get(at).filter(|place| place.len == len)?;
        let open = &mut files[holder as usize];
        if open.is_none() {
            *open = Some(ChunkFiles::new(root.subdir("").ok()?));
        }
        open.as_mut()?.read(&listing.heads()[place.entry].path, &place, &listing.hash(at).ok()?).ok()?
    }
}
