//! The package that a command sends: read and hashed while the connection to the worker is made.
//!
//! Whichever of the two fails first ends the other.

use std::{path::PathBuf, pin::pin, sync::Arc};

use shared::{
    domain::error::{Code, Failure},
    runtime::{
        files::{ScanCache, Source},
        link::Link,
        listing::Listing,
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Drive, Submission, pending_command};
use crate::{
    domain::{
        event::Event,
        order::{End, UserCommand},
        submission::{Package, PackageInput},
    },
    runtime::conversation::{Conversation, Incoming},
};

/// Bytes between two reports while a package is read.
const REPORT: u64 = 16 << 20;

/// A package that is being read; dropped, it is read no further.
pub(in crate::runtime) struct Reading {
    work: JoinHandle<Result<Submission, Failure>>,
    bytes: u64,
    _stop: DropGuard,
}

impl Reading {
    /// Opens a package, and begins to read and hash it; one that was read before and has not changed is not read again.
    ///
    /// # Errors
    /// What can be said of it before it is read.
    pub(in crate::runtime) async fn start(
        package: Package,
        again: bool,
        scans: PathBuf,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, Failure> {
        let Package { input, extra, spec, .. } = package;
        let cache = scans.clone();
        let opening = spawn_blocking(move || -> Result<Source, Failure> {
            let source = match input {
                PackageInput::Folder(path) => Source::folder(&path)?,
                PackageInput::Files(files) => Source::files(files)?,
                PackageInput::Zip(path) => Source::zip(&path)?,
            };
            let source = if extra.is_empty() { source } else { source.and(Source::files(extra)?)? };
            Ok(source.with_cache(ScanCache::new(cache)))
        });
        let source = Arc::new(opening.await.map_err(|error| died(&error))??);
        let (stop, bytes) = (CancellationToken::new(), source.bytes());
        let (events, cancel) = (events.clone(), stop.clone());
        let work = spawn_blocking(move || {
            let total = source.bytes();
            let mut told = 0;
            let mut progress = |bytes: u64| {
                // Not for every chunk: a slow terminal must not slow down the reading.
                if bytes - told >= REPORT || bytes == total {
                    told = bytes;
                    let _ = events.try_send(Event::Scanning { bytes, total });
                }
            };
            let listing = Arc::new(Listing::new(&source.scan(&mut progress, &cancel)?, &scans));
            Ok(Submission { source, listing, spec, again })
        });
        Ok(Reading { work, bytes, _stop: stop.drop_guard() })
    }
}

/// The package, once it has been read; for ever where none is being read. Cancel-safe.
async fn read(reading: &mut Option<Reading>) -> Result<Submission, Failure> {
    let Some(Reading { work, .. }) = reading else { return std::future::pending().await };
    let read = work.await.map_err(|error| died(&error)).flatten();
    *reading = None;
    read
}

fn died(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::Internal, format!("reading the package ended unexpectedly: {error}"))
}

impl Drive {
    /// The next link, while the package is read and the user is heard; `None`: the user has left.
    pub(super) async fn link(&mut self) -> Result<Option<Link>, Failure> {
        let Drive { connector, events, commands, pending, reading, submission, .. } = self;
        let mut linking = pin!(connector.link(events));
        loop {
            tokio::select! {
                biased;
                package = read(reading) => *submission = Some(package?),
                Some(command) = commands.recv() => match command {
                    UserCommand::Detach => return Ok(None),
                    other => pending.extend(pending_command(other)?),
                },
                link = &mut linking => return link.map(Some),
            }
        }
    }

    /// Waits until the package has been read, over a link that serves nothing else meanwhile.
    pub(super) async fn read_package(&mut self, talk: &mut Conversation) -> Result<Option<End>, Failure> {
        while self.reading.is_some() {
            tokio::select! {
                biased;
                package = read(&mut self.reading) => self.submission = Some(package?),
                Some(command) = self.commands.recv() => match command {
                    UserCommand::Detach => return self.detach().await.map(Some),
                    other => self.pending.extend(pending_command(other)?),
                },
                incoming = talk.next() => {
                    if let Incoming::Lost(failure) = incoming {
                        return Err(failure);
                    }
                }
                attention = self.connector.attend() => self.attend(attention, talk),
            }
        }
        Ok(None)
    }

    /// The length of the package that is to be sent, in bytes.
    pub(super) fn package_bytes(&self) -> u64 {
        let read = self.submission.as_ref().map(|submission| submission.listing.summary().bytes);
        read.or(self.reading.as_ref().map(|reading| reading.bytes)).unwrap_or(0)
    }

    /// Whether this command is about a package of ours.
    pub(super) fn submits(&self) -> bool {
        self.submission.is_some() || self.reading.is_some()
    }
}
