//! Which configurations shall be trained: `jobs.yaml`, else `train-script.sh`, else every configuration found.

use shared::domain::{error::Failure, path::RelPath};

use super::{
    Candidate, PackageFile, Planner, bad,
    view::{View, extension},
};
use crate::domain::{
    config::{self, MAX_CONFIG, Value},
    script,
};

impl<'a> Planner<'a, '_, '_> {
    /// What shall be trained, in order of trust.
    pub(super) fn candidates(&mut self) -> Result<Vec<Candidate>, Failure> {
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

    fn top_file(&self, names: &[&str]) -> Option<&'a PackageFile> {
        self.view.top().find(|file| names.contains(&file.path.file_name()))
    }
}
