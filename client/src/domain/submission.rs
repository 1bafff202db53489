//! What is submitted: a package, which of its configurations, and under which name; and what is wrong with one.
//!
//! A package is a zip ("Export training job package" of SLEAP), a folder of the same content, or a labels file with embedded images
//! (`.pkg.slp`) and the configurations that are sent beside it.

use std::path::{Path, PathBuf};

use shared::domain::{
    error::{Code, Failure},
    job::JobSpec,
    path::RelPath,
};

/// A package that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// What people call it.
    pub name: String,
    /// What is sent.
    pub input: PackageInput,
    /// Files sent with it: where each lies here, and its path in the package.
    pub extra: Vec<(PathBuf, RelPath)>,
    /// What to do with it.
    pub spec: JobSpec,
}

/// Where a package's content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageInput {
    /// Everything below this folder.
    Folder(PathBuf),
    /// These files, each with its path in the package.
    Files(Vec<(PathBuf, RelPath)>),
    /// The entries of this zip.
    Zip(PathBuf),
}

/// What the user asked for, besides the package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `--config`: names in the package, or files here.
    pub configs: Vec<PathBuf>,
    /// `--labels`: a name in the package.
    pub labels: Option<String>,
    /// `--trainer`.
    pub trainer: Option<String>,
    /// `--name`.
    pub name: Option<String>,
}

/// What a package's path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A zip.
    Zip,
    /// A SLEAP labels file.
    Labels,
}

/// What a file is, by its first bytes and its name.
///
/// # Errors
/// [`Code::BadPackage`] when it is neither a zip nor a labels file.
pub fn kind(path: &Path, head: &[u8]) -> Result<Kind, Failure> {
    let shown = path.display();
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    // A local header, or the end record of an empty archive (APPNOTE 4.3.7, 4.3.16); HDF5's signature (format specification, II.A).
    let is_zip = head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06");
    let is_hdf5 = head.starts_with(b"\x89HDF\r\n\x1a\n");
    match extension.as_str() {
        _ if is_zip => Ok(Kind::Zip),
        _ if is_hdf5 => Ok(Kind::Labels),
        "zip" | "slp" => Err(bad(format!(
            "{shown} is damaged or cut short: it does not begin as a {} does; export it again",
            if extension == "zip" { "zip" } else { "SLEAP labels file (HDF5)" }
        ))),
        "yaml" | "yml" | "json" => {
            Err(bad(format!("{shown} is a configuration, not a package: name the package first, then '--config {shown}'")))
        }
        _ => Err(bad(format!(
            "{shown} is neither a zip, a folder nor a .pkg.slp; in SLEAP choose Predict → Run Training → Export training job package"
        ))),
    }
}

/// Whether this path in a package can be a training configuration.
pub fn is_configuration(path: &RelPath) -> bool {
    let name = path.file_name();
    let Some((stem, extension)) = name.rsplit_once('.') else { return false };
    // macOS adds `__MACOSX/._name` twins to its zips; jobs.yaml names configurations and is none.
    let is_shadow = name.starts_with('.') || path.names().next() == Some("__MACOSX");
    matches!(extension.to_ascii_lowercase().as_str(), "yaml" | "yml" | "json") && !is_shadow && stem != "jobs"
}

/// Checks that a zip or a folder has a configuration.
///
/// # Errors
/// [`Code::BadPackage`].
pub fn check_has_configuration(shown: &str, files: &[RelPath]) -> Result<(), Failure> {
    if files.iter().any(is_configuration) {
        return Ok(());
    }
    if files.is_empty() {
        return Err(bad(format!("{shown} is empty; in SLEAP choose Predict → Run Training → Export training job package")));
    }
    if let Some(inner) = files.iter().find(|path| path.as_str().to_ascii_lowercase().ends_with(".zip")) {
        return Err(bad(format!("{shown} has no training configuration (.yaml or .json), but {inner} in it may: name that zip itself")));
    }
    Err(bad(format!(
        "{shown} has no training configuration (.yaml or .json, such as centroid.yaml): \
         in SLEAP choose Predict → Run Training → Export training job package, which adds them"
    )))
}

/// The one file of a package that is meant by `wanted`: its whole path, or its name alone where only one file has it.
///
/// # Errors
/// [`Code::BadPackage`] when several have it. `Ok(None)`: none has.
pub fn find(files: &[RelPath], wanted: &str) -> Result<Option<RelPath>, Failure> {
    let wanted = wanted.trim_start_matches("./");
    if let Some(exact) = files.iter().find(|path| path.as_str() == wanted) {
        return Ok(Some(exact.clone()));
    }
    let named: Vec<&RelPath> = files.iter().filter(|path| path.file_name() == wanted).collect();
    match named[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(bad(format!("the package has several files '{wanted}': {}; name one by its whole path", list(named.into_iter())))),
    }
}

/// What to say when `wanted` is not in the package.
pub fn not_in_package(option: &str, wanted: &str, candidates: &[RelPath]) -> Failure {
    let there = match candidates {
        [] => "there is none of that kind in it".to_owned(),
        some => format!("there are: {}", list(some.iter())),
    };
    bad(format!("{option} {wanted}: the package has no such file; {there}"))
}

/// The paths of a package that `--labels` may name.
pub fn labels(files: &[RelPath]) -> Vec<RelPath> {
    files.iter().filter(|path| path.file_name().to_ascii_lowercase().ends_with(".slp")).cloned().collect()
}

/// The one top folder in which all files lie, where there is one.
pub fn top_folder(files: &[RelPath]) -> Option<&str> {
    let (first, rest) = files.first()?.as_str().split_once('/')?;
    let _ = rest;
    files.iter().all(|path| path.as_str().split_once('/').is_some_and(|(top, _)| top == first)).then_some(first)
}

/// The job's name: what was asked for, else the package's file name; made fit to be one.
pub fn job_name(wanted: Option<&str>, path: &Path) -> String {
    let text = match wanted {
        Some(name) => name.to_owned(),
        None => path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    let name: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if name.trim().is_empty() { "package".into() } else { name }
}

/// Where results go unless `--output` says: `models-` and the job's name without its ending, in the working directory.
pub fn output_folder(name: &str) -> PathBuf {
    let mut stem = name;
    for ending in [".zip", ".training_job", ".slp", ".pkg"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    let plain: String =
        stem.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '+') { c } else { '-' }).collect();
    let folder = format!("models-{}", plain.trim_matches(['-', '.']));
    match folder.parse::<RelPath>() {
        Ok(folder) if folder.as_str() != "models-" => PathBuf::from(folder.as_str()),
        _ => PathBuf::from("models"),
    }
}

/// What is said of a labels file without images.
pub fn without_images(shown: &str) -> Failure {
    bad(format!(
        "{shown} has no images in it, only paths of videos that the worker cannot see: \
         in SLEAP choose Predict → Run Training → Export training job package, or export a labels package with images (.pkg.slp)"
    ))
}

/// What is said of a labels file without a configuration.
pub fn without_configuration(shown: &str) -> Failure {
    bad(format!(
        "{shown} has labels and images but says not how to train: add --config FILE for each model \
         (such as --config centroid.yaml --config centered_instance.yaml), or give SLEAP's training job package"
    ))
}

/// A package that cannot be used.
pub fn bad(message: String) -> Failure {
    Failure::new(Code::BadPackage, message)
}

fn list<'a>(paths: impl Iterator<Item = &'a RelPath>) -> String {
    let mut names: Vec<&str> = paths.map(RelPath::as_str).take(11).collect();
    if names.len() > 10 {
        names[10] = "…";
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> Vec<RelPath> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_file_is_what_it_begins_with() {
        let of = |name: &str, head: &[u8]| kind(Path::new(name), head);
        assert_eq!(of("a.zip", b"PK\x03\x04....").unwrap(), Kind::Zip);
        assert_eq!(of("a.pkg.slp", b"\x89HDF\r\n\x1a\n....").unwrap(), Kind::Labels);
        for (name, says) in [
            ("a.zip", "damaged or cut short"),
            ("a.slp", "SLEAP labels file"),
            ("centroid.yaml", "'--config centroid.yaml'"),
            ("movie.mp4", "neither a zip, a folder nor a .pkg.slp"),
        ] {
            let failure = of(name, b"garbage").unwrap_err();
            assert_eq!(failure.code, Code::BadPackage);
            assert!(failure.message.contains(says), "{failure}");
        }
    }

    #[test]
    fn configurations_are_told_from_what_only_looks_like_one() {
        for (path, is) in [
            ("centroid.yaml", true),
            ("top/centered_instance.json", true),
            ("a.YML", true),
            ("jobs.yaml", false),
            ("__MACOSX/._centroid.yaml", false),
            (".hidden.yaml", false),
            ("x.pkg.slp", false),
            ("README", false),
        ] {
            assert_eq!(is_configuration(&path.parse().unwrap()), is, "{path}");
        }
    }

    #[test]
    fn a_package_without_configuration_says_what_to_do() {
        let of = |names: &[&str]| check_has_configuration("fly", &paths(names));
        assert!(of(&["a.slp", "centroid.yaml"]).is_ok());
        assert!(of(&["a.slp", "jobs.yaml"]).unwrap_err().message.contains("Export training job package"));
        assert!(of(&["inner.zip"]).unwrap_err().message.contains("inner.zip in it may"));
        assert!(of(&[]).unwrap_err().message.contains("is empty"));
    }

    #[test]
    fn a_file_of_a_package_is_meant_by_path_or_by_its_only_name() {
        let files = paths(&["top/a.yaml", "top/b.yaml", "other/b.yaml"]);
        assert_eq!(find(&files, "a.yaml").unwrap().unwrap().as_str(), "top/a.yaml");
        assert_eq!(find(&files, "./other/b.yaml").unwrap().unwrap().as_str(), "other/b.yaml");
        assert_eq!(find(&files, "c.yaml").unwrap(), None);
        assert!(find(&files, "b.yaml").unwrap_err().message.contains("top/b.yaml, other/b.yaml"));
    }

    #[test]
    fn a_top_folder_holds_everything() {
        assert_eq!(top_folder(&paths(&["a/b", "a/c/d"])), Some("a"));
        assert_eq!(top_folder(&paths(&["a/b", "c"])), None);
        assert_eq!(top_folder(&paths(&["a/b", "ab/c"])), None);
        assert_eq!(top_folder(&[]), None);
    }

    #[test]
    fn names_are_made_fit() {
        assert_eq!(job_name(None, Path::new("/x/fly.zip")), "fly.zip");
        assert_eq!(job_name(Some("my\njob"), Path::new("x")), "myjob");
        assert_eq!(job_name(Some("\u{1b}"), Path::new("x")), "package");
        assert_eq!(job_name(Some(&"x".repeat(300)), Path::new("x")).len(), 200);
    }

    #[test]
    fn results_get_a_folder_of_their_own() {
        for (name, folder) in [
            ("fly.zip", "models-fly"),
            ("minimal_instance.slp.training_job.zip", "models-minimal_instance"),
            ("fly.pkg.slp", "models-fly"),
            ("../../etc", "models-etc"),
            ("my job/2", "models-my-job-2"),
            ("...", "models"),
            (".zip", "models"),
        ] {
            assert_eq!(output_folder(name), Path::new(folder), "{name}");
        }
    }
}
