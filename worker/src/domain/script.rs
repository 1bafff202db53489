//! `train-script.sh` of a training package, parsed as data; nothing in it is ever run.
//!
//! Spellings seen in the packages of SLEAP 1.2 to 1.6 and sleap-nn:
//!
//! ```text
//! sleap-train centroid.json project.pkg.slp
//! sleap-nn-train --config-name centroid.yaml --config-dir . trainer_config.ckpt_dir=models
//! sleap-nn train --config centroid.yaml
//! sleap train --config-name centroid.yaml --config-dir . 'trainer_config.run_name="x.n=181"'
//! python -m sleap.nn.training centroid.json project.pkg.slp
//! ```

use shared::domain::error::{Code, Failure};

use super::config::{self, Value};

/// One line of the script that trains.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptJob {
    /// The configuration, relative to the script, as written.
    pub config: String,
    /// The labels, where the line names them.
    pub labels: Option<String>,
    /// Values to set in the configuration, by path.
    pub overrides: Vec<(String, Value)>,
}

/// The training commands of a script, in order; none if there are none.
///
/// # Errors
/// [`Code::BadPackage`] for a training command that means something other than what it says (a shell variable, a substitution).
pub fn parse(text: &str) -> Result<Vec<ScriptJob>, Failure> {
    let mut jobs = Vec::new();
    for words in commands(text) {
        let Some(arguments) = training_arguments(&words) else { continue };
        if let Some(word) = words.iter().find(|word| word.expands) {
            return Err(bad(&format!("{:?} needs a shell, and the script is not run; write the value itself", word.text)));
        }
        if let Some(job) = parse_arguments(arguments)? {
            jobs.push(job);
        }
    }
    Ok(jobs)
}

fn bad(why: &str) -> Failure {
    Failure::new(Code::BadPackage, format!("train-script.sh cannot be used: {why}"))
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Word {
    text: String,
    /// Whether a shell would put something else in its place.
    expands: bool,
}

/// Splits a script into commands and words as a shell would, quotes removed.
fn commands(text: &str) -> Vec<Vec<Word>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<Word> = None;
    let mut chars = text.chars().peekable();
    let end_word = |word: &mut Option<Word>, commands: &mut Vec<Vec<Word>>| {
        if let Some(word) = word.take() {
            commands.last_mut().expect("there is always a last command").push(word);
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some('\r') => drop(chars.next_if_eq(&'\n')),
                Some(escaped) => word.get_or_insert_default().text.push(escaped),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.text.extend(chars.by_ref().take_while(|&c| c != '\''));
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default()),
            '#' if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            '\n' | ';' | '&' | '|' => {
                end_word(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            c if c.is_whitespace() => end_word(&mut word, &mut commands),
            c => {
                let word = word.get_or_insert_default();
                word.expands |= c == '$' || c == '`';
                word.text.push(c);
            }
        }
    }
    end_word(&mut word, &mut commands);
    commands.retain(|words| !words.is_empty());
    commands
}

fn double_quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut Word) {
    while let Some(c) = chars.next() {
        match c {
            '"' => return,
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c @ ('"' | '\\' | '$' | '`')) => word.text.push(c),
                Some(c) => word.text.extend(['\\', c]),
            },
            c => {
                word.expands |= c == '$' || c == '`';
                word.text.push(c);
            }
        }
    }
}

/// What follows the trainer's name, if the command is one that trains.
fn training_arguments(words: &[Word]) -> Option<&[Word]> {
    let is_assignment = |word: &&Word| word.text.split_once('=').is_some_and(|(name, _)| is_variable(name));
    let skip = words.iter().take_while(is_assignment).count();
    let words = &words[skip..];
    let text = |index: usize| words.get(index).map(|word| word.text.as_str());
    let program = text(0)?.rsplit('/').next()?;
    match program {
        "sleap-train" | "sleap-nn-train" => Some(&words[1..]),
        "sleap" | "sleap-nn" if text(1) == Some("train") => Some(&words[2..]),
        "python" | "python3"
            if text(1) == Some("-m") && matches!(text(2), Some("sleap.nn.training" | "sleap_nn.train" | "sleap_nn.cli")) =>
        {
            let skip = if text(3) == Some("train") { 4 } else { 3 };
            Some(&words[skip..])
        }
        _ => None,
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Options of the legacy trainer that take a value and do not change what is trained here.
const SKIPPED: [&str; 10] = [
    "--controller_port",
    "--publish_port",
    "--video-paths",
    "--val_labels",
    "--test_labels",
    "--run_name",
    "--prefix",
    "--suffix",
    "--gpu",
    "--base_checkpoint",
];

fn parse_arguments(words: &[Word]) -> Result<Option<ScriptJob>, Failure> {
    let (mut name, mut folder, mut positional, mut overrides) = (None, None, Vec::new(), Vec::new());
    let mut words = words.iter().map(|word| word.text.as_str());
    while let Some(word) = words.next() {
        if let Some(option) = word.strip_prefix('-').map(|_| word) {
            let (option, inline) = match option.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (option, None),
            };
            let mut value = || inline.or_else(|| words.next()).map(str::to_owned);
            match option {
                "--config-name" | "-cn" | "--config" | "-c" => name = value(),
                "--config-dir" | "-cd" | "--config-path" | "-cp" => folder = value(),
                "--labels_path" => positional.push(value().unwrap_or_default()),
                option if SKIPPED.contains(&option) => drop(value()),
                _ => {}
            }
        } else if let Some((path, value)) = parse_override(word)? {
            overrides.push((path, value));
        } else {
            positional.push(word.to_owned());
        }
    }
    let mut positional = positional.into_iter();
    let Some(config) = name.or_else(|| positional.next()).filter(|config| !config.is_empty()) else { return Ok(None) };
    let config = match folder.as_deref() {
        None | Some("." | "./" | "") => config,
        Some(folder) => format!("{}/{config}", folder.trim_end_matches('/')),
    };
    Ok(Some(ScriptJob { config, labels: positional.next(), overrides }))
}

/// `[+[+]]a.b.c=value`, the value as YAML: Hydra's grammar, as far as packages use it.
fn parse_override(word: &str) -> Result<Option<(String, Value)>, Failure> {
    let Some((path, text)) = word.split_once('=') else { return Ok(None) };
    if path.starts_with('~') {
        return Err(bad(&format!("{word:?} removes a key, which is not supported; edit the configuration instead")));
    }
    let path = path.trim_start_matches('+');
    let is_path = !path.is_empty() && path.split('.').all(is_variable);
    if !is_path {
        return Ok(None);
    }
    let value = config::read_yaml("train-script.sh", text.as_bytes()).unwrap_or_else(|_| Value::Text(text.to_owned()));
    Ok(Some((path.to_owned(), value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> ScriptJob {
        let jobs = parse(text).unwrap();
        assert_eq!(jobs.len(), 1, "{text}: {jobs:?}");
        jobs[0].clone()
    }

    #[test]
    fn every_spelling_names_its_configuration() {
        for line in [
            "sleap-train centroid.yaml",
            "sleap-nn-train --config-name centroid.yaml --config-dir .",
            "sleap-nn train --config-name=centroid.yaml --config-dir=./",
            "sleap-nn train centroid.yaml",
            "sleap-nn train --config centroid.yaml",
            "sleap train --config-name centroid.yaml --config-dir . 'trainer_config.ckpt_dir=\"models\"'",
            "/opt/sleap/bin/sleap-nn train -c centroid.yaml",
            "CUDA_VISIBLE_DEVICES=0 sleap-train 'centroid.yaml'",
            "python -m sleap_nn.train --config-name centroid.yaml",
            "cd \"$(dirname $0)\"\nsleap train \\\n  --config-name centroid.yaml  # the first\n",
        ] {
            assert_eq!(one(line).config, "centroid.yaml", "{line}");
        }
        let legacy = one("#!/bin/bash\nsleap-train --zmq --controller_port 9000 \"a b.json\" project.pkg.slp --save_viz\n");
        assert_eq!((legacy.config.as_str(), legacy.labels.as_deref()), ("a b.json", Some("project.pkg.slp")));
        assert_eq!(one("sleap train --config-name c.yaml --config-dir conf").config, "conf/c.yaml");
    }

    #[test]
    fn overrides_are_values_of_the_configuration() {
        let job = one("sleap train --config-name c.yaml 'trainer_config.run_name=\"x.n=181\"' ++trainer_config.max_epochs=3 \
             'data_config.train_labels_path=[\"p q.slp\"]' trainer_config.seed=null");
        assert_eq!(
            job.overrides,
            [
                ("trainer_config.run_name".into(), Value::Text("x.n=181".into())),
                ("trainer_config.max_epochs".into(), Value::Int(3)),
                ("data_config.train_labels_path".into(), Value::List(vec![Value::Text("p q.slp".into())])),
                ("trainer_config.seed".into(), Value::Null),
            ]
        );
    }

    #[test]
    fn several_lines_are_several_jobs_and_other_commands_are_nothing() {
        let jobs = parse("#!/bin/bash\nexport A=$HOME\nsleap-train a.json x.slp && sleap-train b.json x.slp\nsleap-track x.slp\n").unwrap();
        assert_eq!(jobs.iter().map(|job| job.config.as_str()).collect::<Vec<_>>(), ["a.json", "b.json"]);
        assert_eq!(parse("#!/bin/bash\n").unwrap(), []);
        assert_eq!(parse("# sleap-train a.json").unwrap(), []);
    }

    #[test]
    fn what_only_a_shell_could_resolve_is_refused() {
        for line in ["sleap-train $CONFIG x.slp", "sleap-train \"`ls`\"", "sleap train --config-name c.yaml ~trainer_config.zmq=1"] {
            assert_eq!(parse(line).unwrap_err().code, Code::BadPackage, "{line}");
        }
        assert_eq!(one("sleap-train '$x.json'").config, "$x.json");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(sleap-train |sleap train |[a-z.=\\[\\]'\"\\\\$# \n;&-]){0,40}") {
            let _ = parse(&text);
        }
    }
}
