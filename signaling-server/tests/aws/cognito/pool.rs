//! A user pool in an emulator, and a look into it past the server.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use signaling_server::runtime::{
    clock::Clock,
    config::{CognitoSettings, Config},
};

use crate::{
    emulators::{CognitoLocal, Moto, node_tool, settings, tool},
    support::{Api, PATIENCE, TestServer},
};

/// The keys that the emulators sign with are published in their packages. moto has its as a JWK without the primes.
const MOTO_KEY: &str = r#"
import base64, gzip, json, pathlib, moto
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa
jwk = json.load(gzip.open(pathlib.Path(moto.__file__).parent / "cognitoidp/resources/jwks-private.json.gz"))
n, e, d = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in "ned")
p, q = rsa.rsa_recover_prime_factors(n, e, d)
numbers = rsa.RSAPrivateNumbers(p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n))
der = numbers.private_key().private_bytes(s.Encoding.DER, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption())
print(base64.b64encode(der).decode())
"#;

#[allow(dead_code, reason = "they are held, not asked")]
#[derive(Clone)]
enum Emulator {
    Moto(Arc<Moto>),
    Local(Arc<CognitoLocal>),
}

/// A pool with an app client. It ends with its value.
pub(crate) struct TestPool {
    emulator: Emulator,
    /// Where the emulator is.
    pub(crate) endpoint: String,
    pub(crate) id: String,
    pub(crate) client: String,
    /// None: the one that real pools have.
    issuer: Option<String>,
    http: reqwest::Client,
}

impl TestPool {
    pub(crate) async fn in_moto() -> Self {
        let moto = Moto::start();
        let endpoint = moto.endpoint.clone();
        Self::make(Emulator::Moto(Arc::new(moto)), endpoint).await
    }

    pub(crate) async fn in_cognito_local() -> Self {
        let local = CognitoLocal::start();
        let endpoint = local.endpoint.clone();
        Self::make(Emulator::Local(Arc::new(local)), endpoint).await
    }

    async fn make(emulator: Emulator, endpoint: String) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut pool = TestPool { emulator, endpoint, id: String::new(), client: String::new(), issuer: None, http };
        pool.id = pool.call("CreateUserPool", json!({"PoolName": "test"})).await["UserPool"]["Id"].as_str().unwrap().to_owned();
        let flows = json!(["ALLOW_ADMIN_USER_PASSWORD_AUTH", "ALLOW_USER_PASSWORD_AUTH"]);
        pool.client = pool.client_with(json!({"ExplicitAuthFlows": flows})).await;
        if matches!(pool.emulator, Emulator::Local(_)) {
            pool.issuer = Some(format!("{}/{}", CognitoLocal::ISSUER, pool.id));
        }
        pool
    }

    /// Another pool of the same emulator, which ends with this one.
    pub(crate) fn with(&self, id: &str, client: &str) -> TestPool {
        let issuer = self.issuer.as_ref().map(|_| format!("{}/{id}", CognitoLocal::ISSUER));
        let (id, client, endpoint) = (id.to_owned(), client.to_owned(), self.endpoint.clone());
        TestPool { emulator: self.emulator.clone(), endpoint, id, client, issuer, http: self.http.clone() }
    }

    /// One more app client.
    pub(crate) async fn client_with(&self, mut properties: Value) -> String {
        properties["UserPoolId"] = json!(self.id);
        properties["ClientName"] = json!("test");
        self.call("CreateUserPoolClient", properties).await["UserPoolClient"]["ClientId"].as_str().unwrap().to_owned()
    }

    /// A call as an SDK makes it, unsigned: emulators do not mind.
    pub(crate) async fn call(&self, action: &str, body: Value) -> Value {
        let request = self.http.post(&self.endpoint).header("X-Amz-Target", format!("AWSCognitoIdentityProviderService.{action}"));
        // moto finds service and region in the signature; nobody checks it.
        let signature = "AWS4-HMAC-SHA256 Credential=test/20260101/us-west-1/cognito-idp/aws4_request, SignedHeaders=host, Signature=0";
        let request = request.header("X-Amz-Date", "20260101T000000Z").header("Authorization", signature);
        let response = request.header("Content-Type", "application/x-amz-json-1.1").body(body.to_string()).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{action}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The names of its users.
    pub(crate) async fn users(&self) -> Vec<String> {
        let (mut names, mut page) = (Vec::new(), Value::Null);
        loop {
            let mut body = json!({"UserPoolId": self.id});
            if page.is_string() {
                body["PaginationToken"] = page;
            }
            let listed = self.call("ListUsers", body).await;
            names.extend(listed["Users"].as_array().unwrap().iter().map(|user| user["Username"].as_str().unwrap().to_owned()));
            page = listed["PaginationToken"].clone();
            if !page.is_string() {
                return names;
            }
        }
    }

    /// Waits until it has so many users.
    pub(crate) async fn has_users(&self, count: usize) {
        until(async || self.users().await.len() == count).await;
    }

    pub(crate) fn jwks_url(&self) -> String {
        format!("{}/{}/.well-known/jwks.json", self.endpoint, self.id)
    }

    pub(crate) fn settings(&self) -> CognitoSettings {
        CognitoSettings {
            issuer: self.issuer.clone(),
            jwks_url: Some(self.jwks_url()),
            // Emulators have no quota.
            deletions_per_second: 1000,
            ..CognitoSettings::new(&self.id, &self.client)
        }
    }

    /// A configuration with this pool, reached at this endpoint; its clock goes ahead by the shift.
    pub(crate) fn configure(&self, config: &mut Config, endpoint: &str, shift: &Shift) {
        config.aws = settings(endpoint);
        config.cognito = Some(self.settings());
        config.clock = shift.clock();
        config.limits.sign_ins_per_second_in_all = Some(1000);
        config.limits.requests_per_minute = 100_000;
        config.limits.rooms_per_minute = 10_000;
    }

    /// A server that makes its users here.
    pub(crate) async fn server(&self, change: impl FnOnce(&mut CognitoSettings)) -> TestServer {
        TestServer::start_with(|config| {
            self.configure(config, &self.endpoint, &Shift::default());
            change(config.cognito.as_mut().unwrap());
        })
        .await
    }

    /// The key that the emulator signs with.
    pub(crate) fn key(&self) -> EncodingKey {
        match &self.emulator {
            Emulator::Moto(_) => moto_key(),
            Emulator::Local(_) => cognito_local_key(),
        }
    }

    /// A key that it does not sign with.
    pub(crate) fn other_key(&self) -> EncodingKey {
        match &self.emulator {
            Emulator::Moto(_) => cognito_local_key(),
            Emulator::Local(_) => moto_key(),
        }
    }
}

fn moto_key() -> EncodingKey {
    let output = Command::new(tool("python")).args(["-c", MOTO_KEY]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    EncodingKey::from_rsa_der(&STANDARD.decode(output.stdout.trim_ascii()).unwrap())
}

fn cognito_local_key() -> EncodingKey {
    let text = std::fs::read_to_string(node_tool("cognito-local/lib/keys/cognitoLocal.private.json")).unwrap();
    let pem = serde_json::from_str::<Value>(&text).unwrap()["pem"].as_str().unwrap().to_owned();
    assert!(pem.contains("BEGIN RSA PRIVATE KEY"), "PKCS#1");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    EncodingKey::from_rsa_der(&STANDARD.decode(body).unwrap())
}

/// How far the server's clock is ahead of the emulators'.
#[derive(Clone, Default)]
pub(crate) struct Shift(Arc<AtomicU64>);

impl Shift {
    pub(crate) fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    fn clock(&self) -> Clock {
        let shift = self.0.clone();
        Clock::from_fn(move || unix_now() + shift.load(Ordering::SeqCst))
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
        while !is_so().await {
            tick.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it should have come true");
}

/// The header and the claims of a token, unchecked.
pub(crate) fn read(token: &str) -> (Header, Value) {
    let claims = token.split('.').nth(1).unwrap();
    (jsonwebtoken::decode_header(token).unwrap(), serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap())
}

pub(crate) fn signed(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).unwrap()
}

pub(crate) fn rs256(kid: &str) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::RS256) }
}

/// A counter or gauge of the server's.
pub(crate) async fn metric(server: &Api, name: &str) -> u64 {
    let (_, text) = server.get("/metrics").await;
    let start = format!("webrtc_server_{name} ");
    let found = text.as_str().unwrap().lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.parse().unwrap());
    found.unwrap_or(0)
}
