//! What is submitted: packages with little in them but what a test needs.

use std::{
    fs::File,
    io::{Read, copy},
    path::{Path, PathBuf},
    process::Command,
};

use super::lab;

/// A training by `odd_trainers/steady.py`.
pub(crate) struct Steady {
    /// Epochs of 20 batches.
    pub(crate) epochs: u32,
    /// Batches a second.
    pub(crate) rate: u32,
    /// Seconds before the trainer connects its sockets.
    pub(crate) late: u32,
    /// Bytes that are there only to be sent.
    pub(crate) ballast: u64,
}

impl Default for Steady {
    /// Two seconds, and next to nothing to send.
    fn default() -> Self {
        Steady { epochs: 2, rate: 20, late: 0, ballast: 0 }
    }
}

impl Steady {
    /// Goes on until it is stopped.
    pub(crate) fn endless() -> Self {
        Steady { epochs: 1_000_000, ..Steady::default() }
    }

    /// Writes it as a folder.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let Steady { epochs, rate, late, ballast } = self;
        std::fs::create_dir_all(folder).unwrap();
        let config = format!(
            "data_config: {{train_labels_path: [flies.pkg.slp]}}\nmodel_config: {{}}\n\
             trainer_config: {{max_epochs: {epochs}, batches: 20, rate: {rate}, late: {late}}}\n"
        );
        std::fs::write(folder.join("steady.yaml"), config).unwrap();
        std::fs::write(folder.join("flies.pkg.slp"), "labels that this trainer does not read").unwrap();
        if *ballast > 0 {
            let mut random = File::open("/dev/urandom").unwrap().take(*ballast);
            copy(&mut random, &mut File::create(folder.join("ballast.bin")).unwrap()).unwrap();
        }
        folder.to_owned()
    }
}

/// A small package of flies as SLEAP exports it, for the real training of `trainer/sleap_nn_lite.py`.
pub(crate) fn flies(file: &Path) -> PathBuf {
    let made = Command::new(lab::python())
        .arg(lab::test_files().join("make_package.py"))
        .args(["--frames", "12", "--size", "128", "--output"])
        .arg(file)
        .status()
        .unwrap();
    assert!(made.success(), "make_package.py");
    file.to_owned()
}
