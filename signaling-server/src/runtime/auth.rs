//! Who calls: tokens of anonymous users, whether signed by us or by a Cognito user pool, verified by the same code. The only file that names
//! `jsonwebtoken`.
//!
//! [`Issuer`] is data: name, audience, algorithm, keys. Ours signs with EdDSA; a user pool is one with RS256 and the keys of its JWKS.
//! What a token says about its own algorithm or key is never believed, its `kid` only picks among the keys we have.
//!
//! Who somebody is says `cognito:username` and not `sub`: ours have the same in both, and in a user pool it is the name by which a user is deleted.

use std::collections::HashMap;
#[cfg(feature = "aws")]
use std::sync::Arc;

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

#[cfg(feature = "aws")]
use super::jwks::{Freshness, Jwks};
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

/// The longest name of a user, as Cognito has it.
const MAX_NAME: usize = 128;

/// Whose tokens are accepted, and how they are checked.
pub struct Issuer {
    name: String,
    audience: String,
    algorithm: Algorithm,
    keys: Keys,
}

/// An issuer's keys by their ids.
enum Keys {
    /// Ours.
    Fixed(HashMap<String, DecodingKey>),
    /// What the issuer publishes.
    #[cfg(feature = "aws")]
    Published(Arc<PublishedKeys>),
}

/// The keys of a user pool.
#[cfg(feature = "aws")]
pub type PublishedKeys = Jwks<DecodingKey>;

impl Keys {
    async fn find(&self, kid: &str) -> Result<Option<DecodingKey>, Failure> {
        match self {
            Keys::Fixed(keys) => Ok(keys.get(kid).cloned()),
            #[cfg(feature = "aws")]
            Keys::Published(keys) => keys.find(kid).await,
        }
    }
}

/// An RSA key for RS256, of at least 2048 bits as the verifier will have it, from a member of a JWKS.
#[cfg(feature = "aws")]
pub fn rsa_key(member: &Value) -> Option<(String, DecodingKey)> {
    let text = |name: &str| member.get(name).and_then(Value::as_str);
    let is = |name: &str, value: &str| text(name).is_none_or(|text| text == value);
    if text("kty") != Some("RSA") || !is("alg", "RS256") || !is("use", "sig") {
        return None;
    }
    let key = DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?;
    Some((text("kid")?.to_owned(), key))
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

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The user's name.
    pub username: String,
    /// When the token expires, Unix seconds.
    pub expires_at: u64,
}

/// Why a token is not good.
#[derive(Debug, PartialEq, Eq)]
enum Bad {
    /// It is not, for this reason.
    Token(&'static str),
    /// It cannot be told.
    Unknown(Failure),
}

impl From<&'static str> for Bad {
    fn from(why: &'static str) -> Self {
        Bad::Token(why)
    }
}

/// Whom a token stands for that one of the issuers really gave out for us and that is valid now (Unix seconds).
///
/// # Errors
/// [`Code::Unauthorized`], the reason of which goes to the debug log only; [`Code::Unavailable`] when the issuer's keys cannot be had.
pub async fn verify(issuers: &[Issuer], token: &str, now: u64) -> Result<Verified, Failure> {
    check(issuers, token, now).await.map_err(|bad| match bad {
        Bad::Token(why) => {
            tracing::debug!(why, "token refused");
            Failure::new(Code::Unauthorized, "the id token is missing, expired or not ours; sign in again (POST /anonymous-signin)")
        }
        Bad::Unknown(failure) => failure,
    })
}

async fn check(issuers: &[Issuer], token: &str, now: u64) -> Result<Verified, Bad> {
    if token.len() > MAX_TOKEN {
        return Err("too long".into());
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| "unreadable header")?;
    if header.crit.is_some() {
        return Err("it demands extensions".into());
    }
    let kid = header.kid.ok_or("no kid")?;
    let (issuer, key) = key_for(issuers, &kid).await?.ok_or("unknown kid")?;
    // The algorithm comes from the issuer, never from the token: no `none`, no HMAC with a public key.
    let mut validation = Validation::new(issuer.algorithm);
    validation.set_issuer(&[&issuer.name]);
    validation.set_audience(&[&issuer.audience]);
    validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
    // Checked below, against our own clock.
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| "bad signature, issuer or audience")?.claims;
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err("expired".into());
    }
    if claims.token_use != "id" {
        return Err("not an id token".into());
    }
    if claims.username.is_empty() || claims.username.len() > MAX_NAME {
        return Err("no user name".into());
    }
    Ok(Verified { username: claims.username, expires_at: claims.exp })
}

async fn key_for<'i>(issuers: &'i [Issuer], kid: &str) -> Result<Option<(&'i Issuer, DecodingKey)>, Bad> {
    for issuer in issuers {
        if let Some(key) = issuer.keys.find(kid).await.map_err(Bad::Unknown)? {
            return Ok(Some((issuer, key)));
        }
    }
    Ok(None)
}

/// How well tokens can be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHealth {
    /// As it should be.
    Good,
    /// With the issuer's last known keys, since it does not answer.
    Stale(String),
    /// Not at all.
    None(String),
}

/// Whose tokens this server takes: its own, or those of a user pool.
pub struct Auth {
    issuers: Vec<Issuer>,
    /// None where somebody else makes the users.
    signer: Option<Signer>,
}

struct Signer {
    key: EncodingKey,
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
            issuers: vec![Issuer {
                name: LOCAL_NAME.to_owned(),
                audience: LOCAL_AUDIENCE.to_owned(),
                algorithm: Algorithm::EdDSA,
                keys: Keys::Fixed(known),
            }],
            signer: Some(Signer {
                key: EncodingKey::from_ed_der(&key::to_der(&keys.current)),
                kid: thumbprint(&keys.current),
                jwks: json!({"keys": published}),
                token_ttl,
            }),
        })
    }

    /// Takes the id tokens that a user pool gives out for one of its app clients.
    #[cfg(feature = "aws")]
    pub fn pool(issuer: &str, client: &str, keys: Arc<PublishedKeys>) -> Self {
        let (name, audience) = (issuer.to_owned(), client.to_owned());
        Auth { issuers: vec![Issuer { name, audience, algorithm: Algorithm::RS256, keys: Keys::Published(keys) }], signer: None }
    }

    /// A new anonymous user of our own.
    ///
    /// # Errors
    /// [`Code::Unavailable`] without randomness, [`Code::Internal`] when signing fails or it is not us who make users.
    pub fn sign_in(&self, now: u64) -> Result<SignIn, Failure> {
        let signer = self.signer.as_ref().ok_or_else(|| Failure::new(Code::Internal, "users are made by the user pool"))?;
        let username = random_name()?;
        let claims = Claims {
            sub: username.clone(),
            iss: LOCAL_NAME.to_owned(),
            aud: LOCAL_AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(signer.token_ttl),
            token_use: "id".to_owned(),
            username: username.clone(),
        };
        let header = Header { kid: Some(signer.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let id_token = jsonwebtoken::encode(&header, &claims, &signer.key)
            .map_err(|error| Failure::new(Code::Internal, format!("signing failed: {error}")))?;
        Ok(SignIn { id_token: Secret::new(id_token), username, expires_in: signer.token_ttl })
    }

    /// As [`verify`], with this server's issuers.
    ///
    /// # Errors
    /// As [`verify`].
    pub async fn verify(&self, token: &str, now: u64) -> Result<Verified, Failure> {
        verify(&self.issuers, token, now).await
    }

    /// The public keys of the tokens that are given out here (RFC 7517).
    pub fn jwks(&self) -> Value {
        match (&self.signer, self.issuers.first().map(|issuer| &issuer.keys)) {
            (Some(signer), _) => signer.jwks.clone(),
            #[cfg(feature = "aws")]
            (None, Some(Keys::Published(keys))) => keys.document(),
            (None, _) => json!({"keys": []}),
        }
    }

    /// How well tokens can be checked now.
    pub fn health(&self) -> KeyHealth {
        #[cfg(feature = "aws")]
        for issuer in &self.issuers {
            if let Keys::Published(keys) = &issuer.keys {
                return match keys.freshness() {
                    Freshness::Fresh => KeyHealth::Good,
                    Freshness::Stale(why) => KeyHealth::Stale(why),
                    Freshness::TooOld(why) => KeyHealth::None(why),
                };
            }
        }
        KeyHealth::Good
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

    fn signer(auth: &Auth) -> &Signer {
        auth.signer.as_ref().unwrap()
    }

    fn good_claims() -> Value {
        json!({"sub": "u", "iss": LOCAL_NAME, "aud": LOCAL_AUDIENCE, "iat": NOW, "exp": NOW + 60, "token_use": "id", "cognito:username": "u"})
    }

    /// Signs with our own key and kid, whatever the claims say.
    fn signed(auth: &Auth, claims: &Value) -> String {
        let header = Header { kid: Some(signer(auth).kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &signer(auth).key).unwrap()
    }

    #[tokio::test]
    async fn a_signed_in_user_is_recognised_until_the_token_expires() {
        let auth = auth();
        let sign_in = auth.sign_in(NOW).unwrap();
        let token = sign_in.id_token.expose();
        let expected = Verified { username: sign_in.username.clone(), expires_at: NOW + 3600 };
        assert_eq!(auth.verify(token, NOW + 3600).await.unwrap(), expected);
        assert_eq!(auth.verify(token, NOW + 3600 + LEEWAY).await.unwrap_err().code, Code::Unauthorized);
        assert_ne!(auth.sign_in(NOW).unwrap().username, sign_in.username);
    }

    #[tokio::test]
    async fn claims_must_be_ours_and_complete() {
        let auth = auth();
        assert_eq!(auth.verify(&signed(&auth, &good_claims()), NOW).await.unwrap().username, "u");
        for (claim, value) in [
            ("iss", json!("https://cognito-idp.us-west-1.amazonaws.com/pool")),
            ("aud", json!("other")),
            ("token_use", json!("access")),
            ("exp", json!(NOW - LEEWAY)),
            ("cognito:username", json!("")),
            ("cognito:username", json!("u".repeat(MAX_NAME + 1))),
            ("cognito:username", Value::Null),
            ("exp", Value::Null),
            ("sub", Value::Null),
            ("aud", Value::Null),
            ("iss", Value::Null),
        ] {
            let mut claims = good_claims();
            claims[claim] = value.clone();
            assert!(check(&auth.issuers, &signed(&auth, &claims), NOW).await.is_err(), "{claim} = {value}");
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(claim);
                assert!(check(&auth.issuers, &signed(&auth, &claims), NOW).await.is_err(), "without {claim}");
            }
        }
    }

    #[tokio::test]
    async fn forged_tokens_are_refused() {
        let auth = auth();
        let good = signed(&auth, &good_claims());
        let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let none = encode(json!({"alg": "none", "kid": signer(&auth).kid}));
        let hmac_header = Header { kid: Some(signer(&auth).kid.clone()), ..Header::new(Algorithm::HS256) };
        let public = keys(1).current.verifying_key().to_bytes();
        let confused = jsonwebtoken::encode(&hmac_header, &good_claims(), &EncodingKey::from_secret(&public)).unwrap();
        let stranger = Auth::local(&keys(2), 3600).unwrap();
        let mut under_our_kid = Auth::local(&keys(2), 3600).unwrap();
        under_our_kid.signer.as_mut().unwrap().kid = signer(&auth).kid.clone();
        let other_claims = encode(
            json!({"sub": "admin", "iss": LOCAL_NAME, "aud": LOCAL_AUDIENCE, "exp": NOW + 9, "iat": 0, "token_use": "id", "cognito:username": "admin"}),
        );
        let demanding = Header { crit: Some(vec!["b64".to_owned()]), ..jsonwebtoken::decode_header(&good).unwrap() };
        let demanding = jsonwebtoken::encode(&demanding, &good_claims(), &signer(&auth).key).unwrap();
        for (what, token) in [
            ("an extension that is not understood", demanding),
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
            assert!(check(&auth.issuers, &token, NOW).await.is_err(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_token_of_the_previous_key_is_still_good() {
        let before = auth();
        let token = before.sign_in(NOW).unwrap();
        let after = Auth::local(&KeyPair { current: keys(2).current, previous: Some(keys(1).current) }, 3600).unwrap();
        assert_eq!(after.verify(token.id_token.expose(), NOW).await.unwrap().username, token.username);
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
