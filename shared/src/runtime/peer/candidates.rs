//! What local candidates look like on their way to the other side.
//!
//! * each once: the crate announces them for two components
//! * with an advertised address, host candidates carry it instead of the local one

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};
use webrtc::peer_connection::{RTCIceCandidate, RTCIceCandidateType};

use super::{local::is_loopback, turn::Streams};
use crate::domain::{ice::IceTransport, network::Host};

/// How long a look-up of the advertised name may hold up a connection.
const LOOK_UP: Duration = Duration::from_secs(3);

/// Turns the crate's candidates into those to announce.
#[derive(Debug)]
pub(super) struct Announcer {
    advertise: Option<Host>,
    /// Loopback addresses are announced as they are: the other side may be on this machine.
    here: bool,
    streams: Arc<Streams>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: Vec<IpAddr>,
    announced: Vec<String>,
    /// Our relayed addresses whose servers are reached by a stream.
    relays: Vec<(String, u16, IceTransport)>,
}

impl Announcer {
    pub(super) fn new(advertise: Option<Host>, here: bool, streams: Arc<Streams>) -> Self {
        Announcer { advertise, here, streams, state: Mutex::default() }
    }

    /// Looks the advertised name up, as is done for each gathering. Where that fails, the last answer counts, or else the local addresses.
    pub(super) async fn look_up(&self) {
        let found = match &self.advertise {
            None => return,
            Some(Host::Ip(ip)) => vec![*ip],
            Some(Host::Name(name)) => {
                let addresses = timeout(LOOK_UP, lookup_host((name.as_str(), 0))).await;
                match addresses.map_err(|_| "there was no answer".to_owned()).and_then(|found| found.map_err(|error| error.to_string())) {
                    Ok(found) => found.map(|address| address.ip()).collect(),
                    Err(error) => {
                        tracing::warn!(%name, %error, "the advertised name cannot be resolved");
                        return;
                    }
                }
            }
        };
        self.state.lock().expect("no panic happens under this lock").addresses = found;
    }

    /// A new generation of candidates: all are announced again.
    pub(super) fn begin(&self) {
        self.state.lock().expect("no panic happens under this lock").announced.clear();
    }

    /// What to announce for a local candidate that a server (or none) has given; nothing if it was announced before.
    pub(super) fn announce(&self, candidate: &RTCIceCandidate, url: &str) -> Vec<RTCIceCandidate> {
        let mut state = self.state.lock().expect("no panic happens under this lock");
        if let Some(transport) = self.streams.transport_of(url) {
            state.relays.push((candidate.address.clone(), candidate.port, transport));
        }
        let mut new = Vec::new();
        for candidate in self.advertised(candidate, &state.addresses) {
            let key = format!("{} {} {} {}", candidate.address, candidate.port, candidate.typ, candidate.protocol);
            if !state.announced.contains(&key) {
                state.announced.push(key);
                new.push(candidate);
            }
        }
        new
    }

    /// How the server of one of our relayed candidates is reached, if by a stream.
    pub(super) fn relay_transport(&self, candidate: &RTCIceCandidate) -> Option<IceTransport> {
        let state = self.state.lock().expect("no panic happens under this lock");
        let ours = |(address, port, _): &&(String, u16, IceTransport)| *address == candidate.address && *port == candidate.port;
        state.relays.iter().find(ours).map(|(.., transport)| *transport).filter(|_| candidate.typ == RTCIceCandidateType::Relay)
    }

    fn advertised(&self, candidate: &RTCIceCandidate, addresses: &[IpAddr]) -> Vec<RTCIceCandidate> {
        let kept = candidate.typ != RTCIceCandidateType::Host || self.here && is_loopback(&candidate.address);
        let family = candidate.address.parse().map(|ip: IpAddr| ip.is_ipv4());
        let instead: Vec<RTCIceCandidate> = addresses
            .iter()
            .filter(|ip| !kept && family == Ok(ip.is_ipv4()))
            .map(|ip| RTCIceCandidate { address: ip.to_string(), ..candidate.clone() })
            .collect();
        // The advertised address says nothing about the other family.
        if instead.is_empty() { vec![candidate.clone()] } else { instead }
    }
}

/// A session description without candidates: they are announced one by one, through [`Announcer`] alone.
pub(super) fn without_candidates(sdp: &str) -> String {
    let is_candidate = |line: &&str| line.starts_with("a=candidate:") || line.starts_with("a=end-of-candidates");
    sdp.split_inclusive('\n').filter(|line| !is_candidate(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::peer::turn::{Patience, Trust};

    fn advertising(host: &str, here: bool) -> Announcer {
        Announcer::new(Some(host.parse().unwrap()), here, Arc::new(Streams::new(&[], &Trust::default(), &Patience::default())))
    }

    fn candidate(typ: RTCIceCandidateType, address: &str) -> RTCIceCandidate {
        RTCIceCandidate { typ, address: address.into(), port: 5000, ..RTCIceCandidate::default() }
    }

    async fn announced(announcer: &Announcer, typ: RTCIceCandidateType, address: &str) -> Vec<String> {
        announcer.look_up().await;
        announcer
            .announce(&candidate(typ, address), "")
            .into_iter()
            .map(|candidate| format!("{}:{}", candidate.address, candidate.port))
            .collect()
    }

    #[tokio::test]
    async fn host_candidates_carry_the_advertised_address() {
        use RTCIceCandidateType::{Host as HostType, Relay, Srflx};
        let announcer = advertising("203.0.113.10", true);
        for (typ, address, expected) in [
            (HostType, "172.17.0.2", vec!["203.0.113.10:5000"]),
            // The same advertised address again.
            (HostType, "172.18.0.2", vec![]),
            (HostType, "127.0.0.1", vec!["127.0.0.1:5000"]),
            (HostType, "2001:db8::1", vec!["2001:db8::1:5000"]),
            (Srflx, "198.51.100.7", vec!["198.51.100.7:5000"]),
            (Srflx, "198.51.100.7", vec![]),
            (Relay, "198.51.100.7", vec!["198.51.100.7:5000"]),
        ] {
            assert_eq!(announced(&announcer, typ, address).await, expected, "{address}");
        }
        announcer.begin();
        assert_eq!(announced(&announcer, HostType, "172.17.0.2").await, ["203.0.113.10:5000"]);
        let elsewhere = advertising("203.0.113.10", false);
        assert_eq!(announced(&elsewhere, HostType, "127.0.0.1").await, ["203.0.113.10:5000"]);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_one_that_fails_leaves_the_local_address() {
        let announcer = advertising("localhost", false);
        assert_eq!(announced(&announcer, RTCIceCandidateType::Host, "10.0.0.1").await, ["127.0.0.1:5000"]);
        let nowhere = advertising("no-such-host.invalid", false);
        assert_eq!(announced(&nowhere, RTCIceCandidateType::Host, "10.0.0.1").await, ["10.0.0.1:5000"]);
    }

    #[test]
    fn descriptions_carry_no_candidates() {
        let sdp = "v=0\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\na=mid:0\r\na=end-of-candidates\r\n";
        assert_eq!(without_candidates(sdp), "v=0\r\na=mid:0\r\n");
    }
}
