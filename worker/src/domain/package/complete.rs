//! One configuration, read, its files found in the package, and checked.

use shared::domain::{error::Failure, path::RelPath};

use super::{
    Candidate, Document, PackageFile, Planner, Step, bad,
    view::{extension, stem},
};
use crate::domain::{
    config::{self, Value},
    trainer::Trainer,
};

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

impl<'a> Planner<'a, '_, '_> {
    /// Reads, completes and checks one configuration.
    pub(super) fn step(&mut self, candidate: Candidate) -> Result<(Trainer, Step), Failure> {
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

    pub(super) fn labels(&mut self, candidate: &Candidate, in_config: Option<&Value>, config: &RelPath) -> Result<Vec<RelPath>, Failure> {
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

    pub(super) fn find_config(&self, text: &str) -> Result<&'a PackageFile, Failure> {
        let with_extension = || self.view.find(&format!("{text}.yaml"));
        let found = self.view.find(text).or_else(with_extension);
        found.ok_or_else(|| bad(format!("the configuration {text:?} is not in the package; it has {}", self.view.names())))
    }
}
