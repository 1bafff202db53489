//! What `webrtc-server init` makes in Cognito: a pool where users have nothing but names, and an app client that gives them tokens for a day.

use aws_config::SdkConfig;
use aws_sdk_cognitoidentityprovider::{
    Client,
    error::SdkError,
    types::{
        AdminCreateUserConfigType, DeletionProtectionType, ExplicitAuthFlowsType, PreventUserExistenceErrorTypes, TimeUnitsType,
        TokenValidityUnitsType, UserPoolMfaType,
    },
};
use shared::domain::error::{Code, Failure};

use super::Trouble;
use crate::runtime::config::SignInWay;

/// What the app client is called.
pub const APP: &str = "webrtc-server";
/// How long id tokens are valid, in hours: the most that there can be, since a client signs in anew after that.
pub const TOKEN_HOURS: i32 = 24;
const PAGE: i32 = 60;

/// A pool, its app client, and which of them were made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The pool's id.
    pub pool: String,
    /// Whether it is new.
    pub pool_made: bool,
    /// The app client's id.
    pub client: String,
    /// Whether it is new.
    pub client_made: bool,
}

/// The authentication flow that a way to sign in needs.
pub fn flow(way: SignInWay) -> &'static str {
    match way {
        SignInWay::Admin => "ALLOW_ADMIN_USER_PASSWORD_AUTH",
        SignInWay::SignUp => "ALLOW_USER_PASSWORD_AUTH",
    }
}

/// Makes a pool of this name and its app client; those that are there stay as they are.
///
/// # Errors
/// [`Code::InvalidRequest`] when there are several of the name, and what Cognito says.
pub async fn make(sdk: &SdkConfig, name: &str, way: SignInWay) -> Result<Made, Failure> {
    let client = Client::new(sdk);
    let (pool, pool_made) = match find_pool(&client, name).await? {
        Some(id) => (id, false),
        None => (make_pool(&client, name, way).await?, true),
    };
    let (app, client_made) = match find_app(&client, &pool).await? {
        Some(id) => (id, false),
        None => (make_app(&client, &pool, way).await?, true),
    };
    Ok(Made { pool, pool_made, client: app, client_made })
}

async fn find_pool(client: &Client, name: &str) -> Result<Option<String>, Failure> {
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let listed = client.list_user_pools().max_results(PAGE).set_next_token(page).send().await;
        let listed = listed.map_err(|error| told("ListUserPools", error))?;
        let of_the_name = listed.user_pools().iter().filter(|pool| pool.name() == Some(name));
        found.extend(of_the_name.filter_map(|pool| pool.id().map(str::to_owned)));
        page = listed.next_token().map(str::to_owned);
        if page.is_none() {
            return only(found, &format!("user pools {name}"));
        }
    }
}

async fn find_app(client: &Client, pool: &str) -> Result<Option<String>, Failure> {
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let listing = client.list_user_pool_clients().user_pool_id(pool).max_results(PAGE);
        let listed = listing.set_next_token(page).send().await.map_err(|error| told("ListUserPoolClients", error))?;
        let of_the_name = listed.user_pool_clients().iter().filter(|app| app.client_name() == Some(APP));
        found.extend(of_the_name.filter_map(|app| app.client_id().map(str::to_owned)));
        page = listed.next_token().map(str::to_owned);
        if page.is_none() {
            return only(found, &format!("app clients {APP} in the pool {pool}"));
        }
    }
}

fn only(mut found: Vec<String>, what: &str) -> Result<Option<String>, Failure> {
    if found.len() > 1 {
        let message = format!("there are several {what} ({}); delete all but one, or name what the server is to use", found.join(", "));
        return Err(Failure::new(Code::InvalidRequest, message));
    }
    Ok(found.pop())
}

async fn make_pool(client: &Client, name: &str, way: SignInWay) -> Result<String, Failure> {
    let closed = AdminCreateUserConfigType::builder().allow_admin_create_user_only(way == SignInWay::Admin).build();
    let making = client.create_user_pool().pool_name(name).admin_create_user_config(closed);
    let making = making.mfa_configuration(UserPoolMfaType::Off).deletion_protection(DeletionProtectionType::Active);
    let made = making.send().await.map_err(|error| told("CreateUserPool", error))?;
    made.user_pool().and_then(|pool| pool.id()).map(str::to_owned).ok_or_else(|| nameless("CreateUserPool"))
}

async fn make_app(client: &Client, pool: &str, way: SignInWay) -> Result<String, Failure> {
    let hours = TimeUnitsType::Hours;
    let units = TokenValidityUnitsType::builder().id_token(hours.clone()).access_token(hours.clone()).refresh_token(hours).build();
    let making = client.create_user_pool_client().user_pool_id(pool).client_name(APP);
    let making = making.explicit_auth_flows(ExplicitAuthFlowsType::from(flow(way)));
    // No token may outlive the refresh token, which nobody uses here.
    let making = making.token_validity_units(units).id_token_validity(TOKEN_HOURS).refresh_token_validity(TOKEN_HOURS);
    let making = making.access_token_validity(1).prevent_user_existence_errors(PreventUserExistenceErrorTypes::Enabled);
    let made = making.send().await.map_err(|error| told("CreateUserPoolClient", error))?;
    made.user_pool_client().and_then(|app| app.client_id()).map(str::to_owned).ok_or_else(|| nameless("CreateUserPoolClient"))
}

/// Whoever makes a pool by hand is told everything.
fn told<E>(operation: &str, error: SdkError<E, aws_sdk_cognitoidentityprovider::config::http::HttpResponse>) -> Failure
where
    E: aws_sdk_cognitoidentityprovider::error::ProvideErrorMetadata + std::error::Error + 'static,
{
    let Trouble { outage, details, .. } = Trouble::of(operation, error);
    Failure::new(if outage { Code::Unavailable } else { Code::InvalidRequest }, details)
}

fn nameless(operation: &str) -> Failure {
    Failure::new(Code::Internal, format!("{operation}: Cognito answered without an id"))
}
