//! The part of the command line about who makes anonymous users.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Deserialize;
use shared::domain::{
    error::{Code, Failure},
    id::Secret,
};

use crate::runtime::{
    config::{CognitoSettings, Limits, SignInWay},
    turn_credentials::read_private,
};

/// Calls by which users are deleted, in a second: at least one, and no more than AWS lets a whole account do.
const DELETIONS: std::ops::RangeInclusive<u32> = 1..=25;

/// Who makes anonymous users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AuthKind {
    /// This server.
    Local,
    /// A Cognito user pool.
    Cognito,
}

/// The flags.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Anonymous users")]
pub(super) struct UserArgs {
    /// `local`: this server makes them and signs their tokens; `cognito`: an Amazon Cognito user pool does [default: local]
    #[arg(long, env = "WEBRTC_SERVER_AUTH")]
    auth: Option<AuthKind>,
    /// The user pool's id, such as eu-central-1_AbCdEfGhI. Region and credentials come from the usual AWS settings (AWS_REGION, AWS_PROFILE, roles)
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_POOL", value_name = "ID")]
    cognito_pool: Option<String>,
    /// The id of the pool's app client
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_CLIENT", value_name = "ID")]
    cognito_client: Option<String>,
    /// The app client's secret, if it has one, in a file of mode 600 (or in WEBRTC_SERVER_COGNITO_CLIENT_SECRET)
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_CLIENT_SECRET_FILE", value_name = "FILE")]
    cognito_client_secret_file: Option<PathBuf>,
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_CLIENT_SECRET", value_parser = secret, hide = true, hide_env_values = true)]
    cognito_client_secret: Option<Secret<String>>,
    /// How users are made: `admin` (AdminCreateUser, for a pool where nobody can sign up) or `sign-up` (SignUp) [default: admin]
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_SIGN_IN", value_name = "WAY", global = true)]
    cognito_sign_in: Option<SignInWay>,
    /// Whose tokens the pool's are [default: https://cognito-idp.REGION.amazonaws.com/POOL]
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_ISSUER", value_name = "URL")]
    cognito_issuer: Option<String>,
    /// Where the keys of these tokens are published [default: ISSUER/.well-known/jwks.json]
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_JWKS_URL", value_name = "URL")]
    cognito_jwks_url: Option<String>,
    /// How old a user of ours must be to be deleted although nobody said that its room has ended, in seconds; longer than the pool's id
    /// tokens are valid [default: 90000]
    #[arg(long, env = "WEBRTC_SERVER_COGNITO_SWEEP_AFTER", value_name = "SECONDS")]
    cognito_sweep_after: Option<u64>,
    /// Sign-ins from everywhere in a day (UTC), counted by this process: each is a user on the pool's bill [default: 1000 with cognito, no limit
    /// with local]
    #[arg(long, env = "WEBRTC_SERVER_SIGN_INS_PER_DAY", value_name = "COUNT", help_heading = "Limits")]
    sign_ins_per_day: Option<u32>,
    /// Sign-ins from everywhere in a second [default: 10 with cognito, 50 with local]
    #[arg(long, env = "WEBRTC_SERVER_SIGN_INS_PER_SECOND", value_name = "COUNT", help_heading = "Limits")]
    sign_ins_per_second: Option<u32>,
}

/// What the configuration file says of it.
#[derive(Debug, Default, Clone)]
pub(super) struct UserSection {
    pub(super) auth: Option<AuthKind>,
    pub(super) pool: Option<String>,
    pub(super) client: Option<String>,
    pub(super) client_secret_file: Option<PathBuf>,
    pub(super) sign_in: Option<SignInWay>,
    pub(super) issuer: Option<String>,
    pub(super) jwks_url: Option<String>,
    pub(super) sweep_after: Option<u64>,
    pub(super) deletions_per_second: Option<u32>,
}

impl UserArgs {
    /// Lets the flags win over the file's limits.
    pub(super) fn limit(&self, limits: &mut Limits) {
        limits.sign_ins_per_day_in_all = self.sign_ins_per_day.or(limits.sign_ins_per_day_in_all);
        limits.sign_ins_per_second_in_all = self.sign_ins_per_second.or(limits.sign_ins_per_second_in_all);
    }

    /// How users sign in at a pool.
    pub(super) fn way(&self, section: &UserSection) -> SignInWay {
        self.cognito_sign_in.or(section.sign_in).unwrap_or(SignInWay::Admin)
    }

    /// The user pool, if users are made in one.
    pub(super) fn decide(self, section: UserSection) -> Result<Option<CognitoSettings>, Failure> {
        let way = self.way(&section);
        let kind = self.auth.or(section.auth).unwrap_or(AuthKind::Local);
        let (pool, client) = (self.cognito_pool.or(section.pool), self.cognito_client.or(section.client));
        if kind == AuthKind::Local {
            return match (pool, client) {
                (None, None) => Ok(None),
                _ => Err(wrong("--cognito-pool and --cognito-client need --auth cognito")),
            };
        }
        let needed = |value: Option<String>, flag: &str| {
            value.ok_or_else(|| wrong(format!("--auth cognito needs {flag}; webrtc-server init makes a pool and an app client")))
        };
        let mut settings = CognitoSettings::new(&needed(pool, "--cognito-pool")?, &needed(client, "--cognito-client")?);
        let file = self.cognito_client_secret_file.or(section.client_secret_file);
        settings.client_secret = match (self.cognito_client_secret, file) {
            (Some(secret), _) => Some(secret),
            (None, file) => file.map(|file| read_secret(&file)).transpose()?,
        };
        settings.way = way;
        settings.issuer = self.cognito_issuer.or(section.issuer).map(|issuer| issuer.trim_end_matches('/').to_owned());
        settings.jwks_url = self.cognito_jwks_url.or(section.jwks_url);
        settings.sweep_after = self.cognito_sweep_after.or(section.sweep_after).unwrap_or(settings.sweep_after);
        settings.deletions_per_second = section.deletions_per_second.unwrap_or(settings.deletions_per_second);
        if !DELETIONS.contains(&settings.deletions_per_second) {
            let (least, most) = (DELETIONS.start(), DELETIONS.end());
            return Err(wrong(format!("cognito_deletions_per_second is {}; it can be {least} to {most}", settings.deletions_per_second)));
        }
        Ok(Some(settings))
    }
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

/// Any text: clap's own errors would quote it.
fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn read_secret(path: &Path) -> Result<Secret<String>, Failure> {
    let bad = |why: &dyn std::fmt::Display| {
        Failure::new(Code::BadFile, format!("the app client's secret in {} cannot be used: {why}", path.display()))
    };
    let text = read_private(path).map_err(|error| bad(&error))?;
    match text.trim() {
        "" => Err(bad(&"it is empty")),
        secret => Ok(Secret::new(secret.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        users: UserArgs,
    }

    fn decide(line: &[&str], section: UserSection) -> Result<Option<CognitoSettings>, Failure> {
        Line::try_parse_from(std::iter::once("webrtc-server").chain(line.iter().copied())).unwrap().users.decide(section)
    }

    const POOL: [&str; 6] = ["--auth", "cognito", "--cognito-pool", "r_p", "--cognito-client", "c"];

    #[test]
    fn users_are_ours_unless_a_pool_is_asked_for_as_a_whole() {
        assert!(decide(&[], UserSection::default()).unwrap().is_none());
        for (line, says) in [
            (&["--auth", "cognito"][..], "--cognito-pool"),
            (&["--auth", "cognito", "--cognito-pool", "p"], "--cognito-client"),
            (&["--cognito-pool", "p"], "--auth cognito"),
        ] {
            let failure = decide(line, UserSection::default()).unwrap_err();
            assert!(failure.message.contains(says), "{failure}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let section = UserSection {
            auth: Some(AuthKind::Cognito),
            pool: Some("file".to_owned()),
            client: Some("file".to_owned()),
            sign_in: Some(SignInWay::SignUp),
            issuer: Some("https://issuer.example/p/".to_owned()),
            sweep_after: Some(7),
            deletions_per_second: Some(5),
            ..UserSection::default()
        };
        let settings = decide(&["--cognito-pool", "flag", "--cognito-sweep-after", "9"], section.clone()).unwrap().unwrap();
        assert_eq!((settings.pool.as_str(), settings.client.as_str()), ("flag", "file"));
        assert_eq!((settings.way, settings.sweep_after, settings.deletions_per_second), (SignInWay::SignUp, 9, 5));
        assert_eq!(settings.issuer.as_deref(), Some("https://issuer.example/p"));
        let fast = UserSection { deletions_per_second: Some(26), ..section };
        assert!(decide(&[], fast).unwrap_err().message.contains("1 to 25"));
    }

    #[test]
    fn limits_depend_on_who_makes_users_unless_they_are_set() {
        let limits = |pool: bool, line: &[&str]| {
            let mut limits = Limits::default();
            Line::try_parse_from([&["webrtc-server"], line].concat()).unwrap().users.limit(&mut limits);
            let limits = limits.for_users_of(pool);
            (limits.sign_ins_per_second_in_all, limits.sign_ins_per_day_in_all)
        };
        assert_eq!(limits(false, &[]), (Some(50), None));
        assert_eq!(limits(true, &[]), (Some(10), Some(1000)));
        assert_eq!(limits(true, &["--sign-ins-per-day", "5", "--sign-ins-per-second", "2"]), (Some(2), Some(5)));
    }

    #[test]
    fn the_client_secret_comes_from_a_private_file_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, "canary\n").unwrap();
        let line = [&POOL[..], &["--cognito-client-secret-file", file.to_str().unwrap()]].concat();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(decide(&line, UserSection::default()).unwrap_err().message.contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = decide(&line, UserSection::default()).unwrap().unwrap();
        assert_eq!(settings.client_secret.as_ref().unwrap().expose(), "canary");
        assert!(!format!("{settings:?}").contains("canary"));
        fs::write(&file, "\n").unwrap();
        assert!(decide(&line, UserSection::default()).unwrap_err().message.contains("empty"));
    }
}
