//! How often anybody may do something, and how many sockets anybody may have.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};

use super::config::{Limits, OWN_SIGN_INS_PER_SECOND};

/// How many addresses or rooms one limit remembers before it refuses new ones; old ones are forgotten each sweep.
const MAX_KEYS: usize = 100_000;
const DAY: u64 = 24 * 3600;

/// Who is counted as one: an IPv4 address, or an IPv6 /64, which is what one customer of a provider has at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        Address(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
            ip => ip,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The limits that sockets and requests share; each socket has its own [`messages`] limiter besides.
pub struct Rates {
    sign_in: DefaultKeyedRateLimiter<Address>,
    sign_in_in_all: DefaultDirectRateLimiter,
    sign_in_today: Option<Mutex<Day>>,
    create_room: DefaultKeyedRateLimiter<Address>,
    request: DefaultKeyedRateLimiter<Address>,
    registration: DefaultKeyedRateLimiter<Address>,
    stranger: DefaultKeyedRateLimiter<RoomId>,
}

impl Rates {
    /// With these limits.
    pub fn new(limits: &Limits) -> Self {
        let minute = |count| Quota::per_minute(at_least_one(count));
        Rates {
            sign_in: RateLimiter::keyed(minute(limits.sign_ins_per_minute)),
            sign_in_in_all: RateLimiter::direct(Quota::per_second(at_least_one(
                limits.sign_ins_per_second_in_all.unwrap_or(OWN_SIGN_INS_PER_SECOND),
            ))),
            sign_in_today: limits.sign_ins_per_day_in_all.map(|limit| Mutex::new(Day { limit, day: 0, count: 0 })),
            create_room: RateLimiter::keyed(minute(limits.rooms_per_minute)),
            request: RateLimiter::keyed(minute(limits.requests_per_minute)),
            registration: RateLimiter::keyed(minute(limits.registrations_per_minute)),
            stranger: RateLimiter::keyed(minute(limits.strangers_per_minute)),
        }
    }

    /// A REST request.
    ///
    /// # Errors
    /// [`Code::RateLimited`], here and below.
    pub fn request(&self, from: Address) -> Result<(), Failure> {
        check(&self.request, &from, "requests")
    }

    /// A sign-in at this time (Unix seconds): limited by address first, so that one address cannot use up what all share.
    ///
    /// # Errors
    /// Which limit it is over.
    pub fn sign_in(&self, from: Address, now: u64) -> Result<(), SignInLimit> {
        check(&self.sign_in, &from, "sign-ins").map_err(|_| SignInLimit::Address)?;
        self.sign_in_in_all.check().map_err(|_| SignInLimit::Second)?;
        let today = self.sign_in_today.as_ref().map(|day| day.lock().unwrap_or_else(PoisonError::into_inner));
        if today.is_none_or(|mut day| day.count_one(now)) { Ok(()) } else { Err(SignInLimit::Day) }
    }

    /// A new room.
    ///
    /// # Errors
    /// [`Code::RateLimited`].
    pub fn create_room(&self, from: Address) -> Result<(), Failure> {
        check(&self.create_room, &from, "new rooms")
    }

    /// A try to register, right or wrong.
    ///
    /// # Errors
    /// [`Code::RateLimited`].
    pub fn registration(&self, from: Address) -> Result<(), Failure> {
        check(&self.registration, &from, "registrations")
    }

    /// A try to register, right or wrong, by somebody whom the room does not know (whether or not there is such a room).
    ///
    /// # Errors
    /// [`Code::RateLimited`].
    pub fn stranger(&self, room: &RoomId) -> Result<(), Failure> {
        check(&self.stranger, room, "new peers for this room")
    }

    /// Forgets who has been quiet long enough to have all their tries again.
    pub fn prune(&self) {
        for limiter in [&self.sign_in, &self.create_room, &self.request, &self.registration] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        self.stranger.retain_recent();
        self.stranger.shrink_to_fit();
    }
}

/// How many there were on the present day (UTC).
struct Day {
    limit: u32,
    day: u64,
    count: u32,
}

impl Day {
    /// Whether one more is within the limit; if so it is counted.
    fn count_one(&mut self, now: u64) -> bool {
        let today = now / DAY;
        if self.day != today {
            (self.day, self.count) = (today, 0);
        }
        let within = self.count < self.limit;
        self.count += u32::from(within);
        within
    }
}

/// Which limit a sign-in is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignInLimit {
    /// One address's, a minute.
    Address,
    /// Everybody's, a second.
    Second,
    /// Everybody's, a day.
    Day,
}

impl SignInLimit {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            SignInLimit::Address => "address",
            SignInLimit::Second => "second",
            SignInLimit::Day => "day",
        }
    }
}

impl From<SignInLimit> for Failure {
    fn from(limit: SignInLimit) -> Self {
        match limit {
            SignInLimit::Address => limited("sign-ins"),
            SignInLimit::Second => Failure::new(Code::RateLimited, "too many sign-ins from everywhere; try again in a few seconds"),
            SignInLimit::Day => {
                Failure::new(Code::RateLimited, "there are no more sign-ins today; try again tomorrow, or ask who runs the server for more")
            }
        }
    }
}

/// The limit of one socket's messages.
pub fn messages(limits: &Limits) -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_second(at_least_one(limits.messages_per_second)).allow_burst(at_least_one(limits.message_burst)))
}

fn at_least_one(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
}

fn check<K: Clone + Hash + Eq>(limiter: &DefaultKeyedRateLimiter<K>, key: &K, what: &str) -> Result<(), Failure> {
    if limiter.len() >= MAX_KEYS {
        return Err(limited(what));
    }
    limiter.check_key(key).map_err(|_| limited(what))
}

fn limited(what: &str) -> Failure {
    Failure::new(Code::RateLimited, format!("too many {what}; wait a minute and try again"))
}

/// How many WebSockets are open, in all and from each address.
#[derive(Default)]
pub struct Sockets {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    in_all: usize,
    by_address: HashMap<Address, usize>,
}

impl Sockets {
    /// Counts one more until the ticket is dropped.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the server is full, [`Code::RateLimited`] when the address has its share.
    pub fn open(self: &Arc<Self>, from: Address, limits: &Limits) -> Result<Ticket, Failure> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.in_all >= limits.sockets {
            return Err(Failure::new(Code::Unavailable, "the server is full; try again later"));
        }
        let count = open.by_address.entry(from).or_default();
        if *count >= limits.sockets_per_address {
            return Err(Failure::new(Code::RateLimited, format!("this address has {count} connections already; close some")));
        }
        *count += 1;
        open.in_all += 1;
        Ok(Ticket { sockets: self.clone(), from })
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).in_all
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One open WebSocket of an address.
pub struct Ticket {
    sockets: Arc<Sockets>,
    from: Address,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut open = self.sockets.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.in_all -= 1;
        if let Some(count) = open.by_address.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_is_an_ipv4_or_an_ipv6_network() {
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:2"));
        assert_ne!(address("2001:db8:0:1::1"), address("2001:db8::1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }

    #[test]
    fn one_address_does_not_use_up_anothers_tries() {
        let rates = Rates::new(&Limits { sign_ins_per_minute: 2, ..Limits::default() });
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!((rates.sign_in(a, 0), rates.sign_in(a, 0)), (Ok(()), Ok(())));
        assert_eq!(rates.sign_in(a, 0), Err(SignInLimit::Address));
        rates.sign_in(b, 0).unwrap();
        rates.prune();
        assert!(rates.sign_in(a, 0).is_err(), "pruning does not forgive");
    }

    #[test]
    fn a_day_has_its_share_of_sign_ins_whoever_asks() {
        let rates = Rates::new(&Limits { sign_ins_per_day_in_all: Some(2), ..Limits::default() });
        let noon = 20_000 * DAY + DAY / 2;
        for (now, from, expected) in [
            (noon, "10.0.0.1", Ok(())),
            (noon, "10.0.0.2", Ok(())),
            (noon, "10.0.0.3", Err(SignInLimit::Day)),
            (noon + DAY / 2 - 1, "10.0.0.4", Err(SignInLimit::Day)),
            (noon + DAY / 2, "10.0.0.5", Ok(())),
        ] {
            assert_eq!(rates.sign_in(address(from), now), expected, "{now} {from}");
        }
    }

    #[test]
    fn an_address_has_its_share_of_sockets_and_gets_it_back() {
        let limits = Limits { sockets_per_address: 2, sockets: 3, ..Limits::default() };
        let sockets = Arc::new(Sockets::default());
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let _one = sockets.open(a, &limits).unwrap();
        let two = sockets.open(a, &limits).unwrap();
        assert_eq!(sockets.open(a, &limits).err().unwrap().code, Code::RateLimited);
        let _other = sockets.open(b, &limits).unwrap();
        assert_eq!(sockets.open(b, &limits).err().unwrap().code, Code::Unavailable);
        drop(two);
        assert!(sockets.open(a, &limits).is_ok());
        assert_eq!(sockets.len(), 2);
    }
}
