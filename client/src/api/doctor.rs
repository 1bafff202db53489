//! `webrtc-client doctor`: settings with their origins → an examination → what is printed, and the exit code.

use std::path::Path;

use shared::{
    domain::{
        error::{Code, Failure},
        id::Secret,
        invite::Invite,
        network::Network,
    },
    runtime::config,
};
use tokio::{signal::unix::Signal, sync::mpsc};

use super::{
    cli::{DoctorArgs, Global},
    output,
    settings::{self, Environment, FileSettings, INVITE_VARIABLE, Settings},
};
use crate::{
    domain::doctor::{Setting, diagnose, sheet},
    runtime::doctor::{Subject, examine},
};

/// The exit code where something is broken.
const BROKEN: u8 = 11;

/// Examines everything; gives the exit code, `None`: interrupted.
///
/// # Errors
/// [`Code::Internal`] when a task died.
pub(super) async fn run(global: &Global, args: DoctorArgs, interrupts: &mut Signal) -> Result<Option<u8>, Failure> {
    let (owned, file) = (global.clone(), args);
    let gathering = tokio::task::spawn_blocking(move || gather(&owned, file, &Environment::of_process()));
    let (told, mut telling) = mpsc::channel(8);
    let (json, quiet) = (global.json, global.quiet);
    let work = async {
        let subject = gathering.await.map_err(|error| Failure::new(Code::Internal, format!("a task died: {error}")))?;
        Ok(examine(subject, told).await)
    };
    let telling = async {
        while let Some(what) = telling.recv().await {
            if !json && !quiet {
                output::hint(&format!("{what} …"));
            }
        }
    };
    let both = Box::pin(async { tokio::join!(work, telling) });
    let (seen, ()) = tokio::select! {
        biased;
        _ = interrupts.recv() => return Ok(None),
        both = both => both,
    };
    let seen = seen?;
    let diagnosis = diagnose(&seen);
    if json {
        output::object(&sheet::json(&seen, &diagnosis));
    } else {
        output::sheet(&sheet::lines(&seen, &diagnosis));
    }
    Ok(Some(if diagnosis.healthy { 0 } else { BROKEN }))
}

/// What is to be examined; settings that cannot be used are part of it.
fn gather(global: &Global, args: DoctorArgs, environment: &Environment) -> Subject {
    let mut subject = Subject { server: args.server, ..Subject::default() };
    if let Err(failure) = read(global, environment, &mut subject) {
        subject.unusable = Some(failure);
    }
    subject
}

fn read(global: &Global, environment: &Environment, subject: &mut Subject) -> Result<(), Failure> {
    let file_path = config::path_in_use(global.config_file.as_deref());
    if let Some(path) = &file_path {
        subject.settings.push(setting("configuration file", path.display().to_string(), "found"));
    }
    let file: FileSettings = config::load("client", global.config_file.as_deref(), global.environment.as_deref())?;
    let typed = global.network.settings()?;
    let network = typed.or(file.network()).decide()?;
    describe(global, &network, file_path.as_deref(), &mut subject.settings);
    if !settings::names_an_invite(global, environment, &file) {
        subject.settings.push(setting("invite", "none; with one, both sides are examined".into(), "nowhere"));
        subject.network = network;
        return Ok(());
    }
    let Settings { remote, .. } = settings::load(global, environment)?;
    let origin = origin_of_invite(global, environment, file_path.as_deref());
    subject.settings.push(setting("invite", words(&remote.invite), &origin));
    if let Some(worker) = &remote.worker {
        subject.settings.push(setting("worker", worker.clone(), if global.worker.is_some() { "--worker" } else { "configuration file" }));
    }
    subject.remote = Some(remote);
    Ok(())
}

fn setting(name: &str, value: String, origin: &str) -> Setting {
    Setting { name: name.to_owned(), value, origin: origin.to_owned() }
}

/// Nothing of it that lets anybody in.
fn words(invite: &Invite) -> String {
    format!("to {}, room {}, worker {}", invite.grant, invite.room, invite.worker)
}

fn origin_of_invite(global: &Global, environment: &Environment, file: Option<&Path>) -> String {
    match (&global.invite, &global.invite_file, &environment.invite) {
        (Some(text), ..) if text == "-" => "stdin".into(),
        (Some(_), ..) => "--invite".into(),
        (None, Some(path), _) => format!("--invite-file {}", path.display()),
        (None, None, Some(_)) => INVITE_VARIABLE.into(),
        (None, None, None) => format!("invite_file in {}", file.unwrap_or(Path::new(config::FILE_NAME)).display()),
    }
}

/// Each setting of the network that somebody made, and who.
fn describe(global: &Global, network: &Network, file: Option<&Path>, settings: &mut Vec<Setting>) {
    let args = &global.network;
    let from = |flag: &str, variable: &str, typed: bool| match (typed, std::env::var_os(variable).is_some_and(|value| !value.is_empty())) {
        (true, true) => variable.to_owned(),
        (true, false) => flag.to_owned(),
        (false, _) => file.map_or_else(|| "default".to_owned(), |path| path.display().to_string()),
    };
    let mut add = |name: &str, value: Option<String>, origin: String| {
        if let Some(value) = value {
            settings.push(setting(name, value, &origin));
        }
    };
    let urls: Vec<&str> = network.ice_servers.iter().flat_map(|server| &server.urls).map(String::as_str).collect();
    let given = |text: &Option<Secret<String>>| text.as_ref().is_some_and(|text| !text.expose().trim().is_empty());
    match urls.is_empty() {
        true => add("STUN, TURN", Some("those that the signaling server hands out".into()), "default".into()),
        false => add("STUN, TURN", Some(urls.join(", ")), from("--ice-servers", "ICE_SERVERS", given(&args.ice_servers))),
    }
    add("relays only", network.relay_only.then(|| "yes".into()), from("--relay-only", "WEBRTC_RELAY_ONLY", args.relay_only));
    let advertise = network.advertise.as_ref().map(ToString::to_string);
    add("advertised address", advertise, from("--advertise-ip", "WEBRTC_ADVERTISE_IP", args.advertise_ip.is_some()));
    let ports = network.udp_ports.map(|ports| ports.to_string());
    add("UDP ports", ports, from("--udp-ports", "WEBRTC_UDP_PORTS", args.udp_ports.is_some()));
    let interfaces = Some(network.interfaces.to_string()).filter(|names| !names.is_empty());
    add("interfaces", interfaces, from("--interfaces", "WEBRTC_INTERFACES", args.interfaces.is_some()));
    let bind = (!network.bind.is_empty()).then(|| network.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    add("local addresses", bind, from("--bind", "", !args.bind.is_empty()));
    let ca = network.ca_file.as_ref().map(|path| path.display().to_string());
    add("certificates", ca, from("--ca-file", "WEBRTC_CA_FILE", args.ca_file.is_some()));
}
