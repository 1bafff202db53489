//! How a trainer is called: the configuration that we write ourselves, and a fixed list of arguments. No shell, no free text of a client's.
//!
//! * sleap-nn: ports, output folder, run name and labels stand in the configuration (`trainer_config.zmq.*`, `ckpt_dir`, `run_name`)
//! * the legacy trainer: output folder and run name in the profile, ports and labels as arguments
//! * an operator's trainer: its template, placeholders filled in

use shared::domain::error::{Code, Failure};

use super::{
    config::Value,
    package::{Document, Step},
    trainer::{Trainer, TrainerSettings},
};

/// The two ports of a job, on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Where the trainer sends its progress.
    pub publish: u16,
    /// Where it hears what to do.
    pub controller: u16,
}

/// The folders of a job, absolute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places<'a> {
    /// The trainer's working directory: the package's files lie in it by their own paths.
    pub run: &'a str,
    /// Where the configuration that we write is put.
    pub config: &'a str,
    /// The results' root, a neighbour of `run`, which is why `../results` names it, too.
    pub results: &'a str,
}

/// One call of a trainer.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// The file to write first, if any: its name in [`Places::config`], and its text.
    pub config: Option<(String, String)>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Names of environment variables to hand on besides the usual ones.
    pub env: Vec<String>,
    /// Whether the trainer hears the control port: otherwise it can be cancelled only, not stopped.
    pub can_stop: bool,
}

/// The call for a step.
///
/// # Errors
/// [`Code::BadPackage`] when the operator's template cannot be filled in or its trainer is gone.
pub fn invocation(
    trainer: &Trainer,
    index: u32,
    step: &Step,
    settings: &TrainerSettings,
    ports: Ports,
    places: Places<'_>,
) -> Result<Invocation, Failure> {
    let env = settings.trainer_env.clone();
    match (trainer, &step.document) {
        (Trainer::Custom(name), _) => {
            let custom = settings.custom(name)?;
            let argv = fill_template(&custom.command, step, ports, places)?;
            let env = env.into_iter().chain(custom.env.iter().cloned()).collect();
            Ok(Invocation { config: None, argv, env, can_stop: custom.mentions("controller_port") })
        }
        (_, Document::Yaml(value)) => {
            let file = format!("step-{index}.yaml");
            let mut argv = settings.sleap_nn.clone();
            argv.extend(["train", "--config-name", &file, "--config-dir", places.config].map(str::to_owned));
            let text = sleap_nn_config(value.clone(), step, ports).to_yaml();
            Ok(Invocation { config: Some((file, text)), argv, env, can_stop: true })
        }
        (_, Document::Json(value)) => {
            let file = format!("step-{index}.json");
            let mut argv = settings.sleap_train.clone();
            argv.push(format!("{}/{file}", places.config));
            argv.extend(step.labels.iter().take(1).map(|path| format!("{}/{path}", places.run)));
            argv.extend(["--zmq", "--controller_port", &ports.controller.to_string()].map(str::to_owned));
            argv.extend(["--publish_port", &ports.publish.to_string()].map(str::to_owned));
            let text = sleap_train_config(value.clone(), step, ports).to_json();
            Ok(Invocation { config: Some((file, text)), argv, env, can_stop: true })
        }
        (_, Document::Opaque) => Err(Failure::new(Code::BadPackage, format!("{} is not a configuration for {trainer}", step.config))),
    }
}

fn sleap_nn_config(mut value: Value, step: &Step, ports: Ports) -> Value {
    value.set("trainer_config.ckpt_dir", Value::Text("../results".into()));
    value.set("trainer_config.run_name", Value::Text(step.run.clone()));
    value.set("trainer_config.save_ckpt", Value::Bool(true));
    value.set("trainer_config.zmq.publish_port", Value::Int(ports.publish.into()));
    value.set("trainer_config.zmq.controller_port", Value::Int(ports.controller.into()));
    if value.at("trainer_config.zmq.controller_polling_timeout").is_none() {
        value.set("trainer_config.zmq.controller_polling_timeout", Value::Int(10));
    }
    value
}

fn sleap_train_config(mut value: Value, step: &Step, ports: Ports) -> Value {
    let address = |port: u16| Value::Text(format!("tcp://127.0.0.1:{port}"));
    value.set("outputs.runs_folder", Value::Text("../results".into()));
    value.set("outputs.run_name", Value::Text(step.run.clone()));
    for key in ["run_name_prefix", "run_name_suffix"] {
        value.set(&format!("outputs.{key}"), Value::Text(String::new()));
    }
    value.set("outputs.zmq.subscribe_to_controller", Value::Bool(true));
    value.set("outputs.zmq.controller_address", address(ports.controller));
    value.set("outputs.zmq.publish_updates", Value::Bool(true));
    value.set("outputs.zmq.publish_address", address(ports.publish));
    value
}

const PLACEHOLDERS: [&str; 6] = ["config", "labels", "output", "run_name", "publish_port", "controller_port"];

/// Checks that a template has no placeholder but the known ones.
///
/// # Errors
/// [`Code::InvalidRequest`], naming it.
pub fn check_template(command: &[String]) -> Result<(), Failure> {
    command.iter().try_for_each(|word| replace(word, |_| String::new()).map(drop))
}

fn fill_template(command: &[String], step: &Step, ports: Ports, places: Places<'_>) -> Result<Vec<String>, Failure> {
    let value = |name: &str| match name {
        "config" => format!("{}/{}", places.run, step.config),
        "labels" => step.labels.first().map(|path| format!("{}/{path}", places.run)).unwrap_or_default(),
        "output" => format!("{}/{}", places.results, step.run),
        "run_name" => step.run.clone(),
        "publish_port" => ports.publish.to_string(),
        _ => ports.controller.to_string(),
    };
    command.iter().map(|word| replace(word, value)).collect()
}

/// Replaces `{name}`; a brace that is not round a plain lower-case name stays what it is (JSON arguments are full of them).
fn replace(word: &str, value: impl Fn(&str) -> String) -> Result<String, Failure> {
    let mut out = String::new();
    let mut rest = word;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let name = after.split_once('}').map(|(name, _)| name);
        match name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) {
            Some(name) if PLACEHOLDERS.contains(&name) => {
                out.push_str(&value(name));
                rest = &after[name.len() + 1..];
            }
            Some(name) => {
                let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
                return Err(Failure::new(Code::InvalidRequest, format!("{{{name}}} is not a placeholder; there are {known}")));
            }
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{config, trainer::CustomTrainer};

    const PORTS: Ports = Ports { publish: 41001, controller: 41000 };
    const PLACES: Places<'static> = Places { run: "/j/run", config: "/j/config", results: "/j/results" };

    fn step(document: Document) -> Step {
        Step {
            name: "centroid".into(),
            config: "top/centroid.yaml".parse().unwrap(),
            document,
            labels: vec!["top/x y.pkg.slp".parse().unwrap()],
            run: "r.n=1".into(),
            max_epochs: None,
        }
    }

    fn value(text: &str) -> Value {
        config::read_yaml("t", text.as_bytes()).unwrap()
    }

    #[test]
    fn sleap_nn_reads_everything_from_a_configuration_of_ours() {
        let document = Document::Yaml(value(
            "trainer_config: {ckpt_dir: /etc, zmq: {publish_port: 9001, controller_polling_timeout: 25}, optimizer: {lr: 1.0e-05}}",
        ));
        let call = invocation(&Trainer::SleapNn, 1, &step(document), &TrainerSettings::default(), PORTS, PLACES).unwrap();
        assert_eq!(call.argv, ["sleap-nn", "train", "--config-name", "step-1.yaml", "--config-dir", "/j/config"]);
        let (name, text) = call.config.unwrap();
        let written = value(&text);
        assert_eq!(name, "step-1.yaml");
        assert_eq!(written.at("trainer_config.ckpt_dir").unwrap().text(), Some("../results"));
        assert_eq!(written.at("trainer_config.run_name").unwrap().text(), Some("r.n=1"));
        assert_eq!(written.at("trainer_config.zmq.publish_port").unwrap().whole(), Some(41001));
        assert_eq!(written.at("trainer_config.zmq.controller_port").unwrap().whole(), Some(41000));
        assert_eq!(written.at("trainer_config.zmq.controller_polling_timeout").unwrap().whole(), Some(25));
        assert!(text.contains("lr: 1.0e-5\n"), "{text}");
    }

    #[test]
    fn the_operator_may_choose_another_executable() {
        let settings = TrainerSettings { sleap_nn: vec!["python3".into(), "/t/train.py".into()], ..TrainerSettings::default() };
        let call = invocation(&Trainer::SleapNn, 0, &step(Document::Yaml(value("{}"))), &settings, PORTS, PLACES).unwrap();
        assert_eq!(call.argv[..3], ["python3", "/t/train.py", "train"]);
    }

    #[test]
    fn the_legacy_trainer_gets_its_ports_as_arguments() {
        let document = Document::Json(value("{outputs: {run_name_prefix: p}}"));
        let call = invocation(&Trainer::SleapTrain, 0, &step(document), &TrainerSettings::default(), PORTS, PLACES).unwrap();
        let expected = "sleap-train|/j/config/step-0.json|/j/run/top/x y.pkg.slp|--zmq|--controller_port|41000|--publish_port|41001";
        assert_eq!(call.argv.join("|"), expected);
        let written = config::read_json("t", call.config.unwrap().1.as_bytes()).unwrap();
        assert_eq!(written.at("outputs.runs_folder").unwrap().text(), Some("../results"));
        assert_eq!(written.at("outputs.run_name_prefix").unwrap().text(), Some(""));
        assert_eq!(written.at("outputs.zmq.publish_address").unwrap().text(), Some("tcp://127.0.0.1:41001"));
    }

    #[test]
    fn an_operators_template_is_filled_in_word_by_word() {
        let command = ["t", "--c={config}", "{labels}", "{output}", "{run_name}:{publish_port}", "{\"a\": {}}"];
        let custom =
            CustomTrainer { command: command.map(str::to_owned).to_vec(), configs: "*".into(), results: vec![], env: vec!["MINE".into()] };
        let settings = TrainerSettings {
            trainers: BTreeMap::from([("mine".into(), custom)]),
            trainer_env: vec!["ALL".into()],
            ..TrainerSettings::default()
        };
        let call = invocation(&Trainer::Custom("mine".into()), 0, &step(Document::Opaque), &settings, PORTS, PLACES).unwrap();
        assert_eq!(
            call.argv,
            ["t", "--c=/j/run/top/centroid.yaml", "/j/run/top/x y.pkg.slp", "/j/results/r.n=1", "r.n=1:41001", "{\"a\": {}}"]
        );
        assert_eq!(call.env, ["ALL", "MINE"]);
        assert!(!call.can_stop);
        assert!(check_template(&["{nope}".into()]).unwrap_err().message.starts_with("{nope} is not a placeholder"));
    }
}
