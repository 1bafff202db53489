//! Which NATS servers, and how to log in.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use shared::domain::{
    error::{Code, Failure},
    id::Secret,
};

use crate::runtime::turn_credentials::read_private;

/// Which NATS servers, and how to log in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// Their addresses, without a login.
    pub servers: Vec<String>,
    /// Who we are there.
    pub login: Option<Login>,
    /// Whose certificates are trusted, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Who we are at a NATS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A token.
    Token(Secret<String>),
    /// A user.
    User {
        /// The name.
        name: String,
        /// The password.
        password: Secret<String>,
    },
}

impl NatsConfig {
    /// From URLs with commas between them, such as `nats://HOST:4222` or `tls://USER:PASSWORD@HOST`, and a file with `USER:PASSWORD` or a token.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`], [`Code::BadFile`]; the message quotes no URL, since there may be a password in it.
    pub fn read(urls: &Secret<String>, credentials: Option<&Path>, ca_file: Option<PathBuf>) -> Result<Self, Failure> {
        let mut config = NatsConfig { servers: Vec::new(), login: None, ca_file };
        for url in urls.expose().split(',').map(str::trim) {
            let (server, login) = parse(url).map_err(|why| Failure::new(Code::InvalidRequest, format!("--nats: {why}")))?;
            config.servers.push(server);
            config.login = config.login.or(login);
        }
        if let Some(path) = credentials {
            if config.login.is_some() {
                return Err(Failure::new(Code::InvalidRequest, "--nats has a login and --nats-credentials-file another; name one"));
            }
            let bad = |why: String| Failure::new(Code::BadFile, format!("the NATS credentials' file {}: {why}", path.display()));
            let text = read_private(path).map_err(|error| bad(error.to_string()))?;
            config.login = Some(login(text.trim()).ok_or_else(|| bad("it must have one line: USER:PASSWORD, or a token".to_owned()))?);
        }
        Ok(config)
    }
}

impl fmt::Display for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.servers.join(", "))
    }
}

fn parse(url: &str) -> Result<(String, Option<Login>), &'static str> {
    let form = "an address must look like nats://HOST:4222 or tls://HOST:4222, with commas between several";
    let (scheme, rest) = url.split_once("://").ok_or(form)?;
    let (before, address) = rest.rsplit_once('@').map_or((None, rest), |(before, address)| (Some(before), address));
    let address = address.trim_end_matches('/');
    if !matches!(scheme, "nats" | "tls") || address.is_empty() || address.contains(|c: char| "/?#".contains(c) || c.is_whitespace()) {
        return Err(form);
    }
    let login = match before {
        None => None,
        Some(text) if text.contains('%') => {
            return Err("escapes such as %40 in a login are not read; write it to --nats-credentials-file as it is");
        }
        Some(text) => Some(login(text).ok_or("the login in front of @ is empty")?),
    };
    Ok((format!("{scheme}://{address}"), login))
}

fn login(text: &str) -> Option<Login> {
    match text.split_once(':') {
        _ if text.is_empty() || text.contains(char::is_control) => None,
        Some((name, password)) => Some(Login::User { name: name.to_owned(), password: Secret::new(password.to_owned()) }),
        None => Some(Login::Token(Secret::new(text.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn read(urls: &str, credentials: Option<&Path>) -> Result<NatsConfig, Failure> {
        NatsConfig::read(&Secret::new(urls.to_owned()), credentials, None)
    }

    fn user(password: &str) -> Option<Login> {
        Some(Login::User { name: "u".into(), password: Secret::new(password.into()) })
    }

    #[test]
    fn logins_come_from_the_url_or_a_file_and_are_never_shown() {
        let config = read("nats://u:canary@a:4222, tls://b/", None).unwrap();
        assert_eq!((config.servers.join(" "), &config.login), ("nats://a:4222 tls://b".to_owned(), &user("canary")));
        assert!(!format!("{config} {config:?}").contains("canary"));
        assert_eq!(read("nats://t0ken@[::1]:5", None).unwrap().login, Some(Login::Token(Secret::new("t0ken".into()))));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("login");
        std::fs::write(&path, "u:can@ry:/\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read("nats://a", Some(&path)).unwrap().login, user("can@ry:/"));
        assert!(read("nats://u:p@a", Some(&path)).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read("nats://a", Some(&path)).unwrap_err().message.contains("chmod 600"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in
            ["", "a:4222", "http://u:canary@a", "nats://", "nats://u:canary@", "nats://u:canary%40@a", "nats://u:canary@a/x", "nats://a,"]
        {
            let failure = read(url, None).unwrap_err();
            assert!(failure.code == Code::InvalidRequest && !failure.message.contains("canary"), "{url}: {failure}");
        }
        let failure = read("nats://a", Some(Path::new("/nowhere/login"))).unwrap_err();
        assert_eq!(failure.code, Code::BadFile);
    }
}
