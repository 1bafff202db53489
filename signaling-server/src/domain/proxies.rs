//! Reverse proxies whose word is believed about where a request comes from.

use core::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::Deserialize;

/// Proxies: addresses and networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct TrustedProxies(Vec<Proxy>);

/// One address (`10.0.0.9`), or a network of them (`10.0.0.0/8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Proxy(IpNet);

impl FromStr for Proxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<IpAddr>().ok()?.to_canonical().into()));
        network.map(Proxy).ok_or_else(|| format!("'{text}' is neither an address such as 10.0.0.9 nor a network such as 10.0.0.0/8"))
    }
}

impl TryFrom<String> for Proxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromIterator<Proxy> for TrustedProxies {
    fn from_iter<T: IntoIterator<Item = Proxy>>(proxies: T) -> Self {
        TrustedProxies(proxies.into_iter().collect())
    }
}

impl TrustedProxies {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|proxy| proxy.0.contains(&address))
    }

    /// Who a request comes from: the other end of the connection; where that is a trusted proxy, the address that it appended last to
    /// `X-Forwarded-For`, and so on along further trusted ones. What stands before the first address that is none is a stranger's own claim.
    /// `forwarded` has the header's values in the order in which they came.
    pub fn origin<'a>(&self, remote: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut origin = remote.to_canonical();
        for hop in forwarded.rev().flat_map(|value| value.rsplit(',')) {
            if !self.contains(origin) {
                break;
            }
            match address(hop) {
                Some(before) => origin = before,
                None => break,
            }
        }
        origin
    }
}

/// An entry of the header; some proxies write the port, too.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let with_port = || text.parse::<core::net::SocketAddr>().map(|address| address.ip()).ok();
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    bare().or_else(with_port).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies(list: &[&str]) -> TrustedProxies {
        list.iter().map(|text| text.parse::<Proxy>().unwrap()).collect()
    }

    #[test]
    fn the_origin_is_the_first_address_from_the_right_that_is_no_proxy() {
        let trusted = proxies(&["10.0.0.9", "172.16.0.0/12", "2001:db8::/32"]);
        for (remote, forwarded, origin) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.9", &["198.51.100.7"], "198.51.100.7"),
            ("::ffff:10.0.0.9", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.9", &["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.9", &["1.1.1.1", "2.2.2.2, 198.51.100.7"], "198.51.100.7"),
            ("172.20.1.1", &["1.1.1.1, 198.51.100.7, 172.16.0.5", "10.0.0.9"], "198.51.100.7"),
            ("2001:db8::1", &["[2a00::5]:443"], "2a00::5"),
            ("10.0.0.9", &["198.51.100.7:5000"], "198.51.100.7"),
            ("10.0.0.9", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("10.0.0.9", &["nonsense"], "10.0.0.9"),
            ("10.0.0.9", &["1.1.1.1, nonsense, 172.16.0.5"], "172.16.0.5"),
            ("10.0.0.9", &["172.16.0.5, 172.16.0.6"], "172.16.0.5"),
            ("10.0.0.9", &[""], "10.0.0.9"),
            ("10.0.0.9", &[], "10.0.0.9"),
        ] {
            assert_eq!(
                trusted.origin(remote.parse().unwrap(), forwarded.iter().copied()),
                origin.parse::<IpAddr>().unwrap(),
                "{forwarded:?}"
            );
        }
    }

    #[test]
    fn only_addresses_and_networks_are_proxies() {
        assert!(proxies(&["10.1.2.3/8"]).contains("10.9.9.9".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "proxy.example", "10.0.0", "*"] {
            assert!(wrong.parse::<Proxy>().unwrap_err().contains("such as 10.0.0.9"), "{wrong}");
        }
    }

    proptest! {
        /// Whatever somebody sends along, in however many headers: what counts is what the proxy appended.
        #[test]
        fn nobody_chooses_his_own_origin(claims in proptest::collection::vec("[0-9a-f.:, ]{0,40}", 0..4), own in any::<[u8; 4]>()) {
            let trusted = proxies(&["127.0.0.0/8", "10.0.0.0/8"]);
            let own = IpAddr::from(own);
            prop_assume!(!trusted.contains(own));
            let word = own.to_string();
            let headers = claims.iter().map(String::as_str).chain([word.as_str()]).collect::<Vec<_>>();
            prop_assert_eq!(trusted.origin("10.0.0.1".parse().unwrap(), headers.into_iter()), own);
            // In one header, too.
            let joined = format!("{}, {own}", claims.join(", "));
            prop_assert_eq!(trusted.origin("10.0.0.1".parse().unwrap(), [joined.as_str()].into_iter()), own);
            // And without a proxy nothing counts.
            prop_assert_eq!(trusted.origin(own, claims.iter().map(String::as_str)), own);
        }
    }
}
