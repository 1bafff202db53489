//! Packages on a real disk.

use std::io::Write;

use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

/// A labels file with one embedded image, and one that names a video only; both made by `tests/data/make.py`.
const WITH_IMAGES: &[u8] = include_bytes!("../../../tests/data/with_images.pkg.slp");
const WITHOUT_IMAGES: &[u8] = include_bytes!("../../../tests/data/without_images.slp");

/// A folder for one test.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn zip(&self, name: &str, entries: &[(&str, &str)]) -> PathBuf {
        let mut zip = ZipWriter::new(File::create(self.path(name)).unwrap());
        for (entry, content) in entries {
            zip.start_file(*entry, SimpleFileOptions::default()).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        self.path(name)
    }
}

fn with_configs(configs: &[&Path]) -> Wishes {
    Wishes { configs: configs.iter().map(|path| path.to_path_buf()).collect(), ..Wishes::default() }
}

fn rel(path: &str) -> RelPath {
    path.parse().unwrap()
}

fn refused(path: &Path, wishes: &Wishes, code: Code, says: &str) {
    let failure = read(path, wishes).unwrap_err();
    assert_eq!(failure.code, code, "{failure}");
    assert!(failure.message.contains(says), "{failure}");
    assert!(!failure.message.contains('\n'), "one sentence: {failure}");
}

const YAML: &str = "data_config:\n  train_labels_path: [fly.pkg.slp]\nmodel_config: {}\n";

#[test]
fn a_zip_is_sent_as_it_is() {
    let desk = Desk::new();
    let zip = desk.zip("fly.zip", &[("centroid.yaml", YAML), ("fly.pkg.slp", "x"), ("jobs.yaml", "training: []")]);
    let package = read(&zip, &Wishes::default()).unwrap();
    assert_eq!(package.input, PackageInput::Zip(zip));
    assert_eq!(package.spec, JobSpec { name: "fly.zip".into(), trainer: None, configs: vec![], labels: None, attempt: 0 });
    assert!(package.extra.is_empty());
}

#[test]
fn a_folder_is_named_after_itself() {
    let desk = Desk::new();
    desk.file("fly/deep/centroid.json", "{}");
    let package = read(&desk.path("fly/../fly/."), &Wishes { trainer: Some("t".into()), ..Wishes::default() }).unwrap();
    assert_eq!((package.name.as_str(), package.spec.trainer.as_deref()), ("fly", Some("t")));
    assert_eq!(package.input, PackageInput::Folder(fs::canonicalize(desk.path("fly")).unwrap()));
}

#[test]
fn labels_travel_with_their_configurations() {
    let desk = Desk::new();
    let labels = desk.file("fly.pkg.slp", WITH_IMAGES);
    let (one, two) = (desk.file("a/centroid.yaml", YAML), desk.file("b/ci.json", "{\"data\": {}}"));
    let package = read(&labels, &with_configs(&[&one, &two])).unwrap();
    assert_eq!(package.input, PackageInput::Files(vec![(labels, rel("fly.pkg.slp")), (one, rel("centroid.yaml")), (two, rel("ci.json"))]));
    assert_eq!(package.spec.configs, [rel("centroid.yaml"), rel("ci.json")]);
    assert_eq!(package.spec.labels, Some(rel("fly.pkg.slp")));
}

#[test]
fn configurations_of_a_package_are_chosen_by_name() {
    let desk = Desk::new();
    let zip = desk.zip("fly.zip", &[("top/a.yaml", YAML), ("top/b.yaml", YAML), ("top/fly.pkg.slp", "x")]);
    let wishes = Wishes { labels: Some("fly.pkg.slp".into()), ..with_configs(&[Path::new("b.yaml"), Path::new("top/a.yaml")]) };
    let package = read(&zip, &wishes).unwrap();
    assert_eq!(package.spec.configs, [rel("top/b.yaml"), rel("top/a.yaml")]);
    assert_eq!(package.spec.labels, Some(rel("top/fly.pkg.slp")));
    refused(&zip, &with_configs(&[Path::new("c.yaml")]), Code::BadPackage, "no such file; there are: top/a.yaml, top/b.yaml");
    refused(&zip, &Wishes { labels: Some("x.slp".into()), ..Wishes::default() }, Code::BadPackage, "there are: top/fly.pkg.slp");
    refused(&zip, &with_configs(&[Path::new("a.yaml"), Path::new("top/a.yaml")]), Code::InvalidRequest, "given twice");
}

#[test]
fn a_configuration_from_elsewhere_goes_along() {
    let desk = Desk::new();
    let zip = desk.zip("fly.zip", &[("top/a.yaml", YAML)]);
    let mine = desk.file("mine.yaml", YAML);
    let package = read(&zip, &with_configs(&[&mine])).unwrap();
    assert_eq!(package.extra, [(mine, rel("top/mine.yaml"))]);
    assert_eq!(package.spec.configs, [rel("top/mine.yaml")]);
}

#[test]
fn a_configuration_that_is_here_and_there_must_be_the_same() {
    let desk = Desk::new();
    let zip = desk.zip("fly.zip", &[("a.yaml", YAML)]);
    let same = desk.file("same/a.yaml", YAML);
    let other = desk.file("other/a.yaml", "model_config: {edited: true}\n");
    let package = read(&zip, &with_configs(&[&same])).unwrap();
    assert_eq!((package.spec.configs, package.extra), (vec![rel("a.yaml")], vec![]));
    refused(&zip, &with_configs(&[&other]), Code::InvalidRequest, "the package has another a.yaml");
    // Inside the folder itself, it is that very file.
    let folder = desk.file("fly/a.yaml", YAML);
    assert_eq!(read(folder.parent().unwrap(), &with_configs(&[&folder])).unwrap().spec.configs, [rel("a.yaml")]);
}

#[test]
fn each_fault_has_its_sentence() {
    let desk = Desk::new();
    let none = Wishes::default();
    let images = desk.file("fly.pkg.slp", WITH_IMAGES);
    let plain = desk.file("plain.slp", WITHOUT_IMAGES);
    let config = desk.file("centroid.yaml", YAML);
    let broken = desk.file("broken.yaml", "a: [1, 2\nb: }\n");
    let list = desk.file("list.json", "[1]");
    let text = desk.file("config.txt", "a: 1");
    refused(&desk.path("missing.zip"), &none, Code::BadFile, "missing.zip does not exist");
    refused(&desk.file("movie.mp4", "xxxx"), &none, Code::BadPackage, "neither a zip, a folder nor a .pkg.slp");
    refused(&plain, &with_configs(&[&config]), Code::BadPackage, "has no images in it");
    refused(&images, &none, Code::BadPackage, "add --config FILE");
    refused(&images, &with_configs(&[&desk.path("no.yaml")]), Code::BadFile, "no.yaml does not exist");
    refused(&images, &with_configs(&[&broken]), Code::BadPackage, "not a valid YAML table (line ");
    refused(&images, &with_configs(&[&list]), Code::BadPackage, "not a valid JSON table (line 1");
    refused(&images, &with_configs(&[&text]), Code::BadPackage, "must end in .yaml, .yml or .json");
    refused(&images, &Wishes { labels: Some("x.slp".into()), ..with_configs(&[&config]) }, Code::BadPackage, "--labels x.slp");
    refused(&desk.zip("bare.zip", &[("fly.pkg.slp", "x")]), &none, Code::BadPackage, "no training configuration");
    desk.file("bare/fly.pkg.slp", "x");
    refused(&desk.path("bare"), &none, Code::BadPackage, "no training configuration");
    desk.file("packed/job.zip", "x");
    refused(&desk.path("packed"), &none, Code::BadPackage, "job.zip in it may: name that zip itself");
    refused(&desk.file("cut.slp", &WITH_IMAGES[..600]), &none, Code::BadPackage, "damaged or no SLEAP labels file");
    let whole = fs::read(desk.zip("whole.zip", &[("centroid.yaml", YAML)])).unwrap();
    refused(&desk.file("cut.zip", &whole[..whole.len() - 30]), &none, Code::BadPackage, "is not a whole zip");
    refused(&desk.zip("escape.zip", &[("../x.yaml", YAML)]), &none, Code::BadPackage, "it leaves its directory");
}

#[test]
fn an_encrypted_zip_is_named_as_such() {
    let desk = Desk::new();
    let path = desk.zip("fly.zip", &[("centroid.yaml", YAML)]);
    let mut bytes = fs::read(&path).unwrap();
    // General purpose flag, bit 0, in the central directory and in the local header (APPNOTE 4.4.4).
    let central = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    bytes[central + 8] |= 1;
    bytes[6] |= 1;
    fs::write(&path, bytes).unwrap();
    refused(&path, &Wishes::default(), Code::BadPackage, "is encrypted");
}

#[test]
fn a_link_in_a_zip_is_refused() {
    let desk = Desk::new();
    let mut zip = ZipWriter::new(File::create(desk.path("fly.zip")).unwrap());
    zip.add_symlink("centroid.yaml", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    refused(&desk.path("fly.zip"), &Wishes::default(), Code::BadPackage, "symbolic link");
}
