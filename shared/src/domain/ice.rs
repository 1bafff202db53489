//! STUN and TURN servers: their URLs (RFC 7064, RFC 7065) and the browser's JSON for them, read strictly, with the reason for a refusal.
//!
//! * [`IceUrl`]: one URL, such as `turn:turn.example.org:443?transport=tcp`
//! * [`parse_ice_servers`]: `ICE_SERVERS`, one object or a list
//! * [`IceServers`]: the same in the configuration file
//!
//! No error quotes a password, nor text that might hold one.

use core::{fmt, net::IpAddr, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

use super::{
    error::{Code, Failure},
    id::Secret,
    network::Host,
    signal::IceServer,
};

/// More servers than anybody has.
const MAX_SERVERS: usize = 32;
const FORM: &str =
    r#"such as {"urls": "stun:stun.example.org"} or a list of such objects; TURN servers have "username" and "credential", too"#;

/// What kind of server a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IceKind {
    /// Tells a peer its address as the Internet sees it.
    Stun,
    /// Relays.
    Turn,
}

/// What carries the packets to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IceTransport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl fmt::Display for IceTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IceTransport::Udp => "UDP",
            IceTransport::Tcp => "TCP",
            IceTransport::Tls => "TLS",
        })
    }
}

/// The URL of a STUN or TURN server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IceUrl {
    /// STUN or TURN.
    pub kind: IceKind,
    /// Its name or address.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// How it is reached.
    pub transport: IceTransport,
}

impl fmt::Display for IceUrl {
    /// With its port, and its transport where the scheme leaves a choice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, query) = match (self.kind, self.transport) {
            (IceKind::Stun, IceTransport::Tls) => ("stuns", ""),
            (IceKind::Stun, _) => ("stun", ""),
            (IceKind::Turn, IceTransport::Udp) => ("turn", "?transport=udp"),
            (IceKind::Turn, IceTransport::Tcp) => ("turn", "?transport=tcp"),
            (IceKind::Turn, IceTransport::Tls) => ("turns", "?transport=tcp"),
        };
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "{scheme}:[{ip}]:{}{query}", self.port),
            host => write!(f, "{scheme}:{host}:{}{query}", self.port),
        }
    }
}

impl FromStr for IceUrl {
    /// What is wrong with it, in a clause; it never quotes the text, which may hold a password.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no_scheme = || "a server's URL begins with stun:, stuns:, turn: or turns:".to_owned();
        let (scheme, rest) = text.split_once(':').ok_or_else(no_scheme)?;
        let (kind, secure) = match scheme.to_ascii_lowercase().as_str() {
            "stun" => (IceKind::Stun, false),
            "stuns" => (IceKind::Stun, true),
            "turn" => (IceKind::Turn, false),
            "turns" => (IceKind::Turn, true),
            _ => return Err(no_scheme()),
        };
        if rest.contains('@') {
            return Err("user name and password do not belong in the URL: put them in \"username\" and \"credential\"".into());
        }
        if rest.starts_with("//") {
            return Err("there is no // after the scheme, such as turn:HOST:3478".into());
        }
        let (authority, query) = rest.split_once('?').map_or((rest, None), |(authority, query)| (authority, Some(query)));
        let (host, port) = host_and_port(authority)?;
        let transport = transport_of(kind, secure, query)?;
        Ok(IceUrl { kind, host, port: port.unwrap_or(if secure { 5349 } else { 3478 }), transport })
    }
}

fn host_and_port(authority: &str) -> Result<(Host, Option<u16>), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        let ip = ip.parse().map_err(|_| "in brackets there must be an IPv6 address")?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or("after the address comes :PORT or nothing")?),
        };
        (Host::Ip(IpAddr::V6(ip)), port)
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        if port.is_some_and(|port| port.contains(':')) {
            return Err("an IPv6 address stands in brackets, such as turn:[2001:db8::1]:3478".into());
        }
        (host.parse()?, port)
    };
    let number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?.filter(|&port: &u16| port > 0);
    let port = port.map(|port| number(port).ok_or("the port is a number from 1 to 65535"));
    Ok((host, port.transpose()?))
}

/// What carries the packets, from scheme and query (RFC 7065 §3.1).
fn transport_of(kind: IceKind, secure: bool, query: Option<&str>) -> Result<IceTransport, String> {
    let wanted = match query {
        None => None,
        Some(_) if kind == IceKind::Stun => return Err("a STUN server's URL takes no '?'".into()),
        Some(query) => {
            Some(query.strip_prefix("transport=").ok_or("after '?' only transport=udp or transport=tcp may stand")?.to_ascii_lowercase())
        }
    };
    match (secure, wanted.as_deref()) {
        (false, None | Some("udp")) => Ok(IceTransport::Udp),
        (false, Some("tcp")) => Ok(IceTransport::Tcp),
        (true, None | Some("tcp")) => Ok(IceTransport::Tls),
        (true, Some("udp")) => Err("TURN over DTLS is not supported: use turns: with ?transport=tcp, which is TLS".into()),
        (_, Some("tls")) => Err("for TLS use turns: instead of ?transport=tls".into()),
        (_, Some(_)) => Err("transport= is udp or tcp".into()),
    }
}

/// Reads the browser's JSON (W3C webrtc-pc §4.2.4): one `RTCIceServer` or a list of them. `origin` begins the error: where it stood.
///
/// # Errors
/// [`Code::InvalidRequest`] with the reason, never with a credential.
pub fn parse_ice_servers(origin: &str, json: &str) -> Result<Vec<IceServer>, Failure> {
    let wrong = |why: String| Failure::new(Code::InvalidRequest, format!("{origin}: {why}"));
    // Not the error's own text, nor an untagged enum's: the one may quote a password, the other does not say what is wrong.
    let value: Value = serde_json::from_str(json)
        .map_err(|error| wrong(format!("it is not JSON (line {}, column {}); it must be {FORM}", error.line(), error.column())))?;
    let list = match value {
        Value::Array(list) => list,
        one @ Value::Object(_) => vec![one],
        _ => return Err(wrong(format!("it must be {FORM}"))),
    };
    let servers: Result<Vec<IceServer>, String> =
        list.iter().enumerate().map(|(at, value)| server_of(value).map_err(|why| format!("server {}: {why}", at + 1))).collect();
    let servers = servers.map_err(wrong)?;
    check_ice_servers(&servers).map_err(wrong)?;
    Ok(servers)
}

fn server_of(value: &Value) -> Result<IceServer, String> {
    let object = value.as_object().ok_or_else(|| format!("it must be an object, {FORM}"))?;
    let text = |value: &Value, what: &str| value.as_str().map(str::to_owned).ok_or_else(|| format!("{what} must be text"));
    let urls = match object.get("urls") {
        Some(Value::Array(urls)) => urls.iter().map(|url| text(url, "each of its \"urls\"")).collect::<Result<_, _>>()?,
        Some(url) => vec![text(url, "\"urls\"")?],
        None if object.contains_key("url") => return Err("it has \"url\", which browsers no longer take: write \"urls\"".into()),
        None => return Err("it has no \"urls\"".into()),
    };
    let optional = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => text(value, &format!("\"{key}\"")).map(Some),
    };
    Ok(IceServer { urls, username: optional("username")?, credential: optional("credential")?.map(Secret::new) })
}

/// Whether all of these servers can be used.
///
/// # Errors
/// The reason, in a clause, without any credential.
pub fn check_ice_servers(servers: &[IceServer]) -> Result<(), String> {
    if servers.len() > MAX_SERVERS {
        return Err(format!("there are {} servers; at most {MAX_SERVERS} are used", servers.len()));
    }
    servers.iter().enumerate().try_for_each(|(at, server)| check_ice_server(server).map_err(|why| format!("server {}: {why}", at + 1)))
}

fn check_ice_server(server: &IceServer) -> Result<(), String> {
    if server.urls.is_empty() {
        return Err("it has no \"urls\"".into());
    }
    for url in &server.urls {
        let parsed: IceUrl = url.parse()?;
        let given = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
        let known = given(server.username.as_ref()) && given(server.credential.as_ref().map(Secret::expose));
        if parsed.kind == IceKind::Turn && !known {
            return Err(format!("{parsed} needs \"username\" and \"credential\""));
        }
    }
    Ok(())
}

/// STUN and TURN servers as the configuration file has them: one table or a list, with the keys of the browser's JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IceServers(pub Vec<IceServer>);

impl<'de> Deserialize<'de> for IceServers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Vec<IceServer>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one STUN or TURN server or a list of them, such as [{ urls = \"stun:stun.example.org\" }]")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ok(vec![IceServer::deserialize(MapAccessDeserializer::new(map))?])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut servers = Vec::new();
                while let Some(server) = list.next_element()? {
                    servers.push(server);
                }
                Ok(servers)
            }
        }
        let servers = deserializer.deserialize_any(OneOrMany)?;
        check_ice_servers(&servers).map_err(de::Error::custom)?;
        Ok(IceServers(servers))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_read_with_their_defaults() {
        for (text, shown) in [
            ("stun:stun.example.org", "stun:stun.example.org:3478"),
            ("STUN:10.0.0.1:19302", "stun:10.0.0.1:19302"),
            ("stuns:a", "stuns:a:5349"),
            ("turn:t.example.org.", "turn:t.example.org.:3478?transport=udp"),
            ("turn:t:443?transport=TCP", "turn:t:443?transport=tcp"),
            ("turns:t", "turns:t:5349?transport=tcp"),
            ("turns:t:443?transport=tcp", "turns:t:443?transport=tcp"),
            ("turn:[2001:db8::1]", "turn:[2001:db8::1]:3478?transport=udp"),
            ("turn:[::1]:80?transport=udp", "turn:[::1]:80?transport=udp"),
        ] {
            assert_eq!(text.parse::<IceUrl>().unwrap().to_string(), shown, "{text}");
        }
        assert_eq!("turns:t".parse::<IceUrl>().unwrap().transport, IceTransport::Tls);
    }

    #[test]
    fn wrong_urls_are_refused_with_the_reason() {
        for (text, says) in [
            ("", "begins with stun:"),
            ("example.org", "begins with stun:"),
            ("http://x", "begins with stun:"),
            ("turn://t", "no // after"),
            ("turn:u:canary@t", "do not belong in the URL"),
            ("turn:", "a host is missing"),
            ("turn:a b", "host"),
            ("turn:300.1.1.1", "no IPv4 address"),
            ("turn:t:0", "1 to 65535"),
            ("turn:t:+80", "1 to 65535"),
            ("turn:t:70000", "1 to 65535"),
            ("turn:2001:db8::1", "in brackets"),
            ("turn:[2001:db8::1", "not closed"),
            ("turn:[t]", "an IPv6 address"),
            ("turn:[::1]80", ":PORT or nothing"),
            ("stun:t?transport=udp", "takes no '?'"),
            ("turn:t?x=y", "only transport="),
            ("turn:t?transport=sctp", "udp or tcp"),
            ("turn:t?transport=tls", "use turns:"),
            ("turns:t?transport=udp", "DTLS is not supported"),
        ] {
            let why = text.parse::<IceUrl>().unwrap_err();
            assert!(why.contains(says) && !why.contains("canary"), "{text}: {why}");
        }
    }

    #[test]
    fn servers_are_one_object_or_a_list() {
        let parse = |json: &str| parse_ice_servers("ICE_SERVERS", json).unwrap();
        assert_eq!(parse(r#"{"urls": "stun:a"}"#)[0].urls, ["stun:a"]);
        let many = parse(
            r#" [{"urls": ["stun:a", "stun:b"], "username": null}, {"urls": "turn:t", "username": "u", "credential": "p", "credentialType": "password"}]"#,
        );
        assert_eq!((many.len(), many[0].urls.len()), (2, 2));
        assert_eq!(many[1].credential.as_ref().unwrap().expose(), "p");
        assert!(parse("[]").is_empty());
    }

    #[test]
    fn wrong_servers_are_refused_with_the_reason_and_without_a_password() {
        let long = format!("[{}]", vec![r#"{"urls":"stun:a"}"#; 33].join(","));
        for (json, says) in [
            (r#"{"urls": "turn:t"}"#, "turn:t:3478?transport=udp needs \"username\" and \"credential\""),
            (r#"{"urls": "turn:t", "username": "u", "credential": ""}"#, "needs \"username\""),
            (r#"[{"urls": "stun:a"}, {"urls": "canary:x"}]"#, "server 2: a server's URL begins with"),
            (r#"{"urls": "turn:canary:canary@x"}"#, "do not belong in the URL"),
            (r#"{"urls": []}"#, "has no \"urls\""),
            (r#"{"url": "stun:a"}"#, "write \"urls\""),
            (r#"{"credential": "canary"}"#, "has no \"urls\""),
            (r#"{"urls": 5, "credential": "canary"}"#, "\"urls\" must be text"),
            (r#"{"urls": "stun:a", "credential": {"canary": 1}}"#, "\"credential\" must be text"),
            (r#"["canary"]"#, "server 1: it must be an object"),
            (r#""canary""#, "it must be such as"),
            (r#"[{"credential": "canary", }]"#, "not JSON (line 1, column 27)"),
            ("stun:a", "not JSON"),
            ("", "not JSON"),
            (&long, "at most 32"),
        ] {
            let failure = parse_ice_servers("ICE_SERVERS", json).unwrap_err();
            assert_eq!(failure.code, Code::InvalidRequest);
            assert!(failure.message.starts_with("ICE_SERVERS: ") && failure.message.contains(says), "{json}: {failure}");
            assert!(!failure.message.contains("canary"), "{failure}");
        }
    }

    #[test]
    fn the_configuration_file_has_the_same_form() {
        let read = |json: &str| serde_json::from_str::<IceServers>(json);
        assert_eq!(read(r#"{"urls": "stun:a"}"#).unwrap().0.len(), 1);
        assert_eq!(read(r#"[{"urls": "stun:a"}, {"urls": ["stun:b"]}]"#).unwrap().0.len(), 2);
        assert!(read(r#"{"urls": "turn:a"}"#).unwrap_err().to_string().contains("needs \"username\""));
        assert!(read("5").is_err());
        assert!(!read(r#"{"urls": "stun:a", "credential": 12345}"#).unwrap_err().to_string().contains("12345"));
    }

    fn any_url() -> impl Strategy<Value = IceUrl> {
        let host = prop_oneof![
            "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z]{1,8}){0,3}\\.?"
                .prop_filter("only a name", |name| name.bytes().any(|byte| byte.is_ascii_alphabetic()))
                .prop_filter_map("a name", |name| name.parse().ok()),
            any::<[u8; 4]>().prop_map(|ip| Host::Ip(IpAddr::from(ip))),
            any::<[u8; 16]>().prop_map(|ip| Host::Ip(IpAddr::from(ip))),
        ];
        let way = prop_oneof![
            Just((IceKind::Stun, IceTransport::Udp)),
            Just((IceKind::Stun, IceTransport::Tls)),
            Just((IceKind::Turn, IceTransport::Udp)),
            Just((IceKind::Turn, IceTransport::Tcp)),
            Just((IceKind::Turn, IceTransport::Tls)),
        ];
        (host, 1u16.., way).prop_map(|(host, port, (kind, transport))| IceUrl { kind, host, port, transport })
    }

    proptest! {
        #[test]
        fn a_url_that_is_shown_is_read_again(url in any_url()) {
            prop_assert_eq!(url.to_string().parse::<IceUrl>(), Ok(url));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(turns?|stuns?):\\PC{0,40}", json in "\\PC{0,80}") {
            let _ = text.parse::<IceUrl>();
            let _ = parse_ice_servers("x", &json);
        }
    }
}
