//! A directory that no name can lead out of.
//!
//! Everything below it is opened relative to its descriptor. On Linux the kernel resolves the whole path and refuses `..`,
//! absolute paths and symbolic links (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`), also when somebody swaps a
//! folder for a link in between. Elsewhere, and where a sandbox forbids `openat2`, the path is walked name by name with
//! `O_NOFOLLOW`, which refuses the same.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, Stat, StatVfs};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens a directory that the user or the configuration named; links in *its* path are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        Ok(Root { fd: fs::open(path, FOLDER, Mode::empty())?, path: path.to_owned() })
    }

    /// Where it was when it was opened; for messages and for handing on, not for opening what is below.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory below it.
    pub(crate) fn subdir(&self, rel: impl AsRef<Path>) -> io::Result<Root> {
        let rel = rel.as_ref();
        Ok(Root { fd: self.open_below(rel, FOLDER, Mode::empty())?, path: self.path.join(rel) })
    }

    /// A directory below it, made with its parents where it is missing. The names that were made are not durable yet.
    pub(crate) fn make_dirs(&self, rel: impl AsRef<Path>) -> io::Result<Root> {
        let mut made = Root { fd: self.fd.try_clone()?, path: self.path.clone() };
        for name in plain_names(rel.as_ref())? {
            match fs::mkdirat(&made.fd, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            made.fd = fs::openat(&made.fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
            made.path.push(name);
        }
        Ok(made)
    }

    /// A file below it, for reading. A device or pipe opens without waiting; the caller looks what it got.
    pub(crate) fn open_file(&self, rel: impl AsRef<Path>) -> io::Result<File> {
        Ok(self.open_below(rel.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?.into())
    }

    /// A file below it, for reading and writing, made where it is missing.
    pub(crate) fn open_to_write(&self, rel: impl AsRef<Path>, executable: bool) -> io::Result<File> {
        let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
        let file: File = self.open_below(rel.as_ref(), OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK, mode)?.into();
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(file)
    }

    /// What lies there, a link not followed; `None`: nothing.
    pub(crate) fn stat(&self, rel: impl AsRef<Path>) -> io::Result<Option<Stat>> {
        let stat = self.parent(rel.as_ref()).and_then(|(parent, name)| Ok(fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match stat {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves what is at `from` to a place below another root. Without `replace` an existing file there is an error.
    pub(crate) fn rename(&self, from: impl AsRef<Path>, to_root: &Root, to: impl AsRef<Path>, replace: bool) -> io::Result<()> {
        let (from_parent, from) = self.parent(from.as_ref())?;
        let (to_parent, to) = to_root.parent(to.as_ref())?;
        if replace {
            return Ok(fs::renameat(&from_parent, from, &to_parent, to)?);
        }
        #[cfg(target_os = "linux")]
        match fs::renameat_with(&from_parent, from, &to_parent, to, fs::RenameFlags::NOREPLACE) {
            // Not every file system can; a link can be made nowhere but at a free name.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            other => return Ok(other?),
        }
        fs::linkat(&from_parent, from, &to_parent, to, AtFlags::empty())?;
        Ok(fs::unlinkat(&from_parent, from, AtFlags::empty())?)
    }

    /// Removes a file below it.
    pub(crate) fn remove_file(&self, rel: impl AsRef<Path>) -> io::Result<()> {
        let (parent, name) = self.parent(rel.as_ref())?;
        Ok(fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    /// Removes an empty directory below it.
    pub(crate) fn remove_dir(&self, rel: impl AsRef<Path>) -> io::Result<()> {
        let (parent, name) = self.parent(rel.as_ref())?;
        Ok(fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    /// Makes everything on its file system durable; cheaper than a thousand files one by one. `false`: not possible here.
    pub(crate) fn sync_file_system(&self) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        return Ok(fs::syncfs(&self.fd).map(|()| true)?);
        #[cfg(not(target_os = "linux"))]
        Ok(false)
    }

    /// The space of its file system.
    pub(crate) fn space(&self) -> io::Result<StatVfs> {
        Ok(fs::fstatvfs(&self.fd)?)
    }

    /// Takes a lock on the directory, for as long as it is open; `false`: somebody else holds one that excludes it.
    pub(crate) fn try_lock(&self, shared: bool) -> io::Result<bool> {
        let operation = if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match fs::flock(&self.fd, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether both are the same directory.
    pub(crate) fn is(&self, other: &Root) -> io::Result<bool> {
        let (this, that) = (fs::fstat(&self.fd)?, fs::fstat(&other.fd)?);
        Ok((this.st_dev, this.st_ino) == (that.st_dev, that.st_ino))
    }

    fn parent<'a>(&self, rel: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let Some(Component::Normal(name)) = rel.components().next_back() else { return Err(outside()) };
        let parent = rel.parent().unwrap_or(Path::new(""));
        Ok((self.open_below(parent, FOLDER, Mode::empty())?, name))
    }

    fn open_below(&self, rel: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::ResolveFlags;
            let rel = if rel.as_os_str().is_empty() { Path::new(".") } else { rel };
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            // EAGAIN: something was renamed meanwhile and the kernel could not be sure. Walking name by name always can.
            for _ in 0..4 {
                match fs::openat2(&self.fd, rel, flags | OFlags::CLOEXEC, mode, resolve) {
                    Err(Errno::AGAIN) => {}
                    Err(Errno::NOSYS | Errno::PERM) => break,
                    other => return Ok(other?),
                }
            }
        }
        self.open_by_steps(rel, flags, mode)
    }

    fn open_by_steps(&self, rel: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let names: Vec<&OsStr> = plain_names(rel)?.collect();
        let Some((last, folders)) = names.split_last() else {
            return Ok(fs::openat(&self.fd, ".", flags | OFlags::CLOEXEC, mode)?);
        };
        let mut at: Option<OwnedFd> = None;
        for name in folders {
            let from = at.as_ref().unwrap_or(&self.fd).as_fd();
            at = Some(fs::openat(from, *name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?);
        }
        let from = at.as_ref().unwrap_or(&self.fd).as_fd();
        Ok(fs::openat(from, *last, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode)?)
    }
}

/// The names of a path that has nothing but names in it.
fn plain_names(rel: &Path) -> io::Result<impl Iterator<Item = &OsStr>> {
    if rel.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    Ok(rel.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    }))
}

fn outside() -> io::Error {
    Errno::XDEV.into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn root_with_links() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/in")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(dir.path().join("root/in/file"), "fine").unwrap();
        symlink("../secret", dir.path().join("root/out")).unwrap();
        symlink("in/file", dir.path().join("root/inner")).unwrap();
        symlink("..", dir.path().join("root/up")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn no_name_leads_out_either_way() {
        let (dir, root) = root_with_links();
        let absolute = dir.path().join("secret");
        for name in ["../secret", "in/../../secret", "out", "inner", "up/secret", absolute.to_str().unwrap(), ""] {
            assert!(root.open_to_write(name, false).is_err(), "{name}");
            let by_steps = root.open_by_steps(Path::new(name), OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600));
            assert!(by_steps.is_err(), "{name}");
            assert!(root.rename("in/file", &root, name, true).is_err() || matches!(name, "out" | "inner"), "{name}");
            if matches!(name, "out" | "inner") {
                // A link at the name itself is replaced, not followed.
                root.rename(name, &root, "in/file", true).unwrap();
            }
        }
        for name in ["up/x", "../x", "in/file/x", "/x"] {
            assert!(root.make_dirs(name).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("secret")).unwrap(), "secret");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn plain_names_work_either_way() {
        let (_dir, root) = root_with_links();
        let mut text = String::new();
        root.open_file("in/file").unwrap().read_to_string(&mut text).unwrap();
        let by_steps: File = root.open_by_steps(Path::new("in/file"), OFlags::RDONLY, Mode::empty()).unwrap().into();
        assert_eq!((text.as_str(), by_steps.metadata().unwrap().len()), ("fine", 4));
        root.make_dirs("a/b/c").unwrap();
        root.make_dirs("a/b/c").unwrap();
        assert!(root.rename("in/file", &root, "inner", false).is_err());
        root.rename("in/file", &root, "a/b/c/file", false).unwrap();
        assert!(root.stat("in/file").unwrap().is_none() && root.stat("a/b/c/file").unwrap().is_some());
        assert!(root.stat("nowhere/file").unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_name_says_nothing_outside_is_touched(name in "[a./\\x00~é]{0,12}|(/|\\.\\./|a/|up/|out|inner){1,6}") {
            let (dir, root) = root_with_links();
            let _ = root.open_to_write(&name, false);
            let _ = root.open_by_steps(Path::new(&name), OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600));
            let _ = root.make_dirs(&name);
            let _ = root.rename("in/file", &root, &name, true);
            let _ = root.remove_file(&name);
            let _ = root.remove_dir(&name);
            let mut outside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            outside.sort();
            assert_eq!(outside, ["root", "secret"]);
            assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"secret");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_swapped_for_a_link_does_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["root/real", "outside"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let base = dir.path().join("root");
        let root = Root::open(&base).unwrap();
        symlink("../outside", base.join("link")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swap = fs::RenameFlags::EXCHANGE;
                while !done.load(Ordering::Relaxed) {
                    fs::renameat_with(fs::CWD, base.join("real"), fs::CWD, base.join("link"), swap).unwrap();
                }
            });
            let mut written = 0;
            for n in 0..2000 {
                let name = format!("real/{n}");
                written += u32::from(root.open_to_write(&name, false).is_ok());
                let by_steps = root.open_by_steps(Path::new(&name), OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600));
                written += u32::from(by_steps.is_ok());
                written += u32::from(root.make_dirs(format!("{name}d/x")).is_ok());
            }
            done.store(true, Ordering::Relaxed);
            assert!(written > 0);
        });
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }
}
