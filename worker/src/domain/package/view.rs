//! A package's files as its configurations name them.

use std::collections::BTreeSet;

use shared::domain::path::RelPath;

use super::PackageFile;

/// The package's files, seen from the folder in which its configurations lie.
pub(super) struct View<'a> {
    pub(super) files: Vec<&'a PackageFile>,
    /// The one top folder, if there is one; with its `/`.
    base: String,
}

impl<'a> View<'a> {
    pub(super) fn new(files: &'a [PackageFile]) -> Self {
        let junk = |path: &RelPath| path.names().any(|name| name == "__MACOSX" || name == ".DS_Store" || name.starts_with("._"));
        let files: Vec<_> = files.iter().filter(|file| !junk(&file.path)).collect();
        let tops: BTreeSet<_> = files.iter().map(|file| file.path.parent().and(file.path.names().next())).collect();
        let base = match tops.first() {
            Some(Some(top)) if tops.len() == 1 => format!("{top}/"),
            _ => String::new(),
        };
        View { files, base }
    }

    /// The file that a text in a configuration means: by its path from the base or the root, else by its name if only one has it.
    pub(super) fn find(&self, text: &str) -> Option<&'a PackageFile> {
        let text = text.replace('\\', "/");
        let text = text.trim_start_matches("./");
        let exact = |wanted: &str| self.files.iter().find(|file| file.path.as_str() == wanted).copied();
        exact(&format!("{}{text}", self.base)).or_else(|| exact(text)).or_else(|| {
            let name = text.rsplit('/').next().filter(|name| !name.is_empty())?;
            let mut named = self.files.iter().filter(|file| file.path.file_name() == name);
            named.next().filter(|_| named.next().is_none()).copied()
        })
    }

    /// The files that lie directly at the base.
    pub(super) fn top(&self) -> impl Iterator<Item = &'a PackageFile> {
        let depth = self.base.matches('/').count();
        self.files.iter().filter(move |file| file.path.as_str().matches('/').count() == depth).copied()
    }

    pub(super) fn names(&self) -> String {
        let mut names: Vec<_> = self.files.iter().take(8).map(|file| file.path.as_str()).collect();
        if self.files.len() > names.len() {
            names.push("…");
        }
        if names.is_empty() { "nothing".into() } else { names.join(", ") }
    }
}

pub(super) fn extension(path: &RelPath) -> &str {
    path.file_name().rsplit_once('.').map_or("", |(_, extension)| extension)
}

pub(super) fn stem(path: &RelPath) -> &str {
    path.file_name().rsplit_once('.').map_or(path.file_name(), |(stem, _)| stem)
}
