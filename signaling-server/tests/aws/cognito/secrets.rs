//! What must not be seen is not seen, however much is logged.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use super::pool::TestPool;
use crate::{emulators::environment, proxy::Proxy, support::Api};

#[tokio::test(flavor = "multi_thread")]
async fn passwords_secrets_and_tokens_are_not_logged() {
    let pool = TestPool::in_moto().await;
    let proxy = Proxy::before(&pool.endpoint).await;
    let flows = ["ALLOW_ADMIN_USER_PASSWORD_AUTH", "ALLOW_USER_PASSWORD_AUTH"];
    let properties = json!({"UserPoolId": pool.id, "ClientName": "secret", "GenerateSecret": true, "ExplicitAuthFlows": flows});
    let app = pool.call("CreateUserPoolClient", properties).await["UserPoolClient"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut canaries = vec![text(&app["ClientSecret"])];
    let mut log = String::new();
    for way in ["admin", "sign-up"] {
        let mut program = Program::start(&pool, &proxy, &app, way);
        let api = Api::at(program.address.clone());
        let user = api.sign_in().await;
        let room = api.create_room(&user).await;
        assert_eq!(api.call("delete", &format!("/rooms/{}", room.room_id), Some(&user.token), None).await.0, 200);
        pool.has_users(0).await;
        canaries.extend([user.token, room.token.expose().clone()]);
        log.push_str(&program.end());
    }
    for body in proxy.bodies() {
        let parameters = &body["AuthParameters"];
        let secret = [&body["Password"], &body["SecretHash"], &parameters["PASSWORD"], &parameters["SECRET_HASH"]];
        canaries.extend(secret.into_iter().filter_map(|value| value.as_str().map(str::to_owned)));
    }
    // One secret and, of each way: token, room's token, twice the password, and the hash of the secret, once or twice.
    assert!(canaries.len() > 2 * 5, "{}", canaries.len());
    assert!(log.contains("TRACE") && log.contains("AdminCreateUser"), "nothing was looked at");
    for canary in canaries {
        assert!(canary.len() >= 16 && !log.contains(&canary), "{canary} is in the log");
    }
}

/// The server as a program that logs all it can.
struct Program {
    child: Child,
    address: String,
    log: Option<thread::JoinHandle<String>>,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start(pool: &TestPool, proxy: &Proxy, app: &Value, way: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, app["ClientSecret"].as_str().unwrap()).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_webrtc-server"));
        command.env_clear().envs(environment(&proxy.endpoint)).env("WEBRTC_LOG", "trace");
        command.args(["--json", "--listen", "127.0.0.1:0", "--store", "memory", "--config", "/dev/null", "--auth", "cognito"]);
        command.args(["--cognito-pool", &pool.id, "--cognito-client", app["ClientId"].as_str().unwrap(), "--cognito-sign-in", way]);
        command.args(["--cognito-jwks-url", &pool.jwks_url(), "--cognito-client-secret-file"]).arg(&secret);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let log = thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let listening: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("it has not started ({error}): {line}"));
        let address = listening["http"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Program { child, address, log: Some(log), _folder: folder }
    }

    /// Ends it; all that it has logged.
    fn end(&mut self) -> String {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
