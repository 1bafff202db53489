//! A pool that throttles, fails, hangs, or whose answers get lost.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use signaling_server::runtime::config::SignInWay;

use super::pool::{Shift, TestPool, metric, until};
use crate::{
    proxy::{Fault, Proxy, TOO_MANY},
    support::TestServer,
};

const ADMIN: [&str; 3] = ["AdminCreateUser", "AdminSetUserPassword", "AdminInitiateAuth"];
const SIGN_UP: [&str; 3] = [".SignUp", "AdminConfirmSignUp", ".InitiateAuth"];

async fn behind(proxy: &Proxy, pool: &TestPool, way: SignInWay) -> TestServer {
    TestServer::start_with(|config| {
        pool.configure(config, &proxy.endpoint, &Shift::default());
        config.cognito.as_mut().unwrap().way = way;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_out_and_a_lost_answer_makes_no_second_user() {
    let pool = TestPool::in_moto().await;
    let proxy = Proxy::before(&pool.endpoint).await;
    let mut made = 0;
    for (way, calls) in [(SignInWay::Admin, ADMIN), (SignInWay::SignUp, SIGN_UP)] {
        let server = behind(&proxy, &pool, way).await;
        for call in calls {
            for (fault, times) in [(Fault::Lost, 1), (TOO_MANY, 2), (Fault::Status(500), 2), (Fault::Reset, 1)] {
                proxy.fail_next(times, fault, call);
                let user = server.sign_in().await;
                made += 1;
                let users = pool.users().await;
                assert!(users.len() == made && users.contains(&user.name), "{call} {fault:?}: {users:?}");
            }
        }
    }
    assert_eq!(made, 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_does_not_answer_is_told_in_time_disturbs_nobody_and_keeps_no_user() {
    let pool = TestPool::in_moto().await;
    let proxy = Proxy::before(&pool.endpoint).await;
    let server = behind(&proxy, &pool, SignInWay::Admin).await;
    let user = server.sign_in().await;
    let room = server.create_room(&user).await;
    let (mut worker, mut client) = (server.join(&room, &user, "w").await, server.join(&room, &user, "c").await);
    for fault in [TOO_MANY, Fault::Hang, Fault::Lost] {
        proxy.fail(fault);
        let took = join_all((0..4).map(|_| refused(&server))).await;
        assert!(took.iter().all(|took| *took < Duration::from_secs(9)), "{fault:?} took {took:?}");
        // From now on at most one of them asks whether the pool is there again, and so the others do not wait.
        let took = join_all((0..4).map(|_| refused(&server))).await;
        assert!(took.iter().filter(|took| **took < Duration::from_millis(500)).count() >= 3, "{fault:?} took {took:?}");
        assert_eq!(server.get("/health").await.1["details"]["users"], "not answering");
        let asked = Instant::now();
        client.send(json!({"type": "peer_message", "to_peer_id": "w", "payload": 1})).await;
        worker.expect("peer_message").await;
        assert!(asked.elapsed() < Duration::from_secs(1));
        proxy.heal();
        until(async || server.call("post", "/anonymous-signin", None, None).await.0 == 200).await;
        assert_eq!(server.get("/health").await.1["details"]["users"], "ok");
    }
    // Those three, and the first: whatever was made for a sign-in that failed is deleted.
    pool.has_users(4).await;
    until(async || metric(&server, "users_waiting").await == 0).await;
}

/// A sign-in that is refused, with the time to try again; returns how long that took.
async fn refused(server: &TestServer) -> Duration {
    let began = Instant::now();
    let response = reqwest::Client::new().post(format!("http://{}/anonymous-signin", server.address)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "UNAVAILABLE");
    began.elapsed()
}
