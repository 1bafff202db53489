//! Who calls: tokens of anonymous users, signed by us and verified by the same code as anybody else's. The only file that names
//! `jsonwebtoken`.
//!
//! [`Issuer`] is data: name, audience, algorithm, keys. Ours signs with EdDSA; a Cognito user pool is one with RS256 and the keys of its
//! JWKS. What a token says about its own algorithm or key is never believed, its `kid` only picks among the keys we have.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::domain::{
    error::{Code, Failure},
    id::Secret,
    signal::SignIn,
};

use super::{
    key::{self, KeyPair},
    proof::random_name,
};

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 4096;
/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 30;
const LOCAL_NAME: &str = "webrtc-connect";
const LOCAL_AUDIENCE: &str = "webrtc-connect-peers";

/// Whose tokens are accepted, and how they are checked.
pub struct Issuer {
    name: String,
    audience: String,
    algorithm: Algorithm,
    keys: RwLock<HashMap<String, DecodingKey>>,
}

impl Issuer {
    fn new(name: &str, audience: &str, algorithm: Algorithm, keys: HashMap<String, DecodingKey>) -> Self {
        Issuer { name: name.to_owned(), audience: audience.to_owned(), algorithm, keys: RwLock::new(keys) }
    }

    fn key(&self, kid: &str) -> Option<DecodingKey> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(kid).cloned()
    }
}

/// The claims that are read; the names are Cognito's.
#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    token_use: String,
    #[serde(rename = "cognito:username", default)]
    username: String,
}

/// The subject of a token that one of the issuers really gave out for us and that is valid now (Unix seconds).
///
/// # Errors
/// [`Code::Unauthorized`]; the reason goes to the debug log only.
pub fn verify(issuers: &[Issuer], token: &str, now: u64) -> Result<String, Failure> {
    check(issuers, token, now).map_err(|why| {
        tracing::debug!(why, "token refused");
        Failure::new(Code::Unauthorized, "the id token is missing, expired or not ours; sign in again (POST /anonymous-signin)")
    })
}

fn check(issuers: &[Issuer], token: &str, now: u64) -> Result<String, &'static str> {
    if token.len() > MAX_TOKEN {
        return Err("too long");
    }
    let kid = jsonwebtoken::decode_header(token).map_err(|_| "unreadable header")?.kid.ok_or("no kid")?;
    let (issuer, key) = issuers.iter().find_map(|issuer| Some((issuer, issuer.key(&kid)?))).ok_or("unknown kid")?;
    // The algorithm comes from the issuer, never from the token: no `none`, no HMAC with a public key.
    let mut validation = Validation::new(issuer.algorithm);
    validation.set_issuer(&[&issuer.name]);
    validation.set_audience(&[&issuer.audience]);
    validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
    // Checked below, against our own clock.
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| "bad signature, issuer or audience")?.claims;
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err("expired");
    }
    match claims.token_use.as_str() {
        "id" => Ok(claims.sub),
        _ => Err("not an id token"),
    }
}

/// The server's own issuer and whatever others it accepts.
pub struct Auth {
    issuers: Vec<Issuer>,
    signer: EncodingKey,
    kid: String,
    jwks: Value,
    token_ttl: u64,
}

impl Auth {
    /// Signs with these keys; tokens are valid for so many seconds.
    ///
    /// # Errors
    /// [`Code::Internal`] when the keys are unusable.
    pub fn local(keys: &KeyPair, token_ttl: u64) -> Result<Self, Failure> {
        let mut known = HashMap::new();
        let mut published = Vec::new();
        for key in std::iter::once(&keys.current).chain(&keys.previous) {
            let (x, kid) = (public_text(key), thumbprint(key));
            let decoding = DecodingKey::from_ed_components(&x)
                .map_err(|error| Failure::new(Code::Internal, format!("the signing key is unusable: {error}")))?;
            known.insert(kid.clone(), decoding);
            published.push(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x}));
        }
        Ok(Auth {
            issuers: vec![Issuer::new(LOCAL_NAME, LOCAL_AUDIENCE, Algorithm::EdDSA, known)],
            signer: EncodingKey::from_ed_der(&key::to_der(&keys.current)),
            kid: thumbprint(&keys.current),
            jwks: json!({"keys": published}),
            token_ttl,
        })
    }

    /// A new anonymous user.
    ///
    /// # Errors
    /// [`Code::Unavailable`] without randomness, [`Code::Internal`] when signing fails.
    pub fn sign_in(&self, now: u64) -> Result<SignIn, Failure> {
        let username = random_name()?;
        let claims = Claims {
            sub: username.clone(),
            iss: LOCAL_NAME.to_owned(),
            aud: LOCAL_AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(self.token_ttl),
            token_use: "id".to_owned(),
            username: username.clone(),
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let id_token = jsonwebtoken::encode(&header, &claims, &self.signer)
            .map_err(|error| Failure::new(Code::Internal, format!("signing failed: {error}")))?;
        Ok(SignIn { id_token: Secret::new(id_token), username, expires_in: self.token_ttl })
    }

    /// As [`verify`], with this server's issuers.
    ///
    /// # Errors
    /// [`Code::Unauthorized`].
    pub fn verify(&self, token: &str, now: u64) -> Result<String, Failure> {
        verify(&self.issuers, token, now)
    }

    /// Our public keys (RFC 7517).
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }
}

fn public_text(key: &SigningKey) -> String {
    URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes())
}

/// RFC 7638, with RFC 8037 §2's members.
fn thumbprint(key: &SigningKey) -> String {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, public_text(key));
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn keys(seed: u8) -> KeyPair {
        KeyPair { current: SigningKey::from_bytes(&[seed; 32]), previous: None }
    }

    fn auth() -> Auth {
        Auth::local(&keys(1), 3600).unwrap()
    }

    fn good_claims() -> Value {
        json!({"sub": "u", "iss": LOCAL_NAME, "aud": LOCAL_AUDIENCE, "iat": NOW, "exp": NOW + 60, "token_use": "id"})
    }

    /// Signs with our own key and kid, whatever the claims say.
    fn signed(auth: &Auth, claims: &Value) -> String {
        let header = Header { kid: Some(auth.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &auth.signer).unwrap()
    }

    #[test]
    fn a_signed_in_user_is_recognised_until_the_token_expires() {
        let auth = auth();
        let sign_in = auth.sign_in(NOW).unwrap();
        let token = sign_in.id_token.expose();
        assert_eq!(auth.verify(token, NOW + 3600).unwrap(), sign_in.username);
        assert_eq!(auth.verify(token, NOW + 3600 + LEEWAY).unwrap_err().code, Code::Unauthorized);
        assert_ne!(auth.sign_in(NOW).unwrap().username, sign_in.username);
    }

    #[test]
    fn claims_must_be_ours_and_complete() {
        let auth = auth();
        assert_eq!(check(&auth.issuers, &signed(&auth, &good_claims()), NOW), Ok("u".to_owned()));
        for (claim, value) in [
            ("iss", json!("https://cognito-idp.us-west-1.amazonaws.com/pool")),
            ("aud", json!("other")),
            ("token_use", json!("access")),
            ("exp", json!(NOW - LEEWAY)),
            ("exp", Value::Null),
            ("sub", Value::Null),
            ("aud", Value::Null),
            ("iss", Value::Null),
        ] {
            let mut claims = good_claims();
            claims[claim] = value.clone();
            assert!(check(&auth.issuers, &signed(&auth, &claims), NOW).is_err(), "{claim} = {value}");
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(claim);
                assert!(check(&auth.issuers, &signed(&auth, &claims), NOW).is_err(), "without {claim}");
            }
        }
    }

    #[test]
    fn forged_tokens_are_refused() {
        let auth = auth();
        let good = signed(&auth, &good_claims());
        let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let none = encode(json!({"alg": "none", "kid": auth.kid}));
        let hmac_header = Header { kid: Some(auth.kid.clone()), ..Header::new(Algorithm::HS256) };
        let public = keys(1).current.verifying_key().to_bytes();
        let confused = jsonwebtoken::encode(&hmac_header, &good_claims(), &EncodingKey::from_secret(&public)).unwrap();
        let stranger = Auth::local(&keys(2), 3600).unwrap();
        let mut under_our_kid = Auth::local(&keys(2), 3600).unwrap();
        under_our_kid.kid = auth.kid.clone();
        let other_claims =
            encode(json!({"sub": "admin", "iss": LOCAL_NAME, "aud": LOCAL_AUDIENCE, "iat": 0, "exp": NOW + 9, "token_use": "id"}));
        for (what, token) in [
            ("alg none", format!("{none}.{claims}.")),
            ("HMAC with the public key", confused),
            ("unknown kid", signed(&stranger, &good_claims())),
            ("another key under our kid", signed(&under_our_kid, &good_claims())),
            ("other claims", format!("{header}.{other_claims}.{signature}")),
            ("no signature", format!("{header}.{claims}.")),
            ("too long", format!("{good}{}", "A".repeat(MAX_TOKEN))),
            ("empty", String::new()),
            ("no token", "x.y.z".to_owned()),
        ] {
            assert!(check(&auth.issuers, &token, NOW).is_err(), "{what}");
        }
    }

    #[test]
    fn a_token_of_the_previous_key_is_still_good() {
        let before = auth();
        let token = before.sign_in(NOW).unwrap();
        let after = Auth::local(&KeyPair { current: keys(2).current, previous: Some(keys(1).current) }, 3600).unwrap();
        assert_eq!(after.verify(token.id_token.expose(), NOW).unwrap(), token.username);
        assert_eq!(after.jwks()["keys"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_kid_is_the_standard_thumbprint() {
        // RFC 8037 appendix A.1 to A.3.
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let key = SigningKey::from_bytes(&seed.try_into().unwrap());
        assert_eq!(thumbprint(&key), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
