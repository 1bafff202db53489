//! Anonymous users in an Amazon Cognito user pool. The only file that names `aws_sdk_cognitoidentityprovider`.
//!
//! A sign-in is three calls, in one of two ways ([`SignInWay`]): with the rights of an administrator, for which the pool need not let anybody
//! sign up; or as the system before this one did, by signing up. The names are random, and so are the passwords, which nobody keeps.
//!
//! AWS may do something and its answer get lost: the SDK asks again then, and a user that exists already is the one that was just made.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_cognitoidentityprovider::{
    Client,
    config::{self, http::HttpResponse},
    error::{ProvideErrorMetadata, SdkError},
    types::{
        AuthFlowType, AuthenticationResultType, ChallengeNameType, ExplicitAuthFlowsType, MessageActionType, TimeUnitsType,
        UserPoolClientType, UserPoolType,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use shared::domain::{
    error::{Code, Failure},
    id::Secret,
};
use tokio::time::timeout;

use super::{
    aws,
    config::{CognitoSettings, SignInWay},
    guard::Guard,
    users::{Answer, Listed, PREFIX, Page, Pool, Step},
};

/// For one attempt of one call, for the call with all its attempts, and for a whole sign-in: less than an HTTP request may take here.
const ATTEMPT: Duration = Duration::from_millis(1500);
const OPERATION: Duration = Duration::from_secs(4);
const SIGN_IN: Duration = Duration::from_secs(7);
/// Sign-ins at a time.
const AT_ONCE: usize = 32;
/// What `ListUsers` gives at a time, at most.
const PAGE: i32 = 60;
/// How long an id token is valid where the app client does not say, in seconds.
const DEFAULT_TOKEN_LIFE: u64 = 3600;

/// A user pool and the app client that we sign in with.
pub struct Cognito {
    client: Client,
    region: String,
    pool: String,
    app: String,
    secret: Option<Secret<String>>,
    way: SignInWay,
    guard: Guard,
}

/// What went wrong in a call.
#[derive(Debug)]
struct Trouble {
    /// What Cognito calls it.
    code: Option<String>,
    /// Whether Cognito does not work, or not for us now.
    outage: bool,
    /// For the log.
    details: String,
}

impl Trouble {
    fn of<E>(operation: &str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error.code().map(str::to_owned);
        let outage = match &error {
            SdkError::ServiceError(service) => {
                service.raw().status().is_server_error() || service.raw().status().as_u16() == 429 || code.as_deref().is_some_and(throttles)
            }
            SdkError::ConstructionFailure(_) => false,
            _ => true,
        };
        Trouble { code, outage, details: format!("{operation}: {}", aws::causes(&error)) }
    }

    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

fn throttles(code: &str) -> bool {
    matches!(code, "TooManyRequestsException" | "ThrottlingException" | "Throttling" | "LimitExceededException" | "InternalErrorException")
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let Trouble { outage, details, .. } = trouble;
        if outage {
            tracing::warn!(details, "Cognito does not answer");
            return Failure::new(Code::Unavailable, "Cognito does not answer; try again in a few seconds");
        }
        tracing::error!(details, "Cognito refuses what the server asks");
        Failure::new(Code::Internal, "Cognito refuses what the server asks; the server's log says why")
    }
}

impl Cognito {
    /// The pool of these settings.
    pub fn new(sdk: &SdkConfig, settings: &CognitoSettings) -> Self {
        let config = config::Builder::from(sdk).timeout_config(aws::timeouts(ATTEMPT, OPERATION)).build();
        Cognito {
            client: Client::from_conf(config),
            region: sdk.region().map(ToString::to_string).unwrap_or_default(),
            pool: settings.pool.clone(),
            app: settings.client.clone(),
            secret: settings.client_secret.clone(),
            way: settings.way,
            guard: Guard::new("Cognito", AT_ONCE),
        }
    }

    /// Whose tokens the pool's are, where the settings do not say.
    pub fn issuer(&self) -> String {
        format!("https://cognito-idp.{}.amazonaws.com/{}", self.region, self.pool)
    }

    /// Looks whether the pool and the app client are there and let us do what we do. Returns how long id tokens are valid, in seconds, if that
    /// can be seen. What cannot be seen now is no reason not to start.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`], with what to do.
    pub async fn check(&self) -> Result<Option<u64>, Failure> {
        let pool = self.client.describe_user_pool().user_pool_id(&self.pool).send().await;
        let pool = self.seen(pool.map_err(|error| Trouble::of("DescribeUserPool", error)), "--cognito-pool")?;
        let app = self.client.describe_user_pool_client().user_pool_id(&self.pool).client_id(&self.app).send().await;
        let app = self.seen(app.map_err(|error| Trouble::of("DescribeUserPoolClient", error)), "--cognito-client")?;
        if let Some(pool) = pool.as_ref().and_then(|pool| pool.user_pool()) {
            self.check_pool(pool)?;
        }
        app.as_ref().and_then(|app| app.user_pool_client()).map(|app| self.check_app(app)).transpose()
    }

    /// What was asked for, unless that cannot be told now.
    fn seen<T>(&self, described: Result<T, Trouble>, flag: &str) -> Result<Option<T>, Failure> {
        let trouble = match described {
            Ok(described) => return Ok(Some(described)),
            Err(trouble) => trouble,
        };
        if trouble.is("ResourceNotFoundException") || trouble.is("InvalidParameterException") {
            let (pool, app, region) = (&self.pool, &self.app, &self.region);
            let what =
                if flag == "--cognito-pool" { format!("user pool {pool}") } else { format!("app client {app} in the user pool {pool}") };
            return Err(wrong(format!("there is no {what} in {region}; check {flag} and AWS_REGION, or make one with webrtc-server init")));
        }
        let details = &trouble.details;
        if trouble.outage || trouble.is("AccessDeniedException") {
            tracing::warn!(details, "the user pool could not be looked at; going on without");
            return Ok(None);
        }
        Err(wrong(format!("Cognito refuses us ({details}); check the AWS credentials and their rights")))
    }

    fn check_pool(&self, pool: &UserPoolType) -> Result<(), Failure> {
        let id = &self.pool;
        if !pool.username_attributes().is_empty() {
            return Err(wrong(format!(
                "users of the pool {id} sign in with e-mail addresses or telephone numbers, which anonymous users do not have; make a pool with \
                 webrtc-server init"
            )));
        }
        let closed = pool.admin_create_user_config().is_some_and(|config| config.allow_admin_create_user_only());
        if closed && self.way == SignInWay::SignUp {
            return Err(wrong(format!("nobody can sign up in the pool {id}, only administrators make users; use --cognito-sign-in admin")));
        }
        Ok(())
    }

    fn check_app(&self, app: &UserPoolClientType) -> Result<u64, Failure> {
        let id = &self.app;
        let flows = app.explicit_auth_flows();
        let (flow, old) = match self.way {
            SignInWay::Admin => (ExplicitAuthFlowsType::AllowAdminUserPasswordAuth, ExplicitAuthFlowsType::AdminNoSrpAuth),
            SignInWay::SignUp => (ExplicitAuthFlowsType::AllowUserPasswordAuth, ExplicitAuthFlowsType::UserPasswordAuth),
        };
        if !flows.is_empty() && !flows.contains(&flow) && !flows.contains(&old) {
            return Err(wrong(format!(
                "the app client {id} does not allow {}, which --cognito-sign-in {} needs; add it to its authentication flows",
                flow.as_str(),
                self.way
            )));
        }
        match (app.client_secret(), &self.secret) {
            (Some(_), None) => Err(wrong(format!("the app client {id} has a secret; give it in --cognito-client-secret-file"))),
            (None, Some(_)) => Err(wrong(format!("the app client {id} has no secret; leave --cognito-client-secret-file out"))),
            (Some(theirs), Some(ours)) if theirs != ours.expose() => {
                Err(wrong(format!("the secret of the app client {id} is another one than --cognito-client-secret-file has")))
            }
            _ => Ok(token_life(app)),
        }
    }

    async fn sign_in_with(&self, username: &str, step: &(dyn Fn(Step) + Send + Sync)) -> Result<Secret<String>, Trouble> {
        let password = password()?;
        step(Step::Asked);
        match self.way {
            SignInWay::Admin => {
                self.create(username).await?;
                step(Step::Made);
                self.set_password(username, &password).await?;
                self.initiate_as_admin(username, &password).await
            }
            SignInWay::SignUp => {
                self.sign_up(username, &password).await?;
                step(Step::Made);
                self.confirm(username).await?;
                self.initiate(username, &password).await
            }
        }
    }

    async fn create(&self, username: &str) -> Result<(), Trouble> {
        let creating = self.client.admin_create_user().user_pool_id(&self.pool).username(username);
        let created = creating.message_action(MessageActionType::Suppress).send().await;
        ours_if_it_exists(created.map(drop).map_err(|error| Trouble::of("AdminCreateUser", error)))
    }

    async fn set_password(&self, username: &str, password: &Secret<String>) -> Result<(), Trouble> {
        let setting = self.client.admin_set_user_password().user_pool_id(&self.pool).username(username);
        let set = setting.password(password.expose()).permanent(true).send().await;
        set.map(drop).map_err(|error| Trouble::of("AdminSetUserPassword", error))
    }

    async fn initiate_as_admin(&self, username: &str, password: &Secret<String>) -> Result<Secret<String>, Trouble> {
        let initiating = self.client.admin_initiate_auth().user_pool_id(&self.pool).client_id(&self.app);
        let initiating = initiating.auth_flow(AuthFlowType::AdminUserPasswordAuth);
        let initiating = initiating.auth_parameters("USERNAME", username).auth_parameters("PASSWORD", password.expose());
        let initiated = match self.secret_hash(username) {
            None => initiating,
            Some(hash) => initiating.auth_parameters("SECRET_HASH", hash),
        };
        let initiated = initiated.send().await.map_err(|error| Trouble::of("AdminInitiateAuth", error))?;
        id_token(initiated.authentication_result(), initiated.challenge_name())
    }

    async fn sign_up(&self, username: &str, password: &Secret<String>) -> Result<(), Trouble> {
        let signing_up = self.client.sign_up().client_id(&self.app).username(username).password(password.expose());
        let signed_up = signing_up.set_secret_hash(self.secret_hash(username)).send().await;
        ours_if_it_exists(signed_up.map(drop).map_err(|error| Trouble::of("SignUp", error)))
    }

    async fn confirm(&self, username: &str) -> Result<(), Trouble> {
        let confirmed = self.client.admin_confirm_sign_up().user_pool_id(&self.pool).username(username).send().await;
        match confirmed.map_err(|error| Trouble::of("AdminConfirmSignUp", error)) {
            // Who is confirmed already cannot be confirmed: an answer was lost.
            Err(trouble) if trouble.is("NotAuthorizedException") => Ok(()),
            confirmed => confirmed.map(drop),
        }
    }

    async fn initiate(&self, username: &str, password: &Secret<String>) -> Result<Secret<String>, Trouble> {
        let initiating = self.client.initiate_auth().client_id(&self.app).auth_flow(AuthFlowType::UserPasswordAuth);
        let initiating = initiating.auth_parameters("USERNAME", username).auth_parameters("PASSWORD", password.expose());
        let initiated = match self.secret_hash(username) {
            None => initiating,
            Some(hash) => initiating.auth_parameters("SECRET_HASH", hash),
        };
        let initiated = initiated.send().await.map_err(|error| Trouble::of("InitiateAuth", error))?;
        id_token(initiated.authentication_result(), initiated.challenge_name())
    }

    /// Amazon Cognito Developer Guide, "Computing secret hash values".
    fn secret_hash(&self, username: &str) -> Option<String> {
        let secret = self.secret.as_ref()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
        mac.update(username.as_bytes());
        mac.update(self.app.as_bytes());
        Some(STANDARD.encode(mac.finalize().into_bytes()))
    }

    async fn delete_now(&self, username: &str) -> Result<bool, Trouble> {
        let deleted = self.client.admin_delete_user().user_pool_id(&self.pool).username(username).send().await;
        match deleted.map_err(|error| Trouble::of("AdminDeleteUser", error)) {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.is("UserNotFoundException") => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    async fn list_now(&self, page: Option<String>) -> Result<Page, Trouble> {
        let listing = self.client.list_users().user_pool_id(&self.pool).limit(PAGE).set_pagination_token(page);
        let listed = listing.filter(format!("username ^= \"{PREFIX}\"")).send().await;
        let listed = listed.map_err(|error| Trouble::of("ListUsers", error))?;
        let user = |user: &aws_sdk_cognitoidentityprovider::types::UserType| {
            let made_at = u64::try_from(user.user_create_date()?.secs()).ok()?;
            Some(Listed { username: user.username()?.to_owned(), made_at })
        };
        Ok(Page { users: listed.users().iter().filter_map(user).collect(), next: listed.pagination_token().map(str::to_owned) })
    }
}

impl Pool for Cognito {
    fn sign_in<'a>(&'a self, username: &'a str, step: &'a (dyn Fn(Step) + Send + Sync)) -> Answer<'a, Secret<String>> {
        Box::pin(async move {
            let pass = self.guard.enter()?;
            let late = || Trouble { code: None, outage: true, details: format!("a sign-in took more than {SIGN_IN:?}") };
            let signed_in = timeout(SIGN_IN, Box::pin(self.sign_in_with(username, step))).await.unwrap_or_else(|_| Err(late()));
            pass.report(signed_in.as_ref().err().is_none_or(|trouble| !trouble.outage));
            // For whoever signs in it is the same: not now.
            signed_in.map_err(|trouble| Failure { code: Code::Unavailable, ..Failure::from(trouble) })
        })
    }

    fn delete<'a>(&'a self, username: &'a str) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.delete_now(username).await?) })
    }

    fn list(&self, page: Option<String>) -> Answer<'_, Page> {
        Box::pin(async move { Ok(self.list_now(page).await?) })
    }

    fn is_away(&self) -> bool {
        self.guard.is_open()
    }
}

fn wrong(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

/// The name is new and random, so that a user of this name is the one that we have just made.
fn ours_if_it_exists(made: Result<(), Trouble>) -> Result<(), Trouble> {
    match made {
        Err(trouble) if trouble.is("UsernameExistsException") => Ok(()),
        made => made,
    }
}

fn id_token(result: Option<&AuthenticationResultType>, challenge: Option<&ChallengeNameType>) -> Result<Secret<String>, Trouble> {
    let token = result.and_then(|result| result.id_token());
    token.map(|token| Secret::new(token.to_owned())).ok_or_else(|| {
        let asked = challenge.map_or("nothing", |challenge| challenge.as_str());
        let details = format!("Cognito gave no id token and asked for {asked}; switch multi-factor authentication off in the pool");
        Trouble { code: None, outage: false, details }
    })
}

/// 256 random bits, and one of each kind of character that a pool's policy may want.
fn password() -> Result<Secret<String>, Trouble> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Trouble { code: None, outage: true, details: format!("no randomness: {error}") })?;
    Ok(Secret::new(format!("Aa1!{}", URL_SAFE_NO_PAD.encode(bytes))))
}

fn token_life(app: &UserPoolClientType) -> u64 {
    let unit = match app.token_validity_units().and_then(|units| units.id_token()) {
        Some(TimeUnitsType::Seconds) => 1,
        Some(TimeUnitsType::Minutes) => 60,
        Some(TimeUnitsType::Days) => 24 * 3600,
        _ => 3600,
    };
    match app.id_token_validity().and_then(|validity| u64::try_from(validity).ok()) {
        None | Some(0) => DEFAULT_TOKEN_LIFE,
        Some(validity) => validity.saturating_mul(unit),
    }
}
