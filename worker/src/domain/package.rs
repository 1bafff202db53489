//! What a training package asks for: which configurations, with which labels, in which order, by which trainer.
//!
//! * order of trust: `jobs.yaml`; else `train-script.sh`, read as data; else every configuration found
//! * the package may lie in one top folder
//! * the job's specification overrides: its configurations, its labels, its trainer
//! * every path is looked up in the package; nothing else of the worker's disk can be named

use std::collections::BTreeSet;

use shared::domain::{
    error::{Code, Failure},
    job::JobSpec,
    path::RelPath,
};

use super::{
    config::{self, MAX_CONFIG, Value},
    script,
    trainer::{self, Trainer, TrainerSettings},
};

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFile {
    /// Where it is in the package.
    pub path: RelPath,
    /// Its length in bytes.
    pub size: u64,
}

/// What a job does: its steps, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Who trains.
    pub trainer: Trainer,
    /// At least one.
    pub steps: Vec<Step>,
    /// What a person should know about how the package was read.
    pub notices: Vec<String>,
}

/// One training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What people call it: the configuration's file name without its extension.
    pub name: String,
    /// The configuration, in the package.
    pub config: RelPath,
    /// The configuration, read, checked, its labels filled in; how it is handed to the trainer is [`super::command`]'s.
    pub document: Document,
    /// The labels to train on, in the package.
    pub labels: Vec<RelPath>,
    /// The folder of its results: one name, unique in the plan.
    pub run: String,
    /// How many epochs the configuration allows, where it says.
    pub max_epochs: Option<u32>,
}

/// A configuration, as far as the worker understands it.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// sleap-nn's.
    Yaml(Value),
    /// The legacy trainer's.
    Json(Value),
    /// An operator's trainer's: handed on as it is.
    Opaque,
}

/// A configuration that shall be trained, before it has been read.
#[derive(Debug, Clone, Default)]
struct Candidate {
    config: String,
    labels: Vec<String>,
    run: Option<String>,
    overrides: Vec<(String, Value)>,
}

/// Where a kind of configuration keeps what the worker must know.
struct Keys {
    train: &'static str,
    /// Whether the training labels are a list.
    list: bool,
    others: [&'static str; 2],
    weights: &'static [&'static str],
    epochs: &'static str,
    run: &'static str,
}

const YAML_KEYS: Keys = Keys {
    train: "data_config.train_labels_path",
    list: true,
    others: ["data_config.val_labels_path", "data_config.test_file_path"],
    weights: &["trainer_config.resume_ckpt_path", "model_config.pretrained_backbone_weights", "model_config.pretrained_head_weights"],
    epochs: "trainer_config.max_epochs",
    run: "trainer_config.run_name",
};

const JSON_KEYS: Keys = Keys {
    train: "data.labels.training_labels",
    list: false,
    others: ["data.labels.validation_labels", "data.labels.test_labels"],
    weights: &["model.base_checkpoint"],
    epochs: "optimization.epochs",
    run: "outputs.run_name",
};

/// What the built-in adapters look for.
const BUILT_IN: &str = "jobs.yaml with a training list; train-script.sh with a training command; configurations (*.yaml with model_config \
                        and trainer_config, or SLEAP profiles *.json)";

/// Reads a small file of the package.
pub type Read<'a> = dyn FnMut(&RelPath) -> Result<Vec<u8>, Failure> + 'a;

/// Decides what a package asks for. `read` is called for files of at most [`MAX_CONFIG`] bytes only.
///
/// # Errors
/// [`Code::BadPackage`]: what is wrong with which file, or, where no job is found, what was looked for.
pub fn plan(files: &[PackageFile], read: &mut Read<'_>, spec: &JobSpec, settings: &TrainerSettings) -> Result<Plan, Failure> {
    let view = View::new(files);
    let asked = spec.trainer.as_deref().map(|name| settings.find(name)).transpose()?;
    let mut planner = Planner { view, read, spec, settings, notices: Vec::new() };
    let (trainer, mut steps) = match asked {
        Some(Trainer::Custom(name)) => planner.custom(&name)?,
        built_in => match planner.built_in(built_in.clone())? {
            Some(found) => found,
            None if built_in.is_none() => planner.any_custom().unwrap_or_else(|| Err(planner.no_job(BUILT_IN)))?,
            None => return Err(planner.no_job(BUILT_IN)),
        },
    };
    name_runs(&mut steps);
    Ok(Plan { trainer, steps, notices: planner.notices })
}

/// The package's files, seen from the folder in which its configurations lie.
struct View<'a> {
    files: Vec<&'a PackageFile>,
    /// The one top folder, if there is one; with its `/`.
    base: String,
}

impl<'a> View<'a> {
    fn new(files: &'a [PackageFile]) -> Self {
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
    fn find(&self, text: &str) -> Option<&'a PackageFile> {
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
    fn top(&self) -> impl Iterator<Item = &'a PackageFile> {
        let depth = self.base.matches('/').count();
        self.files.iter().filter(move |file| file.path.as_str().matches('/').count() == depth).copied()
    }

    fn names(&self) -> String {
        let mut names: Vec<_> = self.files.iter().take(8).map(|file| file.path.as_str()).collect();
        if self.files.len() > names.len() {
            names.push("…");
        }
        if names.is_empty() { "nothing".into() } else { names.join(", ") }
    }
}

struct Planner<'a, 'r, 's> {
    view: View<'a>,
    read: &'r mut Read<'s>,
    spec: &'a JobSpec,
    settings: &'a TrainerSettings,
    notices: Vec<String>,
}

impl<'a> Planner<'a, '_, '_> {
    /// Steps for the built-in adapters; `None`: the package names no job of theirs.
    fn built_in(&mut self, asked: Option<Trainer>) -> Result<Option<Found>, Failure> {
        let candidates = self.candidates()?;
        if candidates.is_empty() {
            return Ok(None);
        }
        let mut trainer = asked;
        let mut steps = Vec::new();
        for candidate in candidates {
            let (wanted, step) = self.step(candidate)?;
            match &trainer {
                Some(trainer) if *trainer != wanted => {
                    return Err(bad(format!("{} is a configuration for {wanted}, not for {trainer}; submit them apart", step.config)));
                }
                _ => trainer = Some(wanted),
            }
            steps.push(step);
        }
        Ok(trainer.map(|trainer| (trainer, steps)))
    }

    /// What shall be trained, in order of trust.
    fn candidates(&mut self) -> Result<Vec<Candidate>, Failure> {
        let mut listed = self.jobs_yaml_entries()?;
        if listed.is_empty() {
            listed = self.script_entries()?;
        }
        if !self.spec.configs.is_empty() {
            let config_of = |view: &View<'_>, text: &str| view.find(text).map(|file| file.path.clone());
            return Ok(self
                .spec
                .configs
                .iter()
                .map(|path| {
                    let same = |candidate: &&Candidate| config_of(&self.view, &candidate.config) == config_of(&self.view, path.as_str());
                    let known = listed.iter().find(same).cloned();
                    known.unwrap_or_else(|| Candidate { config: path.as_str().to_owned(), ..Candidate::default() })
                })
                .collect());
        }
        if listed.is_empty() { self.every_config() } else { Ok(listed) }
    }

    fn jobs_yaml_entries(&mut self) -> Result<Vec<Candidate>, Failure> {
        let Some(file) = self.top_file(&["jobs.yaml", "jobs.yml"]) else { return Ok(Vec::new()) };
        let value = config::read_yaml(file.path.as_str(), &self.bytes(file)?)?;
        let Some(Value::List(entries)) = value.at("training") else { return Ok(Vec::new()) };
        let mut candidates = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let text = |key: &str| entry.at(key).and_then(Value::text).filter(|text| !text.is_empty()).map(str::to_owned);
            let config = text("cfg")
                .or_else(|| text("config"))
                .ok_or_else(|| bad(format!("{}: training entry {} names no configuration (cfg)", file.path, index + 1)))?;
            let labels = entry.at("train_labels").map(Value::texts).unwrap_or_default();
            candidates.push(Candidate {
                config,
                labels: labels.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect(),
                run: text("run_path"),
                overrides: Vec::new(),
            });
        }
        Ok(candidates)
    }

    fn script_entries(&mut self) -> Result<Vec<Candidate>, Failure> {
        let Some(file) = self.top_file(&["train-script.sh"]) else { return Ok(Vec::new()) };
        let bytes = self.bytes(file)?;
        let jobs = script::parse(&String::from_utf8_lossy(&bytes))?;
        Ok(jobs
            .into_iter()
            .map(|job| Candidate { config: job.config, labels: job.labels.into_iter().collect(), run: None, overrides: job.overrides })
            .collect())
    }

    /// Every file at the base that looks like a configuration: sleap-nn's, or else the legacy trainer's. Centroid models first.
    fn every_config(&mut self) -> Result<Vec<Candidate>, Failure> {
        let yaml = self.configs_with(&["yaml", "yml"], &["trainer_config", "model_config"])?;
        let mut found = if yaml.is_empty() { self.configs_with(&["json"], &["model", "optimization"])? } else { yaml };
        // A folder of a trained model holds the configuration twice.
        if found.iter().any(|path| path.file_name().starts_with("initial_config.")) {
            found.retain(|path| !path.file_name().starts_with("training_config."));
        }
        found.sort_by_key(|path| (!path.file_name().contains("centroid"), path.clone()));
        Ok(found.into_iter().map(|path| Candidate { config: path.as_str().to_owned(), ..Candidate::default() }).collect())
    }

    fn configs_with(&mut self, extensions: &[&str], keys: &[&str]) -> Result<Vec<RelPath>, Failure> {
        let mut found = Vec::new();
        let top: Vec<_> = self.view.top().filter(|file| extensions.contains(&extension(&file.path))).collect();
        for file in top {
            if file.size > MAX_CONFIG || file.path.file_name().starts_with("jobs.") {
                continue;
            }
            let bytes = self.bytes(file)?;
            let name = file.path.as_str();
            let value = if extension(&file.path) == "json" { config::read_json(name, &bytes)? } else { config::read_yaml(name, &bytes)? };
            if keys.iter().all(|key| value.at(key).is_some()) {
                found.push(file.path.clone());
            }
        }
        Ok(found)
    }

    /// Reads, completes and checks one configuration.
    fn step(&mut self, candidate: Candidate) -> Result<(Trainer, Step), Failure> {
        let file = self.find_config(&candidate.config)?;
        let path = file.path.clone();
        let bytes = self.bytes(file)?;
        let is_json = extension(&path) == "json";
        let (trainer, keys) = if is_json { (Trainer::SleapTrain, JSON_KEYS) } else { (Trainer::SleapNn, YAML_KEYS) };
        let mut value = if is_json { config::read_json(path.as_str(), &bytes)? } else { config::read_yaml(path.as_str(), &bytes)? };
        if !matches!(value, Value::Map(_)) {
            return Err(bad(format!("{path} is not a training configuration: it has no keys")));
        }
        for (key, new) in &candidate.overrides {
            value.set(key, new.clone());
        }
        if let Some(why) = config::refusal(&value) {
            return Err(bad(format!("{path} is refused: {why}")));
        }
        let labels = self.labels(&candidate, value.at(keys.train), &path)?;
        let texts: Vec<_> = labels.iter().map(|path| Value::Text(path.as_str().to_owned())).collect();
        value.set(keys.train, if keys.list { Value::List(texts) } else { texts.into_iter().next().unwrap_or(Value::Null) });
        self.place_others(&mut value, &keys, &path)?;
        let run = candidate.run.as_deref().and_then(|run| run.trim_end_matches('/').rsplit(['/', '\\']).next()).map(str::to_owned);
        let step = Step {
            name: stem(&path).to_owned(),
            labels,
            run: run.or_else(|| value.at(keys.run).and_then(Value::text).map(str::to_owned)).unwrap_or_default(),
            max_epochs: value.at(keys.epochs).and_then(Value::whole),
            document: if is_json { Document::Json(value) } else { Document::Yaml(value) },
            config: path,
        };
        Ok((trainer, step))
    }

    /// The other files that a configuration names must be in the package, too; weights only where the operator allows them.
    fn place_others(&mut self, value: &mut Value, keys: &Keys, config: &RelPath) -> Result<(), Failure> {
        for &key in keys.weights {
            if value.at(key).is_some_and(|value| !value.is_empty()) && !self.settings.allow_checkpoints {
                return Err(bad(format!(
                    "{config} is refused: {key} loads weights, which can run code, and this worker does not allow it; set it to null, or \
                     ask its operator for allow_checkpoints"
                )));
            }
        }
        for &key in keys.others.iter().chain(keys.weights) {
            let Some(named) = value.at(key).filter(|value| !value.is_empty()) else { continue };
            let place = |text: &str| {
                let file = self.view.find(text).ok_or_else(|| {
                    bad(format!("{config} names {text:?} ({key}), which is not in the package; add it, or set the key to null"))
                })?;
                Ok(Value::Text(file.path.as_str().to_owned()))
            };
            let placed = match named {
                Value::List(_) => Value::List(named.texts().into_iter().map(place).collect::<Result<_, Failure>>()?),
                Value::Text(text) => place(text)?,
                _ => return Err(bad(format!("{config}: {key} must be a path or a list of paths"))),
            };
            value.set(key, placed);
        }
        if value.at("data_config.cache_img_path").is_some_and(|value| !value.is_empty()) {
            self.notices.push(format!("{config}: cache_img_path belongs to another machine and is not used"));
            value.set("data_config.cache_img_path", Value::Null);
        }
        Ok(())
    }

    fn labels(&mut self, candidate: &Candidate, in_config: Option<&Value>, config: &RelPath) -> Result<Vec<RelPath>, Failure> {
        if let Some(labels) = &self.spec.labels {
            return Ok(vec![self.find_labels(labels.as_str())?]);
        }
        if !candidate.labels.is_empty() {
            return candidate.labels.iter().map(|text| self.find_labels(text)).collect();
        }
        let named = in_config.map(Value::texts).unwrap_or_default();
        let named: Vec<_> = named.into_iter().filter(|text| !text.is_empty()).collect();
        let found: Option<Vec<_>> = named.iter().map(|text| self.view.find(text).map(|file| file.path.clone())).collect();
        if let Some(found) = found.filter(|found| !found.is_empty()) {
            return Ok(found);
        }
        for suffix in [".pkg.slp", ".slp"] {
            let mut all = self.view.files.iter().filter(|file| file.path.as_str().ends_with(suffix));
            if let (Some(only), None) = (all.next(), all.next()) {
                if let Some(named) = named.first() {
                    self.notices.push(format!("{config} names the labels {named:?}; the package's {} is used", only.path));
                }
                return Ok(vec![only.path.clone()]);
            }
        }
        let wanted = named.first().map_or("no labels".to_owned(), |text| format!("the labels {text:?}"));
        Err(bad(format!(
            "{config} names {wanted}, and the package has not exactly one labels file (*.pkg.slp) to take instead; it has {}. Use SLEAP's \
             \"Export training job package\", or choose with --labels",
            self.view.names()
        )))
    }

    fn find_labels(&self, text: &str) -> Result<RelPath, Failure> {
        let missing = || {
            let hint =
                if text.ends_with(".pkg.slp") { "" } else { " SLEAP's \"Export training job package\" makes a .pkg.slp with images." };
            bad(format!("the labels {text:?} are not in the package; it has {}.{hint}", self.view.names()))
        };
        self.view.find(text).map(|file| file.path.clone()).ok_or_else(missing)
    }

    fn find_config(&self, text: &str) -> Result<&'a PackageFile, Failure> {
        let with_extension = || self.view.find(&format!("{text}.yaml"));
        let found = self.view.find(text).or_else(with_extension);
        found.ok_or_else(|| bad(format!("the configuration {text:?} is not in the package; it has {}", self.view.names())))
    }

    fn top_file(&self, names: &[&str]) -> Option<&'a PackageFile> {
        self.view.top().find(|file| names.contains(&file.path.file_name()))
    }

    fn bytes(&mut self, file: &PackageFile) -> Result<Vec<u8>, Failure> {
        if file.size > MAX_CONFIG {
            return Err(bad(format!("{} has {} bytes; a configuration or script has at most 1 MiB", file.path, file.size)));
        }
        (self.read)(&file.path)
    }

    fn any_custom(&mut self) -> Option<Result<Found, Failure>> {
        let fits = |custom: &trainer::CustomTrainer| self.view.top().any(|file| trainer::matches(&custom.configs, file.path.file_name()));
        let name = self.settings.trainers.iter().find(|(_, custom)| fits(custom)).map(|(name, _)| name.clone())?;
        Some(self.custom(&name))
    }

    /// Steps for a trainer of the operator's: one for each file that its pattern names.
    fn custom(&mut self, name: &str) -> Result<Found, Failure> {
        let custom = self.settings.custom(name)?;
        let mut configs = Vec::new();
        for path in &self.spec.configs {
            configs.push(self.find_config(path.as_str())?);
        }
        if configs.is_empty() {
            let matching = |file: &&PackageFile| trainer::matches(&custom.configs, file.path.file_name());
            configs = self.view.top().filter(matching).filter(|file| file.path.file_name() != "jobs.yaml").collect();
        }
        if configs.is_empty() {
            return Err(self.no_job(&format!("configurations of the trainer {name} ({})", custom.configs)));
        }
        let wants_labels = custom.mentions("labels");
        let mut steps = Vec::new();
        for file in configs {
            self.check_opaque(file)?;
            let labels = if wants_labels { self.labels(&Candidate::default(), None, &file.path)? } else { Vec::new() };
            steps.push(Step {
                name: stem(&file.path).to_owned(),
                config: file.path.clone(),
                document: Document::Opaque,
                labels,
                run: String::new(),
                max_epochs: None,
            });
        }
        Ok((Trainer::Custom(name.to_owned()), steps))
    }

    /// A configuration that is handed on as it is must not ask for code where it is in a form that can.
    fn check_opaque(&mut self, file: &PackageFile) -> Result<(), Failure> {
        let name = file.path.as_str();
        let value = match extension(&file.path) {
            "json" => config::read_json(name, &self.bytes(file)?)?,
            "yaml" | "yml" => config::read_yaml(name, &self.bytes(file)?)?,
            _ => return Ok(()),
        };
        config::refusal(&value).map_or(Ok(()), |why| Err(bad(format!("{name} is refused: {why}"))))
    }

    fn no_job(&self, looked_for: &str) -> Failure {
        bad(format!(
            "no training job was found in the package. Looked for: {looked_for}. It has {}. Use SLEAP's \"Export training job package\" and \
             submit the zip or its unpacked folder, or name a configuration with --config",
            self.view.names()
        ))
    }
}

type Found = (Trainer, Vec<Step>);

fn bad(message: String) -> Failure {
    Failure::new(Code::BadPackage, message)
}

fn extension(path: &RelPath) -> &str {
    path.file_name().rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn stem(path: &RelPath) -> &str {
    path.file_name().rsplit_once('.').map_or(path.file_name(), |(stem, _)| stem)
}

/// Makes every run's name one plain file name, there but once.
fn name_runs(steps: &mut [Step]) {
    let mut taken = BTreeSet::new();
    for step in steps {
        let wanted = if step.run.is_empty() { &step.name } else { &step.run };
        let clean: String = wanted.chars().map(|c| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c }).take(100).collect();
        let clean = clean.trim_matches([' ', '.']);
        let clean = if clean.parse::<RelPath>().is_ok() { clean } else { "run" };
        let mut name = clean.to_owned();
        let mut count = 1;
        while !taken.insert(name.to_lowercase()) {
            count += 1;
            name = format!("{clean}-{count}");
        }
        step.run = name;
    }
}

#[cfg(test)]
#[path = "package_tests.rs"]
mod tests;
