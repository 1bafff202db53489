//! Who is a job's runner: whoever holds the lock on `runner.lock`.
//!
//! The agent takes the lock before it starts the runner and hands the open file over as the runner's standard input: a lock belongs to the
//! open file, so there is no moment at which nobody holds it, and the kernel frees it when the runner ends, in whatever way.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
};

use rustix::fs::{FlockOperation, flock, fstat};
use shared::domain::error::{Code, Failure};

use crate::runtime::workspace::{JobDir, failure};

/// Takes the lock; `None`: a runner (or an agent that settles its end) has it.
pub(super) fn take(dir: &JobDir) -> Result<Option<File>, Failure> {
    let path = dir.runner_lock();
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open().map_err(|error| failure("open", &path, &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(None),
        Err(error) => Err(failure("lock", &path, &error.into())),
    }
}

/// In the runner: what keeps the lock as long as it lives. `None`: standard input does.
pub(super) fn held_by_runner(dir: &JobDir) -> Result<Option<File>, Failure> {
    if is_on_stdin(dir).unwrap_or(false) {
        return Ok(None);
    }
    match take(dir)? {
        Some(file) => Ok(Some(file)),
        None => Err(Failure::new(Code::WrongState, format!("another runner works on {}", dir.root().display()))),
    }
}

fn is_on_stdin(dir: &JobDir) -> io::Result<bool> {
    let lock = File::open(dir.runner_lock())?;
    let stdin = io::stdin();
    let (held, wanted) = (fstat(stdin.as_fd())?, fstat(&lock)?);
    // Our own lock is granted again; another's is not.
    Ok((held.st_dev, held.st_ino) == (wanted.st_dev, wanted.st_ino)
        && flock(stdin.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok())
}
