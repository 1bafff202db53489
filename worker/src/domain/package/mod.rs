//! What a training package asks for: which configurations, with which labels, in which order, by which trainer.
//!
//! * order of trust: `jobs.yaml`; else `train-script.sh`, read as data; else every configuration found
//! * the package may lie in one top folder
//! * the job's specification overrides: its configurations, its labels, its trainer
//! * every path is looked up in the package; nothing else of the worker's disk can be named

mod candidates;
mod complete;
mod view;

use std::collections::BTreeSet;

use shared::domain::{
    error::{Code, Failure},
    job::JobSpec,
    path::RelPath,
};

use super::{
    config::{self, MAX_CONFIG, Value},
    trainer::{self, Trainer, TrainerSettings},
};
use view::{View, extension, stem};

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
mod tests;
