//! Anonymous users in a Cognito user pool.

mod faults;
mod pool;
mod secrets;
mod tokens;

use futures_util::{StreamExt, stream};
use serde_json::json;
use shared::domain::error::Code;
use signaling_server::runtime::{
    aws,
    cognito::make,
    config::{CognitoSettings, Config, SignInWay},
    server::Server,
    users::is_ours,
};
use tokio_util::sync::CancellationToken;

use self::pool::{Shift, TestPool, metric, read, unix_now, until};
use crate::{
    emulators::{environment, settings},
    support::{TestServer, User},
};

/// Runs each test with each emulator.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_moto {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::TestPool::in_moto().await).await; })*
        }
        mod on_cognito_local {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::TestPool::in_cognito_local().await).await; })*
        }
    };
}
use on_both;

on_both!(
    a_user_is_made_in_both_ways_and_deleted_with_its_room,
    what_is_wrong_with_the_pool_is_told_at_the_start,
    no_more_users_than_a_day_may_have_and_none_is_left,
    a_pool_is_made_once_and_serves,
);

async fn a_user_is_made_in_both_ways_and_deleted_with_its_room(pool: TestPool) {
    for way in [SignInWay::Admin, SignInWay::SignUp] {
        let server = pool.server(|settings| settings.way = way).await;
        let (status, answer) = server.call("post", "/anonymous-signin", None, None).await;
        assert_eq!(status, 200, "{way}: {answer}");
        let user = User { token: answer["id_token"].as_str().unwrap().to_owned(), name: answer["username"].as_str().unwrap().to_owned() };
        let (header, claims) = read(&user.token);
        assert!(is_ours(&user.name) && claims["cognito:username"] == user.name.as_str() && claims["sub"] != user.name.as_str());
        let left = claims["exp"].as_u64().unwrap() - unix_now();
        assert!(answer["expires_in"].as_u64().unwrap().abs_diff(left) <= 5, "{answer}, and {left} seconds are left");
        assert_eq!(pool.users().await, std::slice::from_ref(&user.name));
        let (_, jwks) = server.get("/.well-known/jwks.json").await;
        assert_eq!(jwks["keys"][0]["kid"], header.kid.unwrap().as_str());
        let room = server.create_room(&user).await;
        let guest = server.sign_in().await;
        let (mut worker, mut client) = (server.join(&room, &user, "w").await, server.join(&room, &guest, "c").await);
        client.send(json!({"type": "peer_message", "to_peer_id": "w", "payload": 1})).await;
        assert_eq!(worker.expect("peer_message").await["from_peer_id"], "c");
        pool.has_users(2).await;
        assert_eq!(server.call("delete", &format!("/rooms/{}", room.room_id), Some(&user.token), None).await.0, 200);
        pool.has_users(0).await;
        until(async || metric(&server, "users_deleted_total").await == 2).await;
        assert_eq!((metric(&server, "users_made_total").await, metric(&server, "users_waiting").await), (2, 0));
        assert_eq!(server.get("/health").await.1["status"], "healthy");
    }
}

async fn what_is_wrong_with_the_pool_is_told_at_the_start(pool: TestPool) {
    let secret = pool.client_with(json!({"GenerateSecret": true, "ExplicitAuthFlows": ["ALLOW_ADMIN_USER_PASSWORD_AUTH"]})).await;
    let no_flow = pool.client_with(json!({"ExplicitAuthFlows": ["ALLOW_USER_PASSWORD_AUTH"]})).await;
    let says = async |change: &dyn Fn(&mut CognitoSettings), expected: &str| {
        let mut config = Config::default();
        pool.configure(&mut config, &pool.endpoint, &Shift::default());
        change(config.cognito.as_mut().unwrap());
        let failure = Server::open(config, CancellationToken::new()).await.err().expect(expected);
        assert!(failure.code == Code::InvalidRequest && failure.message.contains(expected), "{expected}: {failure}");
    };
    says(&|settings| settings.pool = "us-west-1_nowhere".to_owned(), "us-west-1_nowhere in us-west-1; check --cognito-pool").await;
    says(&|settings| settings.client = "nobody".to_owned(), "no app client nobody").await;
    says(&|settings| settings.client.clone_from(&no_flow), "ALLOW_ADMIN_USER_PASSWORD_AUTH").await;
    says(&|settings| settings.client.clone_from(&secret), "--cognito-client-secret-file").await;
    says(&|settings| settings.sweep_after = 60, "--cognito-sweep-after").await;
    says(&|settings| settings.jwks_url = Some(format!("{}/elsewhere", pool.endpoint)), "--cognito-jwks-url").await;
    let mut config = Config::default();
    pool.configure(&mut config, &pool.endpoint, &Shift::default());
    assert!(Server::open(config, CancellationToken::new()).await.is_ok(), "it is as it should be");
}

/// R28 in small: half of the users never open a room.
async fn no_more_users_than_a_day_may_have_and_none_is_left(pool: TestPool) {
    const CAP: usize = 160;
    pool.call("AdminCreateUser", json!({"UserPoolId": pool.id, "Username": "anna", "MessageAction": "SUPPRESS"})).await;
    let shift = Shift::default();
    let start = async |cap: usize| {
        TestServer::start_with(|config| {
            pool.configure(config, &pool.endpoint, &shift);
            config.limits.sign_ins_per_day_in_all = Some(cap as u32);
            config.cognito.as_mut().unwrap().sweep_every = std::time::Duration::from_millis(300);
        })
        .await
    };
    let server = start(CAP).await;
    let answers = stream::iter(0..CAP + 20).map(|_| server.call("post", "/anonymous-signin", None, None));
    let answers: Vec<_> = answers.buffer_unordered(8).collect().await;
    let users: Vec<User> = answers
        .iter()
        .filter(|(status, _)| *status == 200)
        .map(|(_, answer)| User { token: answer["id_token"].as_str().unwrap().to_owned(), name: String::new() })
        .collect();
    assert_eq!((users.len(), answers.iter().filter(|(status, _)| *status == 429).count()), (CAP, 20));
    assert_eq!(metric(&server, "users_made_total").await, CAP as u64);
    assert!(server.get("/metrics").await.1.as_str().unwrap().contains("webrtc_server_sign_ins_refused_total{limit=\"day\"} 20"));
    let rooms = stream::iter(&users[..CAP / 2]).map(|user| async {
        let room = server.create_room(user).await;
        let path = format!("/rooms/{}", room.room_id);
        assert_eq!(server.call("delete", &path, Some(&user.token), None).await.0, 200);
    });
    rooms.buffer_unordered(8).collect::<Vec<()>>().await;
    until(async || metric(&server, "users_deleted_total").await == CAP as u64 / 2).await;
    assert_eq!((pool.users().await.len(), metric(&server, "users_swept_total").await), (CAP / 2 + 1, 0));
    // Another server of the same pool sweeps, too.
    let other = start(CAP).await;
    shift.pass(26 * 3600);
    pool.has_users(1).await;
    assert_eq!(pool.users().await, ["anna"]);
    until(async || metric(&server, "users_swept_total").await + metric(&other, "users_swept_total").await == CAP as u64 / 2).await;
}

async fn a_pool_is_made_once_and_serves(emulator: TestPool) {
    let sdk = aws::load(&settings(&emulator.endpoint)).await.unwrap();
    for way in [SignInWay::Admin, SignInWay::SignUp] {
        let name = format!("webrtc-connect-{way}");
        let made = make::make(&sdk, &name, way).await.unwrap();
        assert!(made.pool_made && made.client_made, "{made:?}");
        let again = make::make(&sdk, &name, way).await.unwrap();
        assert_eq!(again, make::Made { pool_made: false, client_made: false, ..made.clone() });
        let pool = emulator.with(&made.pool, &made.client);
        let server = pool.server(|settings| settings.way = way).await;
        let user = server.sign_in().await;
        assert_eq!(pool.users().await, std::slice::from_ref(&user.name));
    }
}

#[tokio::test]
async fn without_region_or_credentials_the_server_says_what_to_set() {
    let run = |leave_out: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_webrtc-server"));
        let set = environment("http://127.0.0.1:1").into_iter().filter(|(name, _)| !name.starts_with(leave_out));
        command.env_clear().envs(set).args(["--listen", "127.0.0.1:0", "--store", "memory", "--config", "/dev/null"]);
        command.args(["--auth", "cognito", "--cognito-pool", "us-west-1_p", "--cognito-client", "c"]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (leave_out, says) in [("AWS_REGION", "AWS_REGION"), ("AWS_ACCESS_KEY_ID", "credentials")] {
        let (code, said) = run(leave_out);
        assert!(code == Some(2) && said.contains(says), "without {leave_out}: {code:?} {said}");
    }
}
