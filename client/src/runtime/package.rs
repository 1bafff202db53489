//! A path that a user typed → a package that can be sent, or one sentence that says what is wrong with it.
//!
//! Only names, small configurations and the labels file's structure are looked at here; hashing comes with the transfer.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use shared::domain::{
    error::{Code, Failure},
    job::JobSpec,
    path::RelPath,
};

use super::{archive, labels};
use crate::domain::submission::{self, Kind, Package, PackageInput, Wishes, bad};

/// The largest configuration, in bytes; real ones have some kilobytes.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
/// The most files that a folder may have: more are surely not a package but somebody's home directory.
const MAX_FILES: usize = 100_000;

/// Makes a package of what lies at `path`.
///
/// # Errors
/// [`Code::BadFile`] when something cannot be read, [`Code::BadPackage`] when it is not what it should be, [`Code::InvalidRequest`]
/// when a wish contradicts it.
pub fn read(path: &Path, wishes: &Wishes) -> Result<Package, Failure> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    let package = if metadata.is_dir() {
        read_folder(path, wishes)?
    } else {
        match submission::kind(path, &head(path)?)? {
            Kind::Zip => read_zip(path, wishes)?,
            Kind::Labels => read_labels(path, wishes)?,
        }
    };
    package.spec.check()?;
    Ok(package)
}

fn read_folder(path: &Path, wishes: &Wishes) -> Result<Package, Failure> {
    let path = fs::canonicalize(path).map_err(|error| unreadable(path, &error))?;
    let mut files = Vec::new();
    list_folder(&path, "", &mut files)?;
    let chosen = choose(&path, &files, wishes, |name| {
        let config = path.join(name.as_str());
        read_config(&config)
    })?;
    Ok(package(PackageInput::Folder(path.clone()), &path, chosen, wishes))
}

fn read_zip(path: &Path, wishes: &Wishes) -> Result<Package, Failure> {
    let files = archive::list(path)?;
    let chosen = choose(path, &files, wishes, |name| archive::read(path, name, MAX_CONFIG))?;
    Ok(package(PackageInput::Zip(path.to_owned()), path, chosen, wishes))
}

/// What the wishes mean for a package.
#[derive(Default)]
struct Chosen {
    configs: Vec<RelPath>,
    labels: Option<RelPath>,
    extra: Vec<(PathBuf, RelPath)>,
}

fn choose(
    path: &Path,
    files: &[RelPath],
    wishes: &Wishes,
    read_inner: impl Fn(&RelPath) -> Result<Vec<u8>, Failure>,
) -> Result<Chosen, Failure> {
    let mut chosen = Chosen::default();
    for wanted in &wishes.configs {
        let inner = submission::find(files, &wanted.to_string_lossy())?.or(match wanted.file_name() {
            Some(name) => submission::find(files, &name.to_string_lossy())?,
            None => None,
        });
        let config = match (inner, wanted.is_file()) {
            (Some(inner), outer) => {
                let content = read_inner(&inner)?;
                if outer && read_config(wanted)? != content {
                    return Err(differs(wanted, &inner));
                }
                check_syntax(&inner.to_string(), &content)?;
                inner
            }
            (None, true) => {
                let place = beside(wanted, submission::top_folder(files))?;
                check_syntax(&wanted.display().to_string(), &read_config(wanted)?)?;
                chosen.extra.push((wanted.clone(), place.clone()));
                place
            }
            (None, false) => {
                let there: Vec<RelPath> = files.iter().filter(|path| submission::is_configuration(path)).cloned().collect();
                return Err(submission::not_in_package("--config", &wanted.display().to_string(), &there));
            }
        };
        add_config(&mut chosen.configs, config)?;
    }
    // An operator's own trainer may read other configurations than we know: then the worker judges.
    if chosen.configs.is_empty() && wishes.trainer.is_none() {
        submission::check_has_configuration(&path.display().to_string(), files)?;
    }
    if let Some(wanted) = &wishes.labels {
        let found = submission::find(files, wanted)?;
        chosen.labels = Some(found.ok_or_else(|| submission::not_in_package("--labels", wanted, &submission::labels(files)))?);
    }
    Ok(chosen)
}

fn read_labels(path: &Path, wishes: &Wishes) -> Result<Package, Failure> {
    let shown = path.display().to_string();
    if !labels::has_images(path)? {
        return Err(submission::without_images(&shown));
    }
    if wishes.configs.is_empty() {
        return Err(submission::without_configuration(&shown));
    }
    let own = beside(path, None)?;
    if let Some(wanted) = wishes.labels.as_ref().filter(|wanted| *wanted != own.as_str()) {
        return Err(submission::not_in_package("--labels", wanted, &[own]));
    }
    let mut files = vec![(path.to_owned(), own.clone())];
    let mut configs = Vec::new();
    for config in &wishes.configs {
        check_syntax(&config.display().to_string(), &read_config(config)?)?;
        let place = beside(config, None)?;
        add_config(&mut configs, place.clone())?;
        files.push((config.clone(), place));
    }
    let chosen = Chosen { configs, labels: Some(own), extra: vec![] };
    Ok(package(PackageInput::Files(files), path, chosen, wishes))
}

fn package(input: PackageInput, path: &Path, chosen: Chosen, wishes: &Wishes) -> Package {
    let name = submission::job_name(wishes.name.as_deref(), path);
    let Chosen { configs, labels, extra } = chosen;
    let spec = JobSpec { name: name.clone(), trainer: wishes.trainer.clone(), configs, labels, attempt: 0 };
    Package { name, input, extra, spec }
}

fn add_config(configs: &mut Vec<RelPath>, config: RelPath) -> Result<(), Failure> {
    if configs.contains(&config) {
        return Err(Failure::new(
            Code::InvalidRequest,
            format!("--config {config} is given twice, or two files have that name: name each once"),
        ));
    }
    configs.push(config);
    Ok(())
}

/// Where a file from elsewhere goes in a package.
fn beside(file: &Path, folder: Option<&str>) -> Result<RelPath, Failure> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let place = folder.map(|folder| format!("{folder}/{name}")).unwrap_or(name);
    place.parse().map_err(|failure: Failure| bad(format!("{} cannot be sent under its name: {failure}; rename it", file.display())))
}

fn differs(outer: &Path, inner: &RelPath) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!(
            "--config {}: the package has another {inner}; rename your file, or name the package's from another folder",
            outer.display()
        ),
    )
}

fn head(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut head = Vec::with_capacity(8);
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(8).read_to_end(&mut head).map_err(|error| unreadable(path, &error))?;
    Ok(head)
}

fn read_config(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(bad(format!("{} is too large for a configuration", path.display())));
    }
    Ok(bytes)
}

/// Checks that a configuration is a YAML or JSON table; what is in it is the trainer's business.
fn check_syntax(shown: &str, bytes: &[u8]) -> Result<(), Failure> {
    let wrong = |kind: &str, place: String| {
        bad(format!(
            "{shown} is not a training configuration: it is not a valid {kind} table{place}; open it in an editor, or export it again"
        ))
    };
    let at = |line: u64, column: u64| if line > 0 { format!(" (line {line}, column {column})") } else { String::new() };
    if shown.to_ascii_lowercase().ends_with(".json") {
        let parsed = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(bytes);
        parsed.map(drop).map_err(|error| wrong("JSON", at(error.line() as u64, error.column() as u64)))
    } else if matches!(shown.rsplit('.').next().map(str::to_ascii_lowercase).as_deref(), Some("yaml" | "yml")) {
        let parsed = serde_saphyr::from_slice::<BTreeMap<String, IgnoredAny>>(bytes);
        parsed.map(drop).map_err(|error| wrong("YAML", error.location().map(|l| at(l.line(), l.column())).unwrap_or_default()))
    } else {
        Err(bad(format!("{shown} is not a training configuration: its name must end in .yaml, .yml or .json")))
    }
}

fn list_folder(root: &Path, below: &str, files: &mut Vec<RelPath>) -> Result<(), Failure> {
    let here = root.join(below);
    let entries = fs::read_dir(&here).map_err(|error| unreadable(&here, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(&here, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &error))?;
        if kind.is_dir() {
            // The path is checked on the way down, which bounds the depth.
            let checked: RelPath = place.parse().map_err(|failure| unsendable(root, &failure))?;
            list_folder(root, checked.as_str(), files)?;
        } else if kind.is_file() {
            files.push(place.parse().map_err(|failure| unsendable(root, &failure))?);
        }
        if files.len() > MAX_FILES {
            return Err(bad(format!("{} has more than {MAX_FILES} files: name the package's own folder", root.display())));
        }
    }
    Ok(())
}

fn unsendable(root: &Path, failure: &Failure) -> Failure {
    bad(format!("{} cannot be sent: {failure}; rename it", root.display()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let message = match error.kind() {
        ErrorKind::NotFound => format!("{} does not exist: check the path", path.display()),
        ErrorKind::PermissionDenied => format!("{} may not be read: check its permissions", path.display()),
        _ => format!("cannot read {}: {error}", path.display()),
    };
    Failure::new(Code::BadFile, message)
}

#[cfg(test)]
mod tests;
