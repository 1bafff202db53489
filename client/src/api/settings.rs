//! What was typed, the environment and the configuration file → what a command needs, once.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, IsTerminal, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use shared::{
    domain::{
        error::{Code, Failure},
        ice::IceServers,
        id::Secret,
        invite::Invite,
        network::{Host, Interfaces, NetworkSettings, PortRange},
    },
    runtime::config,
};

use super::{cli::Global, output};
use crate::domain::order::Remote;

/// The environment variable with the invite.
pub const INVITE_VARIABLE: &str = "WEBRTC_INVITE";
/// More than any invite has, in bytes.
const MAX_INVITE: u64 = 16 * 1024;

/// The section `[client]` of the configuration file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSettings {
    invite_file: Option<PathBuf>,
    worker: Option<String>,
    ice_servers: Option<IceServers>,
    relay_only: Option<bool>,
    advertise_ip: Option<Host>,
    udp_ports: Option<PortRange>,
    interfaces: Option<Interfaces>,
    bind: Vec<SocketAddr>,
    ca_file: Option<PathBuf>,
}

impl FileSettings {
    /// What it says about how we may be reached.
    pub(super) fn network(&self) -> NetworkSettings {
        NetworkSettings {
            ice_servers: self.ice_servers.clone().map(|servers| servers.0),
            relay_only: self.relay_only,
            advertise_ip: self.advertise_ip.clone(),
            udp_ports: self.udp_ports,
            interfaces: self.interfaces.clone(),
            bind: self.bind.clone(),
            ca_file: self.ca_file.clone(),
        }
    }
}

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// [`INVITE_VARIABLE`].
    pub invite: Option<Secret<OsString>>,
}

impl Environment {
    /// That of this process; an empty variable counts as none.
    pub fn of_process() -> Self {
        let read = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(Secret::new);
        Environment { invite: read(INVITE_VARIABLE) }
    }
}

/// Where the invite is to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InviteSource {
    Argument(Secret<String>),
    Stdin,
    File(PathBuf),
    Environment(Secret<OsString>),
}

/// Everything that a command needs to reach its worker.
#[derive(Debug)]
pub struct Settings {
    /// The way to the worker.
    pub remote: Remote,
    /// The options that lead another command to the same worker, as they would be typed.
    pub options: String,
}

/// Reads everything there is.
///
/// # Errors
/// [`Code::InvalidRequest`] for what cannot be understood or is missing, [`Code::BadFile`] for what cannot be read,
/// [`Code::NotAuthentic`] for a string that is no invite.
pub fn load(global: &Global, environment: &Environment) -> Result<Settings, Failure> {
    let file: FileSettings = config::load("client", global.config_file.as_deref(), global.environment.as_deref())?;
    let source = invite_source(global, environment, &file)?;
    if matches!(source, InviteSource::Argument(_)) && !global.quiet {
        output::caution(
            "others on this machine can see the invite on the command line (ps); prefer --invite-file, or --invite - for stdin",
        );
    }
    let options = options(global, &source);
    let network = global.network.settings()?.or(file.network()).decide()?;
    let remote = Remote {
        invite: read_invite(source)?,
        worker: global.worker.clone().or(file.worker),
        network,
        connections: global.connections,
        config_dir: config::config_dir()?,
    };
    Ok(Settings { remote, options })
}

/// Whether an invite is named anywhere.
pub(super) fn names_an_invite(global: &Global, environment: &Environment, file: &FileSettings) -> bool {
    global.invite.is_some() || global.invite_file.is_some() || environment.invite.is_some() || file.invite_file.is_some()
}

fn invite_source(global: &Global, environment: &Environment, file: &FileSettings) -> Result<InviteSource, Failure> {
    if let Some(text) = &global.invite {
        return Ok(if text == "-" { InviteSource::Stdin } else { InviteSource::Argument(Secret::new(text.clone())) });
    }
    if let Some(path) = &global.invite_file {
        return Ok(InviteSource::File(path.clone()));
    }
    if let Some(text) = &environment.invite {
        return Ok(InviteSource::Environment(text.clone()));
    }
    if let Some(path) = &file.invite_file {
        return Ok(InviteSource::File(path.clone()));
    }
    Err(Failure::new(
        Code::InvalidRequest,
        format!(
            "no invite: pass on the line that webrtc-worker printed, by --invite-file FILE, by the environment variable {INVITE_VARIABLE}, \
             or by --invite - on stdin"
        ),
    ))
}

fn read_invite(source: InviteSource) -> Result<Invite, Failure> {
    match source {
        InviteSource::Argument(text) => text.expose().parse(),
        InviteSource::Environment(text) => text.expose().to_string_lossy().parse(),
        InviteSource::File(path) => {
            let bad = |error: &std::io::Error| {
                Failure::new(Code::BadFile, format!("cannot read the invite file {}: {error}; check the path", path.display()))
            };
            let text = read_some(File::open(&path).map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            text.expose().parse()
        }
        InviteSource::Stdin => {
            if std::io::stdin().is_terminal() {
                output::hint("paste the invite and press Enter:");
            }
            let text = read_line(std::io::stdin().lock())
                .map_err(|error| Failure::new(Code::BadFile, format!("cannot read the invite from stdin: {error}")))?;
            text.expose().parse()
        }
    }
}

fn read_some(source: impl Read) -> std::io::Result<Secret<String>> {
    let mut bytes = Vec::new();
    source.take(MAX_INVITE).read_to_end(&mut bytes)?;
    Ok(Secret::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The first line that is not blank.
fn read_line(source: impl BufRead) -> std::io::Result<Secret<String>> {
    let mut source = source.take(MAX_INVITE);
    let mut line = String::new();
    while line.trim().is_empty() {
        line.clear();
        if source.read_line(&mut line)? == 0 {
            break;
        }
    }
    Ok(Secret::new(line))
}

/// What must be typed again to reach the same worker, the invite itself never.
fn options(global: &Global, source: &InviteSource) -> String {
    let mut options = String::new();
    let mut add = |name: &str, value: &Path| options.push_str(&format!(" {name} {}", quoted(&value.to_string_lossy())));
    match (source, &global.invite_file) {
        (InviteSource::Argument(_) | InviteSource::Stdin, _) => add("--invite", Path::new("-")),
        (InviteSource::File(path), Some(_)) => add("--invite-file", path),
        // Found again without being named.
        (InviteSource::File(_), None) | (InviteSource::Environment(_), _) => {}
    }
    if let Some(file) = &global.config_file {
        add("--config-file", file);
    }
    if let Some(environment) = &global.environment {
        add("--environment", Path::new(environment));
    }
    if let Some(worker) = &global.worker {
        add("--worker", Path::new(worker));
    }
    if let Some(file) = &global.network.ca_file {
        add("--ca-file", file);
    }
    if global.network.relay_only {
        options.push_str(" --relay-only");
    }
    options
}

/// As a POSIX shell needs it.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=+:@%,~".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(global: &Global, environment: Option<&str>, file: Option<&str>) -> Result<InviteSource, Failure> {
        let environment = Environment { invite: environment.map(|text| Secret::new(text.into())) };
        invite_source(global, &environment, &FileSettings { invite_file: file.map(PathBuf::from), ..FileSettings::default() })
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let flag = Global { invite_file: Some("f".into()), ..Global::default() };
        assert_eq!(source(&flag, Some("e"), Some("t")).unwrap(), InviteSource::File("f".into()));
        assert_eq!(source(&Global::default(), Some("e"), Some("t")).unwrap(), InviteSource::Environment(Secret::new("e".into())));
        assert_eq!(source(&Global::default(), None, Some("t")).unwrap(), InviteSource::File("t".into()));
        assert!(source(&Global::default(), None, None).unwrap_err().message.contains(INVITE_VARIABLE));
        let stdin = Global { invite: Some("-".into()), ..Global::default() };
        assert_eq!(source(&stdin, None, None).unwrap(), InviteSource::Stdin);
    }

    #[test]
    fn stdin_is_read_as_far_as_the_invite() {
        let mut input: &[u8] = b"\n  webrtc-connect:AAAA \nthe rest";
        assert_eq!(read_line(&mut input).unwrap().expose().trim(), "webrtc-connect:AAAA");
        assert_eq!(input, b"the rest");
        assert_eq!(read_line(&b""[..]).unwrap().expose(), "");
    }

    #[test]
    fn the_way_back_names_files_and_never_the_invite() {
        let global = Global { invite: Some("webrtc-connect:canary".into()), worker: Some("lab two".into()), ..Global::default() };
        let shown = options(&global, &source(&global, None, None).unwrap());
        assert_eq!(shown, " --invite - --worker 'lab two'");
        let global = Global { invite_file: Some("it's.txt".into()), environment: Some("lab".into()), ..Global::default() };
        assert_eq!(options(&global, &source(&global, None, None).unwrap()), r" --invite-file 'it'\''s.txt' --environment lab");
        assert_eq!(options(&Global::default(), &source(&Global::default(), Some("x"), None).unwrap()), "");
    }
}
