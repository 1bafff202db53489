//! Several processes that meet at a NATS server. The only file that names `async_nats`.
//!
//! * a subject for each connected peer: whoever has the peer listens there, so that NATS knows where it is and nobody else needs to. A killed
//!   process listens no more at once
//! * a subject for each server, and one where all say from time to time that they are there
//! * what is asked is answered: a message is delivered when the process that has the peer says so. The library would keep what is merely
//!   published while there is no connection, and bring it much later
//!
//! Without a connection, questions are answered with [`Answer::Unknown`] at once. The library connects again by itself, as long as it takes,
//! and listens again to all that it listened to; what was asked meanwhile is not repeated.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, Message, ServerAddr, StatusCode, Subscriber};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answer, Answers, Lease, Link, Local, Relay,
    nats_config::{Login, NatsConfig},
    subject,
};
use crate::{
    domain::cluster::{self, Ask, FORGET_AFTER, MAX_PAYLOAD, Reply, Roster, ServerId},
    runtime::{metrics::Metrics, proof::random_name},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the first connection is waited for, before the server starts without one.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// How long a server that has just connected waits for the others to say that they are there.
const INTRODUCTION: Duration = Duration::from_millis(200);
/// Between two times that a server says that it is there. Of four, three may be lost.
const HELLO: Duration = Duration::from_secs(FORGET_AFTER.as_secs() / 4);
/// Between two pings to the NATS server; after two without an answer it counts as gone.
const PING: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// What may wait for a connection: subscriptions, and their ends. Questions do not wait.
const COMMANDS: usize = 64 * 1024;
/// What may wait for one of our tasks. Each peer asks one thing at a time, so that this is more than a room can fill.
const MESSAGES: usize = 4096;

/// The other processes, by way of NATS.
pub struct Nats {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

struct Shared {
    me: ServerId,
    client: Client,
    link: watch::Sender<Link>,
    /// Begins all subjects of answers to us.
    inbox: String,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
    next: AtomicU64,
    roster: Mutex<Roster>,
    local: OnceLock<Weak<dyn Local>>,
    began: Instant,
    metrics: Arc<Metrics>,
}

/// What the library says about its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Connection {
    /// Not yet, or no more; why, where it is known.
    No(String),
    /// It refuses our login.
    Refused(String),
    /// For the n-th time.
    Yes(u64),
}

impl Nats {
    /// Connects. Where no NATS server can be reached it goes on trying, and this server begins without the others.
    ///
    /// # Errors
    /// What only a person can mend: the login is refused, or the NATS server's limit on messages is too low.
    pub async fn open(config: &NatsConfig, metrics: Arc<Metrics>) -> Result<Arc<Self>, Failure> {
        let (events, mut connection) = watch::channel(Connection::No("no answer so far".to_owned()));
        let client = connect(config, events).await?;
        let first = connection.wait_for(|connection| !matches!(connection, Connection::No(_)));
        let first = timeout(FIRST_PATIENCE, first).await.ok().and_then(Result::ok).map(|connection| connection.clone());
        match first {
            Some(Connection::Refused(why)) => return Err(unusable(config, &why)),
            Some(_) => check_limit(&client).map_err(|why| unusable(config, &why))?,
            None => {
                tracing::error!(servers = %config, "no NATS server can be reached; going on without the other servers, and trying again")
            }
        }
        let shared = Arc::new(Shared {
            me: ServerId::new(random_name()?.parse()?),
            inbox: client.new_inbox(),
            client,
            link: watch::Sender::new(Link::Down("not connected yet".to_owned())),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            roster: Mutex::default(),
            local: OnceLock::new(),
            began: Instant::now(),
            metrics,
        });
        let nats = Arc::new(Nats { shared, tasks: Mutex::default() });
        nats.listen().await?;
        nats.spawn(nats.shared.clone().keep_link(connection, config.to_string()));
        if first.is_some() {
            // So that the first peer that registers here is told of everybody.
            let mut link = nats.shared.link.subscribe();
            let _ = timeout(PATIENCE, link.wait_for(|link| matches!(link, Link::Up(_)))).await;
        }
        Ok(nats)
    }

    /// Listens to what concerns the server as a whole.
    async fn listen(&self) -> Result<(), Failure> {
        let shared = &self.shared;
        let gone = |_| Failure::new(Code::Unavailable, "the NATS client has ended");
        let answers = shared.client.subscribe(format!("{}.*", shared.inbox)).await.map_err(gone)?;
        self.spawn(shared.clone().hand_out(answers));
        for subject in [subject::server(&shared.me), subject::SERVERS.to_owned()] {
            let asked = shared.client.subscribe(subject).await.map_err(gone)?;
            self.spawn(shared.clone().answer_all(asked));
        }
        self.spawn(shared.clone().say_hello());
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }
}

async fn connect(config: &NatsConfig, events: watch::Sender<Connection>) -> Result<Client, Failure> {
    let mut options = ConnectOptions::new()
        .name(concat!("webrtc-server ", env!("CARGO_PKG_VERSION")))
        .retry_on_initial_connect()
        .no_echo()
        .ping_interval(PING)
        .connection_timeout(CONNECT)
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(50).saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST_WAIT)
        })
        .client_capacity(COMMANDS)
        .subscription_capacity(MESSAGES)
        .event_callback(move |event| {
            note(&events, &event);
            std::future::ready(())
        });
    options = match &config.login {
        None => options,
        Some(Login::Token(token)) => options.token(token.expose().clone()),
        Some(Login::User { name, password }) => options.user_and_password(name.clone(), password.expose().clone()),
    };
    if let Some(file) = &config.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    let addresses: Result<Vec<ServerAddr>, _> = config.servers.iter().map(|server| server.parse()).collect();
    let client = match addresses {
        Ok(addresses) => options.connect(addresses).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    client.map_err(|why| unusable(config, &why))
}

fn note(events: &watch::Sender<Connection>, event: &Event) {
    let refused = [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication].map(|kind| kind.to_string());
    events.send_if_modified(|connection| {
        let new = match event {
            Event::Connected => match connection {
                Connection::Yes(count) => Connection::Yes(*count + 1),
                _ => Connection::Yes(1),
            },
            Event::Disconnected | Event::Closed => Connection::No("the connection to NATS was lost".to_owned()),
            Event::ClientError(error) => {
                let why = error.to_string();
                let is_refusal = refused.iter().any(|refused| why.contains(refused.as_str()));
                if is_refusal { Connection::Refused(why) } else { Connection::No(why) }
            }
            Event::SlowConsumer(_) => {
                tracing::warn!("messages of other servers were dropped: they came faster than they could be handled");
                return false;
            }
            _ => return false,
        };
        let changed = *connection != new;
        *connection = new;
        changed
    });
}

/// Whether the largest message between servers fits.
fn check_limit(client: &Client) -> Result<(), String> {
    match client.max_payload() {
        limit if limit < MAX_PAYLOAD => Err(format!(
            "it takes messages of up to {limit} bytes, and servers send each other up to {MAX_PAYLOAD}; set its max_payload to that or more"
        )),
        _ => Ok(()),
    }
}

fn unusable(config: &NatsConfig, why: &str) -> Failure {
    Failure::new(Code::InvalidRequest, format!("the NATS server {config} cannot be used: {why}"))
}

impl Shared {
    /// Follows the connection: tells the others that we are there before anybody may ask for something.
    async fn keep_link(self: Arc<Self>, mut connection: watch::Receiver<Connection>, servers: String) {
        let mut count = 0;
        loop {
            let now = connection.borrow_and_update().clone();
            let link = match now {
                Connection::Yes(_) => match check_limit(&self.client) {
                    Ok(()) => {
                        self.introduce().await;
                        count += 1;
                        Link::Up(count)
                    }
                    Err(why) => Link::Down(why),
                },
                Connection::No(why) | Connection::Refused(why) => Link::Down(why),
            };
            // What has changed meanwhile comes with the next round.
            if connection.has_changed().is_ok_and(|changed| !changed) {
                self.tell(link, &servers);
            }
            if connection.changed().await.is_err() {
                return;
            }
        }
    }

    fn tell(&self, link: Link, servers: &str) {
        let is_up = matches!(link, Link::Up(_));
        self.metrics.nats_up.set(f64::from(u8::from(is_up)));
        let was_up = matches!(*self.link.borrow(), Link::Up(_));
        match &link {
            Link::Down(why) if was_up => tracing::error!(servers, why, "peers of other servers cannot be reached"),
            Link::Down(why) => tracing::debug!(servers, why, "still no way to the other servers"),
            _ => tracing::info!(servers, others = self.others().len(), "connected with the other servers"),
        }
        self.link.send_replace(link);
    }

    async fn introduce(&self) {
        self.hello(subject::SERVERS.to_owned(), true).await;
        sleep(INTRODUCTION).await;
    }

    async fn say_hello(self: Arc<Self>) {
        let mut tick = interval(HELLO);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.is_up() {
                self.hello(subject::SERVERS.to_owned(), false).await;
            }
            self.metrics.servers.set(1.0 + self.others().len() as f64);
        }
    }

    async fn hello(&self, to: String, first: bool) {
        if let Ok(payload) = cluster::encode(&Ask::Hello { server: self.me.clone(), first }, None) {
            // Said again soon.
            let _ = timeout(PATIENCE, self.client.publish(to, payload.into())).await;
        }
    }

    fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up(_))
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> Vec<ServerId> {
        self.roster().alive(self.began.elapsed())
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each answer to whoever waits for it. The first counts.
    async fn hand_out(self: Arc<Self>, mut answers: Subscriber) {
        while let Some(message) = answers.next().await {
            let token = message.subject.as_str().rsplit('.').next().and_then(|token| token.parse().ok());
            if let Some(waiting) = token.and_then(|token: u64| self.waiting().remove(&token)) {
                // Whoever has given up waiting has no use for it.
                let _ = waiting.send(message);
            }
        }
    }

    async fn answer_all(self: Arc<Self>, mut asked: Subscriber) {
        while let Some(message) = asked.next().await {
            self.answer(message).await;
        }
    }

    async fn answer(&self, message: Message) {
        let (ask, text) = match cluster::decode::<Ask>(&message.payload) {
            Ok(read) => read,
            Err(why) => return self.drop_malformed(&message, &why),
        };
        if let Ask::Hello { server, first } = ask {
            self.roster().heard(server.clone(), self.began.elapsed());
            if first {
                self.hello(subject::server(&server), false).await;
            }
            return;
        }
        let reply = self.local.get().and_then(Weak::upgrade).and_then(|local| local.asked(ask, text));
        let (Some(reply), Some(to)) = (reply, message.reply) else { return };
        match cluster::encode(&reply, None) {
            // Whoever asked has given up by then.
            Ok(payload) => drop(timeout(PATIENCE, self.client.publish(to, payload.into())).await),
            Err(why) => tracing::error!(%why, "an answer to another server is lost"),
        }
    }

    fn drop_malformed(&self, message: &Message, why: &cluster::Malformed) {
        self.metrics.malformed.increment(1);
        tracing::warn!(subject = message.subject.as_str(), %why, "a message of another server is dropped");
    }

    async fn request(&self, subject: String, ask: &Ask, text: Option<&str>, patience: Duration) -> Answer {
        let Ok(payload) = cluster::encode(ask, text) else { return Answer::TooLarge };
        if !self.is_up() {
            return Answer::Unknown;
        }
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { shared: self, token: self.next.fetch_add(1, Ordering::Relaxed) };
        self.waiting().insert(waiting.token, answer);
        let asking = async {
            self.client.publish_with_reply(subject, format!("{}.{}", self.inbox, waiting.token), payload.into()).await.ok()?;
            answered.await.ok()
        };
        match timeout(patience, asking).await.ok().flatten() {
            None => Answer::Unknown,
            Some(message) if message.status == Some(StatusCode::NO_RESPONDERS) => Answer::Absent,
            Some(message) => match cluster::decode::<Reply>(&message.payload) {
                Ok((reply, _)) => Answer::Reply(reply),
                Err(why) => {
                    self.drop_malformed(&message, &why);
                    Answer::Unknown
                }
            },
        }
    }

    async fn request_all(&self, ask: Ask, patience: Duration) -> Answers {
        if !self.is_up() {
            return Answers::default();
        }
        let ask = &ask;
        let mut asking: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|server| async move { (self.request(subject::server(&server), ask, None, patience).await, server) })
            .collect();
        let mut answers = Answers { replies: Vec::new(), complete: true };
        while let Some((answer, server)) = asking.next().await {
            match answer {
                Answer::Reply(reply) => answers.replies.push(reply),
                Answer::Absent => self.roster().gone(&server),
                Answer::Unknown | Answer::TooLarge => answers.complete = false,
            }
        }
        answers
    }
}

/// That an answer is waited for, until dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    token: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.token);
    }
}

impl Relay for Nats {
    fn start(&self, local: Weak<dyn Local>) {
        // There is one hub a relay; a second one would be a mistake that the first does not notice.
        let _ = self.shared.local.set(local);
    }

    fn lease(&self, room: &RoomId, peer: &PeerId) -> BoxFuture<'_, Option<Lease>> {
        let subject = subject::peer(room, peer);
        Box::pin(async move {
            let asked = timeout(PATIENCE, self.shared.client.subscribe(subject)).await.ok()?.ok()?;
            Some(Lease { _task: Some(AbortOnDropHandle::new(tokio::spawn(self.shared.clone().answer_all(asked)))) })
        })
    }

    fn ask(&self, room: &RoomId, peer: &PeerId, ask: Ask, text: Option<String>) -> BoxFuture<'_, Answer> {
        let subject = subject::peer(room, peer);
        Box::pin(async move { self.shared.request(subject, &ask, text.as_deref(), PATIENCE).await })
    }

    fn ask_all(&self, ask: Ask, patience: Duration) -> BoxFuture<'_, Answers> {
        Box::pin(self.shared.request_all(ask, patience))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }
}
