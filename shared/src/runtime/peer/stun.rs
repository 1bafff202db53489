//! STUN and TURN messages for probes (RFC 8489, RFC 8656): what is asked of a server, and what it answers.
//!
//! The connections themselves have the crate's own client; this is for [`crate::runtime::probe`], which wants to know what was wrong.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rtc::{
    crypto::default_provider,
    stun::{
        attributes::{ATTR_NONCE, ATTR_REALM, ATTR_USERNAME},
        error_code::ErrorCodeAttribute,
        fingerprint::FINGERPRINT,
        integrity::MessageIntegrity,
        message::{BINDING_REQUEST, CLASS_ERROR_RESPONSE, CLASS_SUCCESS_RESPONSE, Getter, Message, MessageType, Setter, TransactionId},
        textattrs::TextAttribute,
        xoraddr::XorMappedAddress,
    },
    turn::proto::{
        PROTO_UDP, allocate_request,
        lifetime::Lifetime,
        refresh_request,
        relayaddr::RelayedAddress,
        reqfamily::{REQUESTED_FAMILY_IPV6, RequestedAddressFamily},
        reqtrans::RequestedTransport,
    },
};

use crate::domain::{
    error::{Code, Failure},
    id::Secret,
};

/// The length of a message's head.
pub const HEAD: usize = 20;

/// What pairs an answer with its question.
pub type Transaction = [u8; 12];

/// A long-term credential (RFC 8489 §9.2) and what the server asked it for.
pub struct Credential<'a> {
    /// The user.
    pub username: &'a str,
    /// The password.
    pub password: &'a Secret<String>,
    /// The server's realm.
    pub realm: &'a str,
    /// The server's nonce.
    pub nonce: &'a str,
}

/// A question, ready to send.
pub struct Request {
    /// What its answer carries, too.
    pub transaction: Transaction,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What the question carried.
    pub transaction: Transaction,
    /// XOR-MAPPED-ADDRESS.
    pub mapped: Option<SocketAddr>,
    /// XOR-RELAYED-ADDRESS.
    pub relayed: Option<SocketAddr>,
    /// ERROR-CODE of an error response.
    pub error: Option<(u16, String)>,
    /// REALM.
    pub realm: Option<String>,
    /// NONCE.
    pub nonce: Option<String>,
}

/// What is my address?
///
/// # Errors
/// [`Code::Internal`], here and below, when the crate cannot write it.
pub fn binding() -> Result<Request, Failure> {
    write(BINDING_REQUEST, &[], None)
}

/// Relay for me; with `ipv6` from an IPv6 address.
///
/// # Errors
/// As [`binding`]; for a user name or a password that is too long.
pub fn allocate(ipv6: bool, credential: Option<&Credential<'_>>) -> Result<Request, Failure> {
    let transport = RequestedTransport { protocol: PROTO_UDP };
    let family = RequestedAddressFamily(REQUESTED_FAMILY_IPV6.0);
    if ipv6 { write(allocate_request(), &[&transport, &family], credential) } else { write(allocate_request(), &[&transport], credential) }
}

/// Relay no longer (RFC 8656 §7.3).
///
/// # Errors
/// As [`binding`].
pub fn release(credential: &Credential<'_>) -> Result<Request, Failure> {
    write(refresh_request(), &[&Lifetime(Duration::ZERO)], Some(credential))
}

fn write(kind: MessageType, attributes: &[&dyn Setter], credential: Option<&Credential<'_>>) -> Result<Request, Failure> {
    let unwritable = |error: &dyn std::fmt::Display| Failure::new(Code::Internal, format!("a STUN message cannot be written: {error}"));
    let transaction = TransactionId::new();
    let mut message = Message::new();
    message.set_type(kind);
    message.write_header();
    let mut add = |setter: &dyn Setter| setter.add_to(&mut message).map_err(|error| unwritable(&error));
    add(&transaction)?;
    for attribute in attributes {
        add(*attribute)?;
    }
    if let Some(credential) = credential {
        let Credential { username, password, realm, nonce } = *credential;
        add(&TextAttribute::new(ATTR_USERNAME, username.to_owned()))?;
        add(&TextAttribute::new(ATTR_REALM, realm.to_owned()))?;
        add(&TextAttribute::new(ATTR_NONCE, nonce.to_owned()))?;
        let provider = default_provider().map_err(|error| unwritable(&error))?;
        let (username, realm, password) = (username.to_owned(), realm.to_owned(), password.expose().clone());
        let integrity = MessageIntegrity::new_long_term_integrity_with_provider(username, realm, password, provider.crypto());
        add(&integrity.map_err(|error| unwritable(&error))?)?;
    }
    add(&FINGERPRINT)?;
    Ok(Request { transaction: transaction.0, bytes: message.raw })
}

/// The answer in these bytes, if they are one.
pub fn read(bytes: &[u8]) -> Option<Reply> {
    let mut message = Message::new();
    message.unmarshal_binary(bytes).ok()?;
    let is_error = message.typ.class == CLASS_ERROR_RESPONSE;
    if !is_error && message.typ.class != CLASS_SUCCESS_RESPONSE {
        return None;
    }
    let address = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
    let (mut mapped, mut relayed, mut error) = (XorMappedAddress::default(), RelayedAddress::default(), ErrorCodeAttribute::default());
    let text = |kind| TextAttribute::get_from_as(&message, kind).ok().map(|attribute| attribute.text);
    Some(Reply {
        transaction: message.transaction_id.0,
        mapped: mapped.get_from(&message).ok().map(|()| address(mapped.ip, mapped.port)),
        relayed: relayed.get_from(&message).ok().map(|()| address(relayed.ip, relayed.port)),
        error: is_error.then(|| match error.get_from(&message) {
            Ok(()) => (error.code.0, String::from_utf8_lossy(&error.reason).trim_end_matches('\0').to_owned()),
            Err(_) => (0, String::new()),
        }),
        realm: text(ATTR_REALM),
        nonce: text(ATTR_NONCE),
    })
}

/// How long the message is that begins with this head, the head included; `None` for what is no message.
pub fn length(head: &[u8; HEAD]) -> Option<usize> {
    let starts_right = head[0] & 0xc0 == 0 && head[4..8] == [0x21, 0x12, 0xa4, 0x42];
    starts_right.then(|| HEAD + usize::from(u16::from_be_bytes([head[2], head[3]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 5769 §2.2: a Binding success response from 192.0.2.1:32853.
    const SAMPLE: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae, 0x80, 0x22,
        0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47,
        0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9,
        0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7, 0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];

    #[test]
    fn an_answer_tells_our_address() {
        let reply = read(&SAMPLE).unwrap();
        assert_eq!(reply.mapped, Some("192.0.2.1:32853".parse().unwrap()));
        assert_eq!((reply.relayed, reply.error), (None, None));
        assert_eq!(reply.transaction, SAMPLE[8..20]);
        assert_eq!(length(SAMPLE[..HEAD].try_into().unwrap()), Some(SAMPLE.len()));
    }

    #[test]
    fn a_question_is_no_answer_and_its_length_is_in_its_head() {
        let password = Secret::new("secret".to_owned());
        let credential = Credential { username: "user", password: &password, realm: "lab", nonce: "n" };
        for request in [binding().unwrap(), allocate(true, Some(&credential)).unwrap(), release(&credential).unwrap()] {
            assert_eq!(read(&request.bytes), None);
            assert_eq!(length(request.bytes[..HEAD].try_into().unwrap()), Some(request.bytes.len()));
            assert_eq!(request.bytes[8..20], request.transaction);
        }
        let endless = "x".repeat(2000);
        assert!(allocate(false, Some(&Credential { username: &endless, ..credential })).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..80_usize, byte in any::<u8>()) {
            let _ = read(&bytes);
            let mut sample = SAMPLE;
            sample[at] = byte;
            let _ = read(&sample);
            let _ = read(&sample[..at]);
        }
    }
}
