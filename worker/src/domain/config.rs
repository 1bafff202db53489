//! A trainer's configuration as a tree of values: read from YAML or JSON, changed by path, checked, written again.
//!
//! What a client sent is never handed on as text: it is read (1 MiB, 64 levels, no alias bombs), checked, and written anew.
//! Written YAML keeps to the forms that PyYAML (YAML 1.1), OmegaConf and YAML 1.2 read alike: strings in double quotes, floats with
//! a point and a signed exponent (PyYAML takes `1e-8` for a string).

use std::fmt::Write;

use serde::{Deserialize, Deserializer, de};
use shared::domain::error::{Code, Failure};

/// The longest configuration, in bytes.
pub const MAX_CONFIG: u64 = 1024 * 1024;
const MAX_DEPTH: usize = 64;

/// One value of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, NaN and the infinities included.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping, in the order of the file.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value at a path of keys joined by dots (`trainer_config.run_name`).
    pub fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(self, |value, key| match value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        })
    }

    /// Puts a value at a path; mappings are made where there is none.
    pub fn set(&mut self, path: &str, value: Value) {
        let mut here = self;
        for key in path.split('.') {
            if !matches!(here, Value::Map(_)) {
                *here = Value::Map(Vec::new());
            }
            let Value::Map(entries) = here else { return };
            let index = entries.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
                entries.push((key.to_owned(), Value::Null));
                entries.len() - 1
            });
            here = &mut entries[index].1;
        }
        *here = value;
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts of a list of texts, or of a single one.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Value::Text(text) => vec![text],
            Value::List(items) => items.iter().filter_map(Value::text).collect(),
            _ => Vec::new(),
        }
    }

    /// The number, if it is a whole one that fits.
    pub fn whole(&self) -> Option<u32> {
        match self {
            Value::Int(number) => u32::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Nothing, an empty text, or an empty list: a key that says nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Text(text) => text.is_empty(),
            Value::List(items) => items.iter().all(Value::is_empty),
            _ => false,
        }
    }

    /// As YAML.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        write_yaml(&mut out, self, 0);
        out
    }

    /// As JSON; numbers that are not finite are written as Python reads them (`NaN`, `Infinity`).
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        write_json(&mut out, self);
        out
    }
}

/// Reads a YAML (or JSON, which is YAML) document; `name` is for the message.
///
/// # Errors
/// [`Code::BadPackage`] with the line.
pub fn read_yaml(name: &str, bytes: &[u8]) -> Result<Value, Failure> {
    let mut budget = serde_saphyr::Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.max_total_scalar_bytes = 4 * MAX_CONFIG as usize;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.non_finite_float_policy = serde_saphyr::NonFiniteFloatPolicy::PassThrough;
    let text = text_of(name, bytes)?;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let why = error.to_string();
        bad(name, why.lines().find(|line| !line.trim().is_empty()).unwrap_or("it is not YAML"))
    })
}

/// Reads a JSON document; `name` is for the message.
///
/// # Errors
/// [`Code::BadPackage`] with the line.
pub fn read_json(name: &str, bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_str(text_of(name, bytes)?).map_err(|error| bad(name, &error.to_string()))
}

fn text_of<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Failure> {
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(bad(name, "it is longer than 1 MiB, which no configuration is"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad(name, "it is not UTF-8 text"))?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn bad(name: &str, why: &str) -> Failure {
    Failure::new(Code::BadPackage, format!("{name} cannot be read: {why}"))
}

/// What in a configuration would make the trainer run code or read the worker's environment: a sentence, or nothing.
///
/// Hydra and OmegaConf resolve `${…}` (`${oc.env:NAME}` reads the environment), build objects from `_target_`, and take other
/// files in through `defaults`.
pub fn refusal(value: &Value) -> Option<String> {
    if let Value::Map(entries) = value {
        for key in ["hydra", "defaults"] {
            if entries.iter().any(|(name, _)| name == key) {
                return Some(format!("the key {key:?} at its top is not allowed on a worker; remove it"));
            }
        }
    }
    refusal_below(value)
}

fn refusal_below(value: &Value) -> Option<String> {
    let interpolation = |text: &str| {
        let shown: String = text.chars().take(60).collect();
        text.contains("${").then(|| format!("the interpolation {shown:?} is not allowed on a worker; write the value itself"))
    };
    match value {
        Value::Text(text) => interpolation(text),
        Value::List(items) => items.iter().find_map(refusal_below),
        Value::Map(entries) => entries.iter().find_map(|(key, value)| {
            if key == "_target_" {
                return Some("the key \"_target_\" is not allowed on a worker, since it runs code; remove it".to_owned());
            }
            interpolation(key).or_else(|| refusal_below(value))
        }),
        _ => None,
    }
}

fn write_yaml(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Map(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                pad(out, indent);
                if is_plain_key(key) {
                    out.push_str(key)
                } else {
                    quote(out, key, true)
                }
                out.push(':');
                write_yaml_member(out, value, indent);
            }
        }
        Value::List(items) if !items.is_empty() => {
            for item in items {
                pad(out, indent);
                out.push('-');
                write_yaml_member(out, item, indent);
            }
        }
        scalar => {
            pad(out, indent);
            write_scalar(out, scalar, true);
            out.push('\n');
        }
    }
}

fn write_yaml_member(out: &mut String, value: &Value, indent: usize) {
    let nested = matches!(value, Value::Map(entries) if !entries.is_empty()) || matches!(value, Value::List(items) if !items.is_empty());
    if nested {
        out.push('\n');
        write_yaml(out, value, indent + 1);
    } else {
        out.push(' ');
        write_scalar(out, value, true);
        out.push('\n');
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n("  ", indent));
}

fn is_plain_key(key: &str) -> bool {
    const WORDS: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan"];
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !WORDS.contains(&key.to_ascii_lowercase().as_str())
}

fn write_json(out: &mut String, value: &Value) {
    match value {
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_json(out, item);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                quote(out, key, false);
                out.push_str(": ");
                write_json(out, value);
            }
            out.push('}');
        }
        scalar => write_scalar(out, scalar, false),
    }
}

fn write_scalar(out: &mut String, value: &Value, yaml: bool) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(number) => write!(out, "{number}").expect("writing to a String cannot fail"),
        Value::Float(number) => out.push_str(&float(*number, yaml)),
        Value::Text(text) => quote(out, text, yaml),
        Value::List(_) => out.push_str("[]"),
        Value::Map(_) => out.push_str("{}"),
    }
}

fn float(number: f64, yaml: bool) -> String {
    match (number.is_finite(), yaml) {
        (false, true) if number.is_nan() => ".nan".into(),
        (false, true) => if number > 0.0 { ".inf" } else { "-.inf" }.into(),
        (false, false) if number.is_nan() => "NaN".into(),
        (false, false) => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        (true, _) => {
            let text = format!("{number:?}");
            let Some((mantissa, exponent)) = text.split_once('e') else { return text };
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
    }
}

/// A double-quoted scalar: everything that is not printable ASCII escaped, in a form that both YAML and JSON know.
fn quote(out: &mut String, text: &str, yaml: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ if yaml && u32::from(c) > 0xffff => write!(out, "\\U{:08x}", u32::from(c)).expect("writing to a String cannot fail"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("writing to a String cannot fail");
                }
            }
        }
    }
    out.push('"');
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }
    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Value {
        read_yaml("test.yaml", text.as_bytes()).unwrap()
    }

    #[test]
    fn yaml_is_read_with_its_types() {
        let value = read("a: 1\nb: 1.0e-08\nc: null\nd: ''\ne: [x, \"2\", ~]\nf:\n  g: true\nh: .inf\n");
        assert_eq!(value.at("a"), Some(&Value::Int(1)));
        assert_eq!(value.at("b"), Some(&Value::Float(1e-8)));
        assert_eq!(value.at("c"), Some(&Value::Null));
        assert_eq!(value.at("d"), Some(&Value::Text(String::new())));
        assert_eq!(value.at("e"), Some(&Value::List(vec![Value::Text("x".into()), Value::Text("2".into()), Value::Null])));
        assert_eq!(value.at("f.g"), Some(&Value::Bool(true)));
        assert_eq!(value.at("h"), Some(&Value::Float(f64::INFINITY)));
        assert_eq!(value.at("f.g.h"), None);
    }

    #[test]
    fn floats_are_written_as_pyyaml_reads_floats() {
        for (number, text) in [(1e-8, "1.0e-8"), (1.5e20, "1.5e+20"), (0.0001, "0.0001"), (3.0, "3.0"), (f64::NAN, ".nan")] {
            assert_eq!(float(number, true), text);
        }
    }

    #[test]
    fn setting_makes_what_is_missing() {
        let mut value = read("trainer_config: {zmq: null, max_epochs: 3}");
        value.set("trainer_config.zmq.publish_port", Value::Int(5));
        value.set("outputs.run", Value::Text("x: y".into()));
        assert_eq!(value.to_yaml(), "trainer_config:\n  zmq:\n    publish_port: 5\n  max_epochs: 3\noutputs:\n  run: \"x: y\"\n");
    }

    #[test]
    fn what_runs_code_or_reads_the_environment_is_refused() {
        for (text, word) in [
            ("a: {b: ['${oc.env:SECRET}']}", "${oc.env:SECRET}"),
            ("a:\n- _target_: os.system", "_target_"),
            ("hydra: {run: {dir: /}}", "hydra"),
            ("defaults: [base]", "defaults"),
            ("'${x}': 1", "${x}"),
        ] {
            let why = refusal(&read(text)).expect(text);
            assert!(why.contains(word), "{why}");
        }
        assert_eq!(refusal(&read("a: {defaults: 1, price: '$5'}")), None);
    }

    #[test]
    fn bombs_and_nonsense_are_an_error_with_the_files_name() {
        let bomb = format!(
            "a: &a [x,x,x,x,x,x,x,x,x]\n{}",
            (0..9)
                .map(|i| {
                    let (this, last) = ((b'b' + i) as char, (b'a' + i) as char);
                    format!("{this}: &{this} [*{last},*{last},*{last},*{last},*{last},*{last},*{last},*{last},*{last}]\n")
                })
                .collect::<String>()
        );
        let deep = "[".repeat(5000);
        for text in [bomb.as_str(), deep.as_str(), "a: [", "a: b: c", "\0"] {
            let failure = read_yaml("x.yaml", text.as_bytes()).unwrap_err();
            assert!(failure.message.starts_with("x.yaml cannot be read"), "{failure}");
            assert!(failure.message.len() < 500, "{failure}");
        }
        assert!(read_json("x.json", "[".repeat(5000).as_bytes()).is_err());
        assert!(read_yaml("x.yaml", &vec![b' '; MAX_CONFIG as usize + 1]).is_err());
        assert!(read_yaml("x.yaml", &[0xff, 0xfe]).is_err());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            proptest::num::f64::NORMAL.prop_map(Value::Float),
            "\\PC{0,12}".prop_map(Value::Text),
            ".{0,8}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                proptest::collection::btree_map("[a-z_ :#é]{1,6}", inner, 0..4).prop_map(|map| Value::Map(map.into_iter().collect())),
            ]
        })
    }

    /// Whether two values are the same but for the last bits of their floats.
    fn alike(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Float(a), Value::Float(b)) => (a - b).abs() <= a.abs() * 1e-14,
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
            (Value::Map(a), Value::Map(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && alike(&a.1, &b.1)),
            _ => a == b,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value()) {
            prop_assert_eq!(&read_yaml("t", value.to_yaml().as_bytes()).unwrap(), &value, "{}", value.to_yaml());
            // serde_json is off by the last bit of some floats, which no trainer notices.
            let json = read_json("t", value.to_json().as_bytes()).unwrap();
            prop_assert!(alike(&json, &value), "{}", value.to_json());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[a-z:&*<!{}\\[\\],\\- \n|>'\"#]{0,80}") {
            let _ = read_yaml("t", &bytes);
            let _ = read_yaml("t", text.as_bytes());
        }
    }
}
