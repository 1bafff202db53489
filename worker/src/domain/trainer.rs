//! The trainers that a worker has: two built-in adapters, and whatever the operator configured.
//!
//! ```toml
//! [worker]
//! sleap_nn = ["/opt/sleap/bin/sleap-nn"]          # another executable for a built-in adapter
//!
//! [worker.trainers.mine]                           # another trainer
//! command = ["python", "train.py", "--config", "{config}", "--labels", "{labels}", "--output", "{output}"]
//! configs = "*.toml"
//! results = ["model.pt"]
//! env = ["MY_LICENCE"]
//! ```

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use shared::domain::{
    error::{Code, Failure},
    job::JobSpec,
    path::RelPath,
};

/// Which program trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Trainer {
    /// `sleap-nn train`: YAML configurations (sleap-nn, SLEAP 1.5 and later).
    SleapNn,
    /// `sleap-train`: JSON profiles (SLEAP up to 1.4).
    SleapTrain,
    /// One of [`TrainerSettings::trainers`].
    Custom(String),
}

const SLEAP_NN: &str = "sleap-nn";
const SLEAP_TRAIN: &str = "sleap-train";

impl Trainer {
    /// Its name, as clients choose it.
    pub fn name(&self) -> &str {
        match self {
            Trainer::SleapNn => SLEAP_NN,
            Trainer::SleapTrain => SLEAP_TRAIN,
            Trainer::Custom(name) => name,
        }
    }
}

impl fmt::Display for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Trainer> for String {
    fn from(trainer: Trainer) -> String {
        trainer.name().to_owned()
    }
}

impl From<String> for Trainer {
    fn from(name: String) -> Self {
        match name.as_str() {
            SLEAP_NN => Trainer::SleapNn,
            SLEAP_TRAIN => Trainer::SleapTrain,
            _ => Trainer::Custom(name),
        }
    }
}

/// A trainer of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomTrainer {
    /// Program and arguments. Placeholders: `{config}`, `{labels}`, `{output}`, `{run_name}`, `{publish_port}`, `{controller_port}`.
    pub command: Vec<String>,
    /// Which files of a package are its configurations: a file name with `*` and `?`.
    #[serde(default = "any_yaml")]
    pub configs: String,
    /// Files that a successful run leaves in `{output}`.
    #[serde(default)]
    pub results: Vec<String>,
    /// Environment variables handed on to it, by name.
    #[serde(default)]
    pub env: Vec<String>,
}

fn any_yaml() -> String {
    "*.yaml".into()
}

impl CustomTrainer {
    /// Whether any argument mentions this placeholder.
    pub fn mentions(&self, placeholder: &str) -> bool {
        let wanted = format!("{{{placeholder}}}");
        self.command.iter().any(|word| word.contains(&wanted))
    }
}

/// What the operator says about trainers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerSettings {
    /// The words before `train` of the sleap-nn adapter.
    pub sleap_nn: Vec<String>,
    /// The words before the profile of the legacy adapter.
    pub sleap_train: Vec<String>,
    /// Environment variables handed on to every trainer, by name, besides the usual ones.
    pub trainer_env: Vec<String>,
    /// Whether a package may bring weights to start from. Loading them runs code that is in them.
    pub allow_checkpoints: bool,
    /// How long a trainer may take to end after SIGTERM, before SIGKILL: seconds.
    pub grace_secs: u32,
    /// Other trainers, by name.
    pub trainers: BTreeMap<String, CustomTrainer>,
}

impl Default for TrainerSettings {
    fn default() -> Self {
        TrainerSettings {
            sleap_nn: vec![SLEAP_NN.into()],
            sleap_train: vec![SLEAP_TRAIN.into()],
            trainer_env: Vec::new(),
            allow_checkpoints: false,
            grace_secs: 5,
            trainers: BTreeMap::new(),
        }
    }
}

impl TrainerSettings {
    /// The names that a client can choose from.
    pub fn names(&self) -> Vec<String> {
        [SLEAP_NN, SLEAP_TRAIN].into_iter().map(str::to_owned).chain(self.trainers.keys().cloned()).collect()
    }

    /// The trainer of this name.
    ///
    /// # Errors
    /// [`Code::BadPackage`], with the names there are.
    pub fn find(&self, name: &str) -> Result<Trainer, Failure> {
        match Trainer::from(name.to_owned()) {
            Trainer::Custom(name) if !self.trainers.contains_key(&name) => Err(Failure::new(
                Code::BadPackage,
                format!("this worker has no trainer {name:?}; it has {}. Choose one of them", self.names().join(", ")),
            )),
            trainer => Ok(trainer),
        }
    }

    /// The configuration of a trainer of the operator's.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when the operator has removed it meanwhile.
    pub fn custom(&self, name: &str) -> Result<&CustomTrainer, Failure> {
        self.trainers
            .get(name)
            .ok_or_else(|| Failure::new(Code::BadPackage, format!("the trainer {name:?} is no longer configured on this worker")))
    }

    /// The program that this trainer is started by.
    pub fn program(&self, trainer: &Trainer) -> Option<&str> {
        let words = match trainer {
            Trainer::SleapNn => &self.sleap_nn,
            Trainer::SleapTrain => &self.sleap_train,
            Trainer::Custom(name) => &self.trainers.get(name)?.command,
        };
        words.first().map(String::as_str)
    }

    /// The files that a successful run of this trainer leaves in its folder.
    pub fn results(&self, trainer: &Trainer) -> Vec<String> {
        let names: &[&str] = match trainer {
            Trainer::SleapNn => &["best.ckpt", "training_config.yaml"],
            Trainer::SleapTrain => &["best_model.h5", "training_config.json"],
            Trainer::Custom(name) => return self.trainers.get(name).map(|custom| custom.results.clone()).unwrap_or_default(),
        };
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Checks what can be checked without starting anything.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`], naming the key.
    pub fn check(&self) -> Result<(), Failure> {
        let bad = |message: String| Err(Failure::new(Code::InvalidRequest, message));
        for (key, words) in [("sleap_nn", &self.sleap_nn), ("sleap_train", &self.sleap_train)] {
            if words.is_empty() || words[0].is_empty() {
                return bad(format!("worker.{key} is empty: give the program and its first arguments, or remove the key"));
            }
        }
        for (name, custom) in &self.trainers {
            if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
                return bad(format!("worker.trainers.{name:?}: a trainer's name has 1 to 64 characters"));
            }
            if [SLEAP_NN, SLEAP_TRAIN].contains(&name.as_str()) {
                return bad(format!("worker.trainers.{name}: the name belongs to a built-in adapter; choose another"));
            }
            if custom.command.first().is_none_or(String::is_empty) {
                return bad(format!("worker.trainers.{name}.command is empty: give the program and its arguments"));
            }
            super::command::check_template(&custom.command)
                .map_err(|failure| Failure::new(Code::InvalidRequest, format!("worker.trainers.{name}.command: {failure}")))?;
        }
        Ok(())
    }
}

/// The trainer that a package of these files would surely get, as far as names tell; `None`: its content decides.
pub fn likely<'a>(files: impl Iterator<Item = &'a RelPath>, spec: &JobSpec, settings: &TrainerSettings) -> Option<Trainer> {
    if let Some(name) = &spec.trainer {
        return settings.find(name).ok();
    }
    let is = |path: &RelPath, kinds: &[&str]| path.file_name().rsplit_once('.').is_some_and(|(_, kind)| kinds.contains(&kind));
    let (mut yaml, mut json) = (false, false);
    let mut look = |path: &RelPath| {
        yaml |= is(path, &["yaml", "yml"]);
        json |= is(path, &["json"]);
    };
    if spec.configs.is_empty() {
        files.for_each(&mut look);
    } else {
        spec.configs.iter().for_each(&mut look);
    }
    match (yaml, json) {
        // A trainer of the operator's may take what the built-in adapters leave.
        _ if spec.configs.is_empty() && !settings.trainers.is_empty() => None,
        (true, false) => Some(Trainer::SleapNn),
        (false, true) => Some(Trainer::SleapTrain),
        _ => None,
    }
}

/// Whether a file name matches a pattern of `*` (any characters) and `?` (one character).
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_trainer_or_nothing() {
        let likely = |files: &[&str], configs: &[&str], trainer: Option<&str>, settings: &TrainerSettings| {
            let paths = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<RelPath>>();
            let spec = JobSpec { name: "x".into(), trainer: trainer.map(str::to_owned), configs: paths(configs), labels: None, attempt: 0 };
            super::likely(paths(files).iter(), &spec, settings)
        };
        let plain = TrainerSettings::default();
        assert_eq!(likely(&["a/centroid.yaml", "a/x.pkg.slp"], &[], None, &plain), Some(Trainer::SleapNn));
        assert_eq!(likely(&["profile.json", "x.slp"], &[], None, &plain), Some(Trainer::SleapTrain));
        assert_eq!(likely(&["profile.json", "jobs.yaml"], &[], None, &plain), None);
        assert_eq!(likely(&["profile.json", "jobs.yaml"], &["profile.json"], None, &plain), Some(Trainer::SleapTrain));
        assert_eq!(likely(&["centroid.yaml"], &[], Some("sleap-train"), &plain), Some(Trainer::SleapTrain));
        let custom = CustomTrainer { command: vec!["t".into()], configs: "*.yaml".into(), results: vec![], env: vec![] };
        let more = TrainerSettings { trainers: [("mine".to_owned(), custom)].into(), ..plain };
        assert_eq!(likely(&["centroid.yaml"], &[], None, &more), None);
        assert_eq!(more.program(&Trainer::Custom("mine".into())), Some("t"));
    }

    #[test]
    fn patterns_match_file_names() {
        for (pattern, name, expected) in [
            ("*.yaml", "centroid.yaml", true),
            ("*.yaml", "centroid.yml", false),
            ("*", "", true),
            ("a?c*", "abcd", true),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybz", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_operator_hears_which_key_is_wrong() {
        let custom = |command: &[&str]| CustomTrainer {
            command: command.iter().map(|&w| w.to_owned()).collect(),
            configs: any_yaml(),
            results: vec![],
            env: vec![],
        };
        let settings = |name: &str, command: &[&str]| TrainerSettings {
            trainers: BTreeMap::from([(name.to_owned(), custom(command))]),
            ..TrainerSettings::default()
        };
        assert!(settings("mine", &["python", "{config}"]).check().is_ok());
        for (bad, word) in [
            (settings("mine", &[]), "worker.trainers.mine.command"),
            (settings("mine", &["x", "{conf}"]), "{conf}"),
            (settings("sleap-nn", &["x"]), "built-in"),
            (TrainerSettings { sleap_nn: vec![], ..TrainerSettings::default() }, "worker.sleap_nn"),
        ] {
            let failure = bad.check().unwrap_err();
            assert!(failure.message.contains(word), "{failure}");
        }
    }

    #[test]
    fn an_unknown_trainer_is_answered_with_the_known_ones() {
        let failure = TrainerSettings::default().find("dlc").unwrap_err();
        assert!(failure.message.contains("\"dlc\"") && failure.message.contains("sleap-nn, sleap-train"), "{failure}");
    }
}
