use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CONFIG: &str = "data_config:\n  train_labels_path: [C:\\data\\x.pkg.slp]\n  val_labels_path: null\nmodel_config: {init_weights: default}\n\
                      trainer_config:\n  max_epochs: 3\n  run_name: null\n  resume_ckpt_path: null\n";
const PROFILE: &str = r#"{"data": {"labels": {"training_labels": null}}, "model": {"base_checkpoint": null}, "optimization": {"epochs": 7}, "outputs": {"run_name": "r"}}"#;

fn spec() -> JobSpec {
    JobSpec { name: "fly".into(), trainer: None, configs: vec![], labels: None, attempt: 0 }
}

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

fn plan_with(files: &[(&str, &str)], spec: &JobSpec, settings: &TrainerSettings) -> Result<Plan, Failure> {
    let contents: BTreeMap<RelPath, &str> = files.iter().map(|&(name, text)| (path(name), text)).collect();
    let listing: Vec<_> = contents.iter().map(|(path, text)| PackageFile { path: path.clone(), size: text.len() as u64 }).collect();
    plan(&listing, &mut |path| Ok(contents[path].as_bytes().to_vec()), spec, settings)
}

fn plan_of(files: &[(&str, &str)]) -> Result<Plan, Failure> {
    plan_with(files, &spec(), &TrainerSettings::default())
}

fn summary(plan: &Plan) -> Vec<(&str, &str, &str)> {
    plan.steps.iter().map(|step| (step.config.as_str(), step.labels.first().map_or("", RelPath::as_str), step.run.as_str())).collect()
}

const JOBS: &str = "inference: []\ntraining:\n- cfg: centroid.yaml\n  run_path: models/a.centroid.n=1\n  train_labels: x.pkg.slp\n\
                    - cfg: centered_instance.yaml\n  run_path: models/a.ci.n=1\n  train_labels: x.pkg.slp\n";
const SCRIPT: &str =
    "#!/bin/bash\nsleap train --config-name centroid.yaml --config-dir . 'trainer_config.run_name=\"s.n=1\"' trainer_config.max_epochs=9\n";

#[test]
fn jobs_yaml_is_trusted_first_then_the_script_then_what_is_there() {
    let base = [("centroid.yaml", CONFIG), ("centered_instance.yaml", CONFIG), ("x.pkg.slp", "")];
    let with = |more: &[(&'static str, &'static str)]| plan_of(&[&base[..], more].concat()).unwrap();

    let plan = with(&[("jobs.yaml", JOBS), ("train-script.sh", SCRIPT)]);
    assert_eq!(summary(&plan), [("centroid.yaml", "x.pkg.slp", "a.centroid.n=1"), ("centered_instance.yaml", "x.pkg.slp", "a.ci.n=1")]);
    assert_eq!((plan.trainer, plan.steps[0].max_epochs), (Trainer::SleapNn, Some(3)));

    let plan = with(&[("train-script.sh", SCRIPT)]);
    assert_eq!(summary(&plan), [("centroid.yaml", "x.pkg.slp", "s.n=1")]);
    assert_eq!(plan.steps[0].max_epochs, Some(9));

    let plan = with(&[("notes.yaml", "a: 1")]);
    assert_eq!(summary(&plan), [("centroid.yaml", "x.pkg.slp", "centroid"), ("centered_instance.yaml", "x.pkg.slp", "centered_instance")]);
}

#[test]
fn labels_are_placed_in_the_configuration() {
    let plan = plan_of(&[("top/c.yaml", CONFIG), ("top/x.pkg.slp", ""), ("__MACOSX/top/._c.yaml", "junk")]).unwrap();
    let Document::Yaml(value) = &plan.steps[0].document else { panic!("{plan:?}") };
    assert_eq!(value.at("data_config.train_labels_path").unwrap().texts(), ["top/x.pkg.slp"]);
    assert_eq!(plan.notices, [] as [String; 0], "the name is the same: nothing to tell");

    let other = plan_of(&[("c.yaml", CONFIG), ("y.pkg.slp", "")]).unwrap();
    assert_eq!(summary(&other)[0].1, "y.pkg.slp");
    assert!(other.notices[0].contains("y.pkg.slp"), "{:?}", other.notices);
}

#[test]
fn a_folder_round_everything_is_tolerated() {
    let plan = plan_of(&[
        ("my job/jobs.yaml", JOBS),
        ("my job/centroid.yaml", CONFIG),
        ("my job/centered_instance.yaml", CONFIG),
        ("my job/x.pkg.slp", ""),
    ])
    .unwrap();
    assert_eq!(summary(&plan)[0], ("my job/centroid.yaml", "my job/x.pkg.slp", "a.centroid.n=1"));
}

#[test]
fn a_json_profile_is_the_legacy_trainers() {
    let plan = plan_of(&[("p.json", PROFILE), ("train-script.sh", "sleap-train p.json x.pkg.slp"), ("x.pkg.slp", "")]).unwrap();
    assert_eq!((&plan.trainer, plan.steps[0].max_epochs, plan.steps[0].run.as_str()), (&Trainer::SleapTrain, Some(7), "r"));
    let Document::Json(value) = &plan.steps[0].document else { panic!("{plan:?}") };
    assert_eq!(value.at("data.labels.training_labels").unwrap().text(), Some("x.pkg.slp"));
}

#[test]
fn the_specification_overrides() {
    let files = [("jobs.yaml", JOBS), ("centroid.yaml", CONFIG), ("centered_instance.yaml", CONFIG), ("x.pkg.slp", ""), ("y.slp", "")];
    let settings = TrainerSettings::default();
    let only = JobSpec { configs: vec![path("centered_instance.yaml")], ..spec() };
    assert_eq!(summary(&plan_with(&files, &only, &settings).unwrap()), [("centered_instance.yaml", "x.pkg.slp", "a.ci.n=1")]);
    let labels = JobSpec { labels: Some(path("y.slp")), ..spec() };
    assert_eq!(summary(&plan_with(&files, &labels, &settings).unwrap())[0].1, "y.slp");
    let trainer = JobSpec { trainer: Some("sleap-train".into()), ..spec() };
    assert!(plan_with(&files, &trainer, &settings).unwrap_err().message.contains("centroid.yaml is a configuration for sleap-nn"));
    let unknown = JobSpec { trainer: Some("x".into()), ..spec() };
    assert!(plan_with(&files, &unknown, &settings).unwrap_err().message.contains("no trainer \"x\""));
}

#[test]
fn an_operators_trainer_gets_its_own_configurations() {
    let custom = |configs: &str, command: &[&str]| trainer::CustomTrainer {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        configs: configs.into(),
        results: vec![],
        env: vec![],
    };
    let mine = custom("*.toml", &["t", "{config}", "{labels}"]);
    let other = custom("*.yaml", &["t", "{config}"]);
    let settings =
        TrainerSettings { trainers: BTreeMap::from([("mine".into(), mine), ("other".into(), other)]), ..TrainerSettings::default() };
    let plan = plan_with(&[("m.toml", "x"), ("x.pkg.slp", "")], &spec(), &settings).unwrap();
    assert_eq!((&plan.trainer, summary(&plan)), (&Trainer::Custom("mine".into()), vec![("m.toml", "x.pkg.slp", "m")]));

    let asked = JobSpec { trainer: Some("other".into()), ..spec() };
    let plan = plan_with(&[("c.yaml", CONFIG), ("jobs.yaml", JOBS)], &asked, &settings).unwrap();
    assert_eq!(summary(&plan), [("c.yaml", "", "c")]);
    assert_eq!(plan.steps[0].document, Document::Opaque);
    let evil = plan_with(&[("c.yaml", "_target_: os.system")], &asked, &settings).unwrap_err();
    assert!(evil.message.contains("_target_"), "{evil}");
    let none = plan_with(&[("c.toml", "")], &asked, &settings).unwrap_err();
    assert!(none.message.contains("*.yaml"), "{none}");
}

#[test]
fn what_cannot_be_used_is_said_in_a_sentence() {
    let ckpt = CONFIG.replace("resume_ckpt_path: null", "resume_ckpt_path: /etc/evil.ckpt");
    let weights = CONFIG.replace("init_weights: default", "pretrained_backbone_weights: w.ckpt");
    let env = CONFIG.replace("run_name: null", "run_name: '${oc.env:TOKEN}'");
    let val = CONFIG.replace("val_labels_path: null", "val_labels_path: [/home/me/v.slp]");
    for (files, words) in [
        (vec![("x.pkg.slp", "")], vec!["no training job was found", "jobs.yaml", "train-script.sh", "x.pkg.slp", "--config"]),
        (vec![], vec!["no training job was found", "It has nothing"]),
        (vec![("jobs.yaml", "training: []"), ("train-script.sh", "#!/bin/bash\n")], vec!["no training job was found"]),
        (vec![("jobs.yaml", JOBS), ("x.pkg.slp", "")], vec!["centroid.yaml", "not in the package"]),
        (
            vec![("jobs.yaml", JOBS), ("centroid.yaml", CONFIG), ("centered_instance.yaml", CONFIG)],
            vec!["\"x.pkg.slp\"", "not in the package"],
        ),
        (vec![("c.yaml", CONFIG), ("a.slp", ""), ("b.slp", "")], vec!["x.pkg.slp", "a.slp, b.slp", "--labels"]),
        (vec![("c.yaml", &ckpt), ("x.pkg.slp", "")], vec!["resume_ckpt_path", "allow_checkpoints"]),
        (vec![("c.yaml", &weights), ("x.pkg.slp", "")], vec!["pretrained_backbone_weights"]),
        (vec![("c.yaml", &env), ("x.pkg.slp", "")], vec!["${oc.env:TOKEN}"]),
        (vec![("c.yaml", &val), ("x.pkg.slp", "")], vec!["/home/me/v.slp", "val_labels_path"]),
        (vec![("jobs.yaml", "training: [{run_path: x}]")], vec!["entry 1", "cfg"]),
        (vec![("jobs.yaml", "training: [")], vec!["jobs.yaml cannot be read"]),
        (vec![("jobs.yaml", "training: [{cfg: a.yaml}]"), ("a.yaml", "just text")], vec!["a.yaml", "not a training configuration"]),
    ] {
        let failure = plan_of(&files).expect_err(&format!("{files:?}"));
        assert_eq!(failure.code, Code::BadPackage);
        for word in words {
            assert!(failure.message.contains(word), "{word:?} in {failure}");
        }
    }
}

#[test]
fn weights_are_taken_from_the_package_where_the_operator_allows_them() {
    let config = CONFIG.replace("resume_ckpt_path: null", "resume_ckpt_path: D:\\models\\best.ckpt");
    let settings = TrainerSettings { allow_checkpoints: true, ..TrainerSettings::default() };
    let plan = plan_with(&[("c.yaml", &config), ("x.pkg.slp", ""), ("old/best.ckpt", "")], &spec(), &settings).unwrap();
    let Document::Yaml(value) = &plan.steps[0].document else { panic!("{plan:?}") };
    assert_eq!(value.at("trainer_config.resume_ckpt_path").unwrap().text(), Some("old/best.ckpt"));
}

#[test]
fn run_names_are_plain_and_there_but_once() {
    let jobs = "training: [{cfg: a.yaml, run_path: m/../..}, {cfg: a.yaml, run_path: 'm/x:y'}, {cfg: a.yaml, run_path: m/x_y}, {cfg: a.yaml, run_path: CON}]";
    let plan = plan_of(&[("jobs.yaml", jobs), ("a.yaml", CONFIG), ("x.pkg.slp", "")]).unwrap();
    assert_eq!(plan.steps.iter().map(|step| step.run.as_str()).collect::<Vec<_>>(), ["run", "x_y", "x_y-2", "run-2"]);
}

#[test]
fn a_configuration_that_is_too_long_is_not_even_read() {
    let file = PackageFile { path: path("jobs.yaml"), size: MAX_CONFIG + 1 };
    let failure = plan(&[file], &mut |_| panic!("read"), &spec(), &TrainerSettings::default()).unwrap_err();
    assert!(failure.message.contains("1 MiB"), "{failure}");
}

proptest! {
    #[test]
    fn any_package_is_planned_or_refused(jobs in "(training: |cfg: |train_labels: |run_path: |a.yaml|x.slp|[-\\[\\]{}, \n:'./]){0,20}", config in "\\PC{0,60}") {
        let _ = plan_of(&[("jobs.yaml", &jobs), ("a.yaml", &config), ("x.slp", "")]);
        let _ = plan_of(&[("jobs.yaml", &jobs), ("a.yaml", CONFIG), ("x.slp", "")]);
    }
}
