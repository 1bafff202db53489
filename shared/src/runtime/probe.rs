//! Finds out about this side's end: sockets, STUN and TURN servers over each transport, the signaling server, the clock.
//!
//! * [`examine`]: everything at the same time, so that it ends within [`LONGEST`] whatever does not answer
//! * `ask`: one question to one server, over UDP, TCP or TLS, repeated as long as it makes sense
//! * `server`: the signaling server, step by step
//!
//! Only the servers of the options are asked, never an address that somebody names.

mod ask;
mod server;

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use tokio::{
    net::lookup_host,
    time::{timeout, timeout_at},
};

use self::ask::{Ear, Way, allocate, bind_udp};
use super::{
    peer::{PeerOptions, stun},
    signal::Api,
};
use crate::domain::{
    ice::{IceKind, IceTransport, IceUrl},
    network::{Host, PORTS_OF_A_SESSION},
    probe::{Finding, LocalFault, MAX_FINDINGS, Outcome, Report, Service, Step, Transport},
    signal::IceServer,
};

/// How long an examination takes at most.
pub const LONGEST: Duration = Duration::from_secs(7);
/// How long a name may take.
const NAME: Duration = Duration::from_secs(3);
/// How long a server may take, its name apart.
const SERVER: Duration = Duration::from_millis(3500);

/// A finding to be.
type Asking<'a> = Pin<Box<dyn Future<Output = Finding> + Send + 'a>>;

/// One URL at one address.
struct Target<'a> {
    url: IceUrl,
    address: SocketAddr,
    server: &'a IceServer,
}

/// Sockets that many servers are asked from, so that their answers can be compared.
struct Ears {
    v4: Option<Arc<Ear>>,
    v6: Option<Arc<Ear>>,
}

impl Ears {
    fn of(&self, address: SocketAddr) -> Option<&Arc<Ear>> {
        if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// Examines this side; with `api` also its way to the signaling server.
pub async fn examine(options: &PeerOptions, api: Option<&Api>) -> Report {
    let began = Instant::now();
    let (addresses, mut faults) = sockets(options);
    let parts = async { tokio::join!(servers(options, &addresses), signaling_of(api), advertised(options)) };
    // Boxed: all the futures of all servers are in it.
    let (servers, (steps, server_clock_ahead), advertised) = Box::pin(parts).await;
    let advertised = advertised.unwrap_or_else(|fault| {
        faults.push(fault);
        Vec::new()
    });
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses,
        advertised,
        relay_only: options.relay_only,
        faults,
        server_clock_ahead,
        steps,
        servers,
        took_ms: began.elapsed().as_millis() as u64,
    }
    .bounded()
}

/// The addresses that connections are made from, and what is wrong with them.
fn sockets(options: &PeerOptions) -> (Vec<IpAddr>, Vec<LocalFault>) {
    let mut faults = Vec::new();
    if let Some(ports) = options.udp_ports.map(|range| range.ports().len()).filter(|&ports| ports < PORTS_OF_A_SESSION) {
        faults.push(LocalFault::FewPorts { ports: ports as u32 });
    }
    match options.local_sockets() {
        Ok(sockets) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for ip in sockets.iter().map(SocketAddr::ip) {
                if !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
            // One that is named may not be there.
            if let Some(error) = sockets.iter().find_map(|address| bind_udp((address.ip(), 0).into()).err()) {
                faults.push(LocalFault::NoAddress { detail: error.to_string() });
            }
            (addresses, faults)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            faults.retain(|fault| !matches!(fault, LocalFault::FewPorts { .. }));
            faults.push(LocalFault::NoPort { detail: error.to_string() });
            (Vec::new(), faults)
        }
        Err(error) => {
            faults.push(LocalFault::NoAddress { detail: error.to_string() });
            (Vec::new(), faults)
        }
    }
}

async fn advertised(options: &PeerOptions) -> Result<Vec<IpAddr>, LocalFault> {
    match &options.advertise {
        None => Ok(Vec::new()),
        Some(host) => {
            let found = resolve(host, 0).await.map_err(|detail| LocalFault::Advertise { detail: format!("{host}: {detail}") })?;
            Ok(found.into_iter().map(|address| address.ip()).collect())
        }
    }
}

/// The way to the signaling server, step by step, and how far its clock is ahead of ours, in seconds.
pub async fn signaling(api: &Api) -> (Vec<Step>, Option<i64>) {
    server::examine(api).await
}

async fn signaling_of(api: Option<&Api>) -> (Vec<Step>, Option<i64>) {
    match api {
        Some(api) => signaling(api).await,
        None => Default::default(),
    }
}

/// The addresses of a host.
async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, String> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name,
    };
    match timeout(NAME, lookup_host((name.as_str(), port))).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no name server answers".to_owned()),
    }
}

/// Asks every server of the options over its transport, and besides over the other one.
async fn servers(options: &PeerOptions, addresses: &[IpAddr]) -> Vec<Finding> {
    let ears = Ears { v4: ear(addresses, true), v6: ear(addresses, false) };
    let offered = options.ice_servers();
    let urls = offered.iter().flat_map(|server| server.urls.iter().map(move |url| (server, url)));
    let named = join_all(urls.take(MAX_FINDINGS / 2).map(|(server, url)| targets(server, url))).await;
    let (mut findings, mut targets) = (Vec::new(), Vec::new());
    for found in named {
        match found {
            Ok(found) => targets.extend(found),
            Err(finding) => findings.push(*finding),
        }
    }
    let mut asking: Vec<Asking<'_>> = Vec::new();
    let mut besides: Vec<(Transport, SocketAddr)> = Vec::new();
    for target in &targets {
        asking.push(configured(target, &ears, options));
    }
    for target in &targets {
        // A socket that hears more than one address tells how ports are mapped; a host that is there over TCP, that UDP is dropped.
        for transport in [Transport::Udp, Transport::Tcp] {
            let is_configured = targets.iter().any(|other| {
                other.address == target.address
                    && transport_of(&other.url) == transport
                    && (transport == Transport::Tcp || other.url.kind == IceKind::Stun)
            });
            if !is_configured && !besides.contains(&(transport, target.address)) {
                besides.push((transport, target.address));
                asking.push(beside(transport, target, &ears));
            }
        }
    }
    findings.extend(join_all(asking).await);
    // What was configured comes first, and is what is left if there is too much.
    findings.sort_by_key(|finding| finding.besides);
    findings
}

fn ear(addresses: &[IpAddr], v4: bool) -> Option<Arc<Ear>> {
    let of_family = || addresses.iter().filter(|ip| ip.is_ipv4() == v4);
    let mut outside = of_family().filter(|ip| !ip.is_loopback());
    let ip = match (outside.next(), outside.next()) {
        (Some(ip), None) => *ip,
        // Where there are several addresses, the way to each server decides.
        (Some(_), Some(_)) if v4 => Ipv4Addr::UNSPECIFIED.into(),
        (Some(_), Some(_)) => Ipv6Addr::UNSPECIFIED.into(),
        (None, _) => *of_family().next()?,
    };
    Ear::open((ip, 0).into()).map(Arc::new).ok()
}

async fn targets<'a>(server: &'a IceServer, url: &str) -> Result<Vec<Target<'a>>, Box<Finding>> {
    let parsed: IceUrl = url.parse().map_err(|why: String| {
        let service = if url.starts_with("turn") { Service::Turn } else { Service::Stun };
        // The text itself may hold a password.
        Box::new(Finding { service, ..nowhere(String::from("(cannot be read)"), Outcome::BadUrl { detail: why }) })
    })?;
    let found = resolve(&parsed.host, parsed.port).await.map_err(|detail| {
        Box::new(Finding {
            service: service_of(&parsed),
            transport: transport_of(&parsed),
            ..nowhere(parsed.to_string(), Outcome::NoName { detail })
        })
    })?;
    // One address of each family: more say nothing new.
    let first = |v4: bool| found.iter().find(|address| address.is_ipv4() == v4);
    let chosen = [first(true), first(false)].into_iter().flatten();
    Ok(chosen.map(|address| Target { url: parsed.clone(), address: *address, server }).collect())
}

fn service_of(url: &IceUrl) -> Service {
    match url.kind {
        IceKind::Stun => Service::Stun,
        IceKind::Turn => Service::Turn,
    }
}

fn transport_of(url: &IceUrl) -> Transport {
    match url.transport {
        IceTransport::Udp => Transport::Udp,
        IceTransport::Tcp => Transport::Tcp,
        IceTransport::Tls => Transport::Tls,
    }
}

fn nowhere(url: String, outcome: Outcome) -> Finding {
    Finding {
        url,
        service: Service::Stun,
        transport: Transport::Udp,
        address: None,
        local: None,
        mapped: None,
        relayed: None,
        rtt_ms: None,
        besides: false,
        outcome,
    }
}

/// What one answer said.
struct Answer {
    local: Option<SocketAddr>,
    mapped: Option<SocketAddr>,
    relayed: Option<SocketAddr>,
    rtt: Duration,
}

fn finding(target: &Target<'_>, answer: Result<Answer, Outcome>) -> Finding {
    let (service, transport) = (service_of(&target.url), transport_of(&target.url));
    let mut found = Finding { service, transport, address: Some(target.address), ..nowhere(target.url.to_string(), Outcome::Ok) };
    match answer {
        Ok(Answer { local, mapped, relayed, rtt }) => {
            (found.local, found.mapped, found.relayed, found.rtt_ms) = (local, mapped, relayed, Some(rtt.as_secs_f64() * 1000.0));
        }
        Err(outcome) => found.outcome = outcome,
    }
    found
}

fn configured<'a>(target: &'a Target<'_>, ears: &'a Ears, options: &'a PeerOptions) -> Asking<'a> {
    Box::pin(async move {
        let answer = async {
            match (target.url.kind, target.url.transport) {
                (IceKind::Stun, IceTransport::Udp) => stun_over_udp(target.address, ears).await,
                (IceKind::Stun, _) => {
                    let mut way = Way::open(target, options).await?;
                    let (reply, rtt) = way.ask(&stun::binding().map_err(ask::internal)?).await?;
                    Ok(Answer { local: way.local(), mapped: reply.mapped, relayed: None, rtt })
                }
                (IceKind::Turn, _) => {
                    let mut way = Way::open(target, options).await?;
                    allocate(&mut way, target.server, unix_now()).await
                }
            }
        };
        finding(target, in_time(answer).await)
    })
}

/// Asks an address for our own over a transport that was not configured.
fn beside<'a>(transport: Transport, target: &'a Target<'_>, ears: &'a Ears) -> Asking<'a> {
    Box::pin(async move {
        let answer = async {
            if transport == Transport::Udp {
                return stun_over_udp(target.address, ears).await;
            }
            let began = Instant::now();
            let stream = ask::connect(target.address).await?;
            Ok(Answer { local: stream.local_addr().ok(), mapped: None, relayed: None, rtt: began.elapsed() })
        };
        let found = finding(target, in_time(answer).await);
        let url = format!("stun:{}", target.address);
        Finding { url, service: Service::Stun, transport, besides: true, ..found }
    })
}

async fn in_time(answer: impl Future<Output = Result<Answer, Outcome>>) -> Result<Answer, Outcome> {
    timeout_at(tokio::time::Instant::now() + SERVER, answer).await.unwrap_or(Err(Outcome::Silent))
}

/// From the socket that all are asked from; one that only this server is asked from hears whether nothing listens there.
async fn stun_over_udp(address: SocketAddr, ears: &Ears) -> Result<Answer, Outcome> {
    let ear = ears.of(address).ok_or_else(|| Outcome::NoRoute { detail: "no address of this family here".to_owned() })?;
    let request = stun::binding().map_err(ask::internal)?;
    let refused = async {
        let mut own = Way::udp(address)?;
        match own.ask(&stun::binding().map_err(ask::internal)?).await {
            Err(outcome @ (Outcome::Refused | Outcome::NoRoute { .. })) => Err(outcome),
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        answer = ear.ask(&request, address) => answer,
        refused = refused => refused,
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
