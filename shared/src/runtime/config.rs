//! The configuration file, `webrtc-connect.toml`, and the directories of the user.
//!
//! Each program has its own section, and an environment may overlay any of them:
//! ```toml
//! [server]
//! room_ttl = 7200
//!
//! [environments.lab.server]
//! room_ttl = 600
//! ```
//! * where: the path that was given, else `./webrtc-connect.toml`, else the one in [`config_dir`]; the first that exists is the only one
//! * a file that does not parse, an unknown section and an unknown key are errors that name file, line and key
//! * command-line flags and environment variables win over it; that is the programs' business

use std::{
    ffi::OsString,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use crate::domain::{
    error::{Code, Failure},
    ice::parse_ice_servers,
    id::Secret,
    signal::IceServer,
};

/// The file's name, in the working directory and in [`config_dir`].
pub const FILE_NAME: &str = "webrtc-connect.toml";

const SECTIONS: [&str; 3] = ["server", "worker", "client"];
const ENVIRONMENTS: &str = "environments";

/// Reads the `section` (`server`, `worker` or `client`) of the configuration file, overlaid by that of `environment` where one is
/// named. Without a file it is the default.
///
/// `T` should carry `#[serde(deny_unknown_fields, default)]`: the first is what makes an unknown key an error.
///
/// # Errors
/// [`Code::BadFile`] when a file cannot be read (or `explicit` does not exist), [`Code::InvalidRequest`] when its content is wrong or it
/// has no such environment.
pub fn load<T: DeserializeOwned + Default>(section: &str, explicit: Option<&Path>, environment: Option<&str>) -> Result<T, Failure> {
    let mut candidates = vec![PathBuf::from(FILE_NAME)];
    candidates.extend(config_dir().ok().map(|dir| dir.join(FILE_NAME)));
    load_from(section, explicit, &candidates, environment)
}

/// The configuration file that [`load`] reads, if there is one.
pub fn path_in_use(explicit: Option<&Path>) -> Option<PathBuf> {
    let named = explicit.map(Path::to_owned);
    let mut usual = [Some(PathBuf::from(FILE_NAME)), config_dir().ok().map(|dir| dir.join(FILE_NAME))].into_iter().flatten();
    named.or_else(|| usual.find(|path| path.exists()))
}

fn load_from<T: DeserializeOwned + Default>(
    section: &str,
    explicit: Option<&Path>,
    candidates: &[PathBuf],
    environment: Option<&str>,
) -> Result<T, Failure> {
    let found = match explicit {
        Some(path) => Some((path, read(path)?)),
        None => first_that_exists(candidates)?,
    };
    match (found, environment) {
        (Some((path, text)), _) => parse(&text, section, environment).map_err(|wrong| wrong.into_failure(path, &text)),
        (None, None) => Ok(T::default()),
        (None, Some(name)) => Err(Failure::new(
            Code::InvalidRequest,
            format!(
                "the environment '{name}' was asked for and there is no {FILE_NAME} to define it; create one with [{ENVIRONMENTS}.{name}]"
            ),
        )),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Code::BadFile, format!("cannot read the configuration file {}: {error}", path.display())))
}

fn first_that_exists(candidates: &[PathBuf]) -> Result<Option<(&Path, String)>, Failure> {
    match candidates.iter().find(|path| path.exists()) {
        Some(path) => Ok(Some((path, read(path)?))),
        None => Ok(None),
    }
}

/// What is wrong, and where in the text.
struct Wrong {
    message: String,
    span: Option<Range<usize>>,
}

impl From<toml::de::Error> for Wrong {
    fn from(error: toml::de::Error) -> Self {
        // Not `Display`, which quotes the line, and the line may hold a TURN password.
        Wrong { message: error.message().replace('\n', ", "), span: error.span() }
    }
}

impl Wrong {
    fn into_failure(self, path: &Path, text: &str) -> Failure {
        let place = match self.span.and_then(|span| text.get(..span.start)) {
            Some(before) => {
                let line = before.lines().count().max(1) + usize::from(before.ends_with('\n'));
                let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
                format!(", line {line}{}", key.map(|key| format!(", key '{key}'")).unwrap_or_default())
            }
            None => String::new(),
        };
        Failure::new(Code::InvalidRequest, format!("{}{place}: {}", path.display(), self.message))
    }
}

fn parse<T: DeserializeOwned + Default>(text: &str, section: &str, environment: Option<&str>) -> Result<T, Wrong> {
    let mut root = DeTable::parse(text)?.into_inner();
    let environments = take(&mut root, ENVIRONMENTS);
    check_sections(&root)?;
    let mut value = take(&mut root, section);
    if let Some(name) = environment {
        let overlay = find_environment(environments, name)?;
        if let Some(over) = overlay.and_then(|mut table| take(&mut table, section)) {
            value = Some(match value {
                Some(base) => merge(base, over),
                None => over,
            });
        }
    }
    match value {
        Some(value) => Ok(T::deserialize(ValueDeserializer::from(value))?),
        None => Ok(T::default()),
    }
}

fn check_sections(table: &DeTable<'_>) -> Result<(), Wrong> {
    match table.iter().find(|(key, _)| !SECTIONS.contains(&key.get_ref().as_ref())) {
        None => Ok(()),
        Some((key, _)) => Err(Wrong {
            message: format!(
                "unknown section '{}': there are [{}] and [{ENVIRONMENTS}.NAME.SECTION]",
                key.get_ref(),
                SECTIONS.join("], [")
            ),
            span: Some(key.span()),
        }),
    }
}

fn find_environment<'i>(environments: Option<Spanned<DeValue<'i>>>, name: &str) -> Result<Option<DeTable<'i>>, Wrong> {
    let span = environments.as_ref().map(Spanned::span);
    let Some(DeValue::Table(mut all)) = environments.map(Spanned::into_inner) else {
        return Err(Wrong { message: format!("there is no environment '{name}': add [{ENVIRONMENTS}.{name}.SECTION]"), span });
    };
    match take(&mut all, name).map(Spanned::into_inner) {
        Some(DeValue::Table(table)) => check_sections(&table).map(|()| Some(table)),
        _ => {
            let known: Vec<&str> = all.keys().map(|key| key.get_ref().as_ref()).collect();
            Err(Wrong { message: format!("there is no environment '{name}', there are: {}", known.join(", ")), span })
        }
    }
}

fn take<'i>(table: &mut DeTable<'i>, name: &str) -> Option<Spanned<DeValue<'i>>> {
    let key = table.keys().find(|key| key.get_ref().as_ref() == name)?.clone();
    table.remove(&key)
}

/// Tables are merged key by key; anything else is replaced.
fn merge<'i>(base: Spanned<DeValue<'i>>, over: Spanned<DeValue<'i>>) -> Spanned<DeValue<'i>> {
    let span = over.span();
    match (base.into_inner(), over.into_inner()) {
        (DeValue::Table(mut base), DeValue::Table(over)) => {
            for (key, value) in over {
                let merged = match take(&mut base, key.get_ref().as_ref()) {
                    Some(old) => merge(old, value),
                    None => value,
                };
                base.insert(key, merged);
            }
            Spanned::new(span, DeValue::Table(base))
        }
        (_, over) => Spanned::new(span, over),
    }
}

/// Longer than any list of ICE servers, in bytes.
const MAX_ICE_SERVERS: u64 = 256 * 1024;

/// STUN and TURN servers from the text of a flag or a variable: the browser's JSON, or `@FILE` with it in the file; an empty text counts
/// as none. `origin` begins the error.
///
/// # Errors
/// [`Code::InvalidRequest`] with the reason, [`Code::BadFile`] when the file cannot be read.
pub fn ice_servers(origin: &str, text: Option<&Secret<String>>) -> Result<Option<Vec<IceServer>>, Failure> {
    let Some(text) = text.map(|text| text.expose().trim()).filter(|text| !text.is_empty()) else { return Ok(None) };
    let Some(path) = text.strip_prefix('@') else { return parse_ice_servers(origin, text).map(Some) };
    let bad = |error: std::io::Error| Failure::new(Code::BadFile, format!("{origin}: cannot read {path}: {error}; check the path"));
    let mut json = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_ICE_SERVERS).read_to_string(&mut json)).map_err(bad)?;
    parse_ice_servers(&format!("{origin}: {path}"), &json).map(Some)
}

/// Where the user's configuration file lies: `$XDG_CONFIG_HOME/webrtc-connect` or `~/.config/webrtc-connect`
/// (XDG Base Directory Specification 0.8; a relative value of the variable is ignored, as it says).
///
/// # Errors
/// [`Code::BadFile`] when neither the variable nor `HOME` names an absolute directory.
pub fn config_dir() -> Result<PathBuf, Failure> {
    xdg(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"), ".config", "XDG_CONFIG_HOME")
}

/// Where a program keeps what must last: `$XDG_DATA_HOME/webrtc-connect/PROGRAM` or `~/.local/share/webrtc-connect/PROGRAM`.
/// It is not created.
///
/// # Errors
/// As [`config_dir`].
pub fn data_dir(program: &str) -> Result<PathBuf, Failure> {
    xdg(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"), ".local/share", "XDG_DATA_HOME").map(|dir| dir.join(program))
}

fn xdg(variable: Option<OsString>, home: Option<OsString>, fallback: &str, name: &str) -> Result<PathBuf, Failure> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute(home).map(|home| home.join(fallback))).map(|base| base.join("webrtc-connect")).ok_or_else(|| {
        Failure::new(Code::BadFile, format!("neither HOME nor {name} names a directory: set one, or name the directory by a flag"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        port: u16,
        name: String,
        limits: Limits,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        rooms: u32,
        peers: u32,
    }

    fn load_text(text: &str, environment: Option<&str>) -> Result<Settings, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        load_from("worker", Some(&path), &[], environment)
    }

    const TEXT: &str = "[worker]\nport = 1\nname = 'a'\nlimits = { rooms = 2, peers = 3 }\n[server]\nanything = 1\n\
                        [environments.lab.worker]\nport = 9\n[environments.lab.worker.limits]\npeers = 8\n";

    #[test]
    fn an_environment_overlays_key_by_key() {
        let plain = load_text(TEXT, None).unwrap();
        assert_eq!(plain, Settings { port: 1, name: "a".into(), limits: Limits { rooms: 2, peers: 3 } });
        let lab = load_text(TEXT, Some("lab")).unwrap();
        assert_eq!(lab, Settings { port: 9, name: "a".into(), limits: Limits { rooms: 2, peers: 8 } });
        let only_there = load_text("[environments.lab.worker]\nport = 9\n", Some("lab")).unwrap();
        assert_eq!(only_there.port, 9);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        for (text, environment, expected) in [
            ("[worker]\nport = 1\nprot = 2\n", None, "c.toml, line 3, key 'prot': unknown field `prot`"),
            ("[worker]\n\nport = 'x'\n", None, "c.toml, line 3, key 'port': invalid type"),
            ("[worker]\nport = \n", None, "c.toml, line 2, key 'port'"),
            ("[wroker]\nport = 1\n", None, "c.toml, line 1: unknown section 'wroker'"),
            ("port = 1\n", None, "c.toml, line 1, key 'port': unknown section 'port'"),
            ("[environments.lab.worker]\nx = 1\n", Some("lab"), "c.toml, line 2, key 'x': unknown field `x`"),
            ("[environments.lab.wroker]\nx = 1\n", Some("lab"), "line 1: unknown section 'wroker'"),
            (TEXT, Some("home"), "there is no environment 'home', there are: lab"),
            ("[worker]\n", Some("home"), "there is no environment 'home'"),
        ] {
            let failure = load_text(text, environment).unwrap_err();
            assert_eq!(failure.code, Code::InvalidRequest);
            assert!(failure.message.contains(expected), "{text:?} gave {:?}", failure.message);
        }
    }

    #[test]
    fn a_password_on_the_wrong_line_is_not_quoted() {
        let failure = load_text("[worker]\nport = 1\npassword = 'canary'\n", None).unwrap_err();
        assert!(!failure.message.contains("canary"), "{}", failure.message);
    }

    #[test]
    fn ice_servers_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ice.json");
        let read = |text: &str| ice_servers("--ice-servers", Some(&Secret::new(text.to_owned())));
        std::fs::write(&path, r#"{"urls": "stun:a"}"#).unwrap();
        assert_eq!(read(&format!("@{}", path.display())).unwrap().unwrap()[0].urls, ["stun:a"]);
        std::fs::write(&path, "{").unwrap();
        assert!(read(&format!("@{}", path.display())).unwrap_err().message.contains("ice.json: it is not JSON"));
        assert_eq!(read("@/nowhere/x").unwrap_err().code, Code::BadFile);
        assert_eq!(read(r#"{"urls": "stun:b"}"#).unwrap().unwrap()[0].urls, ["stun:b"]);
        assert_eq!((read(" ").unwrap(), ice_servers("x", None).unwrap()), (None, None));
    }

    #[test]
    fn the_first_file_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, present) = (dir.path().join("no.toml"), dir.path().join("yes.toml"));
        std::fs::write(&present, "[worker]\nport = 5\n").unwrap();
        let load = |explicit, environment| load_from::<Settings>("worker", explicit, &[missing.clone(), present.clone()], environment);
        assert_eq!(load(None, None).unwrap().port, 5);
        assert_eq!(load(Some(&missing), None).unwrap_err().code, Code::BadFile);
        assert_eq!(load_from::<Settings>("worker", None, &[], None).unwrap(), Settings::default());
        assert!(load_from::<Settings>("worker", None, &[], Some("lab")).is_err());
    }

    #[test]
    fn user_directories_follow_xdg() {
        let dir = |variable: Option<&str>, home: Option<&str>| xdg(variable.map(Into::into), home.map(Into::into), ".config", "X");
        assert_eq!(dir(Some("/x"), Some("/home/a")).unwrap(), Path::new("/x/webrtc-connect"));
        assert_eq!(dir(Some("rel"), Some("/home/a")).unwrap(), Path::new("/home/a/.config/webrtc-connect"));
        assert_eq!(dir(None, Some("/home/a")).unwrap(), Path::new("/home/a/.config/webrtc-connect"));
        assert_eq!(dir(None, None).unwrap_err().code, Code::BadFile);
    }
}
