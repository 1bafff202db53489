//! The addresses of servers.
//!
//! The crate looks names up one after the other while it does nothing else, so they are looked up before, all at once, and kept: the many
//! connections of one session ask for the same.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{net::lookup_host, time::timeout};

use crate::domain::{ice::IceUrl, network::Host};

/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(2);
/// How long an answer counts, and how long a failure does.
const FRESH: Duration = Duration::from_secs(60);
const FAILED: Duration = Duration::from_secs(5);
/// Names that are kept, and addresses of one.
const MOST: usize = 64;
const MOST_ADDRESSES: usize = 8;

struct Known {
    name: String,
    at: Instant,
    addresses: Vec<IpAddr>,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// Looks all of these up; [`resolve`] finds the answers.
pub(super) async fn prefetch(urls: &[IceUrl]) {
    let look_ups: FuturesUnordered<_> = urls.iter().map(|url| resolve(&url.host, url.port)).collect();
    look_ups.for_each(|_| async {}).await;
}

/// The addresses of a server.
pub(super) async fn resolve(host: &Host, port: u16) -> io::Result<Vec<SocketAddr>> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![(*ip, port).into()]),
        Host::Name(name) => name,
    };
    let addresses = match known(name) {
        Some(addresses) => addresses,
        None => look_up(name).await,
    };
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {name} cannot be resolved")));
    }
    Ok(addresses.into_iter().map(|ip| (ip, port).into()).collect())
}

fn known(name: &str) -> Option<Vec<IpAddr>> {
    let known = KNOWN.lock().expect("no panic happens under this lock");
    let known = known.iter().find(|known| known.name == name)?;
    let counts = if known.addresses.is_empty() { FAILED } else { FRESH };
    (known.at.elapsed() < counts).then(|| known.addresses.clone())
}

async fn look_up(name: &str) -> Vec<IpAddr> {
    let answer =
        timeout(LOOK_UP, lookup_host((name, 0))).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).and_then(|answer| answer);
    let mut addresses = match answer {
        Ok(found) => found.map(|address| address.ip()).take(MOST_ADDRESSES).collect(),
        Err(error) => {
            tracing::warn!(%name, %error, "the name of a STUN or TURN server cannot be resolved");
            Vec::new()
        }
    };
    addresses.dedup();
    let mut known = KNOWN.lock().expect("no panic happens under this lock");
    known.retain(|known| known.name != name);
    if known.len() >= MOST {
        known.remove(0);
    }
    known.push(Known { name: name.to_owned(), at: Instant::now(), addresses: addresses.clone() });
    addresses
}
