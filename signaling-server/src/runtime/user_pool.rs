//! Everything that a server with a user pool has for it: the users, the keys of their tokens, and the tasks that look after both.

use std::{sync::Arc, time::Duration};

use shared::{
    domain::error::{Code, Failure},
    runtime::shutdown::Shutdown,
};

use super::{
    auth::{self, Auth, PublishedKeys},
    aws,
    clock::Clock,
    cognito::Cognito,
    config::{CognitoSettings, Config},
    jwks::Jwks,
    metrics::Metrics,
    users::{Deletion, Users},
};

/// A user pool in use.
pub struct UserPool {
    /// Its users.
    pub users: Arc<Users>,
    keys: Arc<PublishedKeys>,
    refresh_keys: Duration,
}

impl UserPool {
    /// Looks at the pool, fetches its keys, and says how its tokens are checked. A pool that does not answer now is no reason not to start:
    /// `/health` tells, and it is asked again.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when pool, app client, keys or credentials are wrong, with what to do.
    pub async fn open(config: &Config, settings: &CognitoSettings, metrics: Arc<Metrics>) -> Result<(Self, Auth), Failure> {
        let sdk = aws::load(&config.aws).await?;
        let cognito = Cognito::new(&sdk, settings);
        if let Some(life) = cognito.check().await? {
            check_age(settings, life)?;
        }
        let issuer = settings.issuer.clone().unwrap_or_else(|| cognito.issuer());
        let url = settings.jwks_url.clone().unwrap_or_else(|| format!("{issuer}/.well-known/jwks.json"));
        let keys = Arc::new(Jwks::new(&url, auth::rsa_key, config.clock.clone())?);
        match keys.fetch().await {
            Err(failure) if failure.code != Code::Unavailable => {
                let message = format!("{url} has no keys to check id tokens with ({failure}); check --cognito-pool, or --cognito-jwks-url");
                return Err(Failure::new(Code::InvalidRequest, message));
            }
            // It has been logged.
            _ => {}
        }
        tracing::info!(pool = settings.pool, issuer, way = %settings.way, "anonymous users are made in a user pool");
        let auth = Auth::pool(&issuer, &settings.client, keys.clone());
        let deletion = Deletion {
            per_second: settings.deletions_per_second,
            sweep_after: settings.sweep_after,
            sweep_every: settings.sweep_every,
            ..Deletion::default()
        };
        let users = Arc::new(Users::new(Arc::new(cognito), deletion, metrics));
        Ok((UserPool { users, keys, refresh_keys: settings.refresh_keys }, auth))
    }

    /// Starts what keeps the keys fresh and deletes users, until the shutdown; `goodbye` is for what then still waits to be deleted.
    pub fn attend(&self, clock: Clock, goodbye: Duration, shutdown: &Shutdown) {
        let (keys, every, stop) = (self.keys.clone(), self.refresh_keys, shutdown.token.clone());
        shutdown.spawn(async move { keys.keep_fresh(every, stop).await });
        let (users, stop) = (self.users.clone(), shutdown.token.clone());
        shutdown.spawn(async move { users.delete_queued(stop, goodbye).await });
        let (users, stop) = (self.users.clone(), shutdown.token.clone());
        shutdown.spawn(async move { users.keep_swept(|| clock.now(), stop).await });
    }
}

fn check_age(settings: &CognitoSettings, token_life: u64) -> Result<(), Failure> {
    if settings.sweep_after > token_life {
        return Ok(());
    }
    Err(Failure::new(
        Code::InvalidRequest,
        format!(
            "--cognito-sweep-after is {} seconds, and id tokens of the app client are valid for {token_life}: users would be deleted while \
             they are in use; make it longer",
            settings.sweep_after
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_not_swept_before_their_tokens_have_expired() {
        let settings = CognitoSettings { sweep_after: 3600, ..CognitoSettings::new("p", "c") };
        assert!(check_age(&settings, 3599).is_ok());
        assert!(check_age(&settings, 3600).unwrap_err().message.contains("--cognito-sweep-after"));
        assert!(check_age(&CognitoSettings::new("p", "c"), 24 * 3600).is_ok());
    }
}
