//! The agent: keeps the worker in its room, answers clients, and hands their links to sessions.
//!
//! It holds nothing that must survive it: the room, the identity, the jobs, the packages and the journals are on disk, and
//! trainers belong to their runners. Killed and started again it goes on where it was.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use shared::{
    domain::{
        backoff::Backoff,
        error::{Code, Failure},
        id::{PeerId, Secret},
        invite::{Grant, Invite},
        message::WorkerInfo,
        network::Network,
        signal::{Metadata, Role, ToPeer, ToServer},
    },
    runtime::{
        identity::Identity,
        link::{Answerer, Link, Question},
        network_changes::NetworkChanges,
        peer::PeerOptions,
        seal,
        shutdown::Shutdown,
        signal::{Api, Registration, SignalEvent, SignalSender, connect},
        store::Store,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    beat::{Beat, Heart},
    doctor,
    gpu::Gpus,
    jobs::Jobs,
    now_ms,
    places::Places,
    presence::Presence,
    room::{self, Room},
    session::{Desk, News, serve},
    upload::Uploads,
    workspace::Workspace,
};
use crate::domain::{
    gpus,
    stay::{Departure, Leave, Scene, Stay},
    trainer::TrainerSettings,
};

/// Between two renewals of the room, which lives for two hours unless told otherwise.
const RENEW: Duration = Duration::from_secs(20 * 60);
/// Between two looks at what the worker says about itself.
const REFRESH: Duration = Duration::from_secs(15);
/// Between two clean-ups.
const CLEAN_UP: Duration = Duration::from_secs(3600);
/// Between two looks at whether to leave, and how long the server may take to close the room then.
const LOOK: Duration = Duration::from_secs(1);
const CLOSE: Duration = Duration::from_secs(5);
/// How long results stay once they have been fetched, in seconds.
const KEEP_FETCHED: u64 = 24 * 3600;
/// Clients with a link at the same time.
const MAX_CLIENTS: usize = 16;

/// What an agent needs to know.
pub struct AgentConfig {
    /// The signaling server's base URL.
    pub server: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the room is kept; workers that share the file share the room.
    pub room_file: PathBuf,
    /// What people call this worker.
    pub name: String,
    /// How long a room lives without renewal; absent: the server's default.
    pub room_ttl: Option<u64>,
    /// How we may be reached.
    pub network: Network,
    /// Jobs at the same time.
    pub parallel: usize,
    /// Bytes that packages may take on disk; absent: four fifths of what is free.
    pub quota: Option<u64>,
    /// Whether chunks that one client has sent serve another who proves that it has them, too.
    pub sharing: bool,
    /// How long jobs, results and packages that nobody has fetched or used stay, in seconds.
    pub keep: u64,
    /// How long a client that is away keeps its session, its place in the queue and those of its unfinished uploads.
    pub hold: Duration,
    /// When it leaves by itself, and closes its room.
    pub stay: Stay,
    /// Whether other workers may be in its room, which then stays open.
    pub shared_room: bool,
    /// Trainers.
    pub trainers: TrainerSettings,
    /// This program, to start runners from.
    pub exe: PathBuf,
    /// `CUDA_VISIBLE_DEVICES`, as trainers get it.
    pub visible_devices: Option<String>,
}

/// What an agent tells whoever shows it.
pub enum AgentEvent {
    /// The worker is in its room: these are its invites.
    RoomOpened {
        /// Lets its holder submit jobs.
        invite: Box<Invite>,
        /// Lets its holder watch.
        watch: Box<Invite>,
        /// The room's admission token, as the older system printed it.
        token: Secret<String>,
        /// Unix seconds.
        expires_at: u64,
    },
    /// The server is away; it is tried again.
    Waiting {
        /// Why.
        failure: Failure,
        /// Until the next try.
        retry_in: Duration,
    },
}

/// Runs until shutdown, or until it leaves by itself; says why then.
///
/// # Errors
/// What makes going on pointless: an unusable folder or configuration, or a server that refuses for good.
pub async fn run(config: AgentConfig, events: mpsc::Sender<AgentEvent>, shutdown: Shutdown) -> Result<Option<Leave>, Failure> {
    config.trainers.check()?;
    let stop = shutdown.token.clone();
    let api = Arc::new(Api::trusting(&config.server, config.network.ca_file.as_deref())?.with_tokens_in(&config.data_dir));
    let identity = Arc::new(Identity::load_or_create(&config.data_dir.join("identity.json"))?);
    let store = Store::open(&config.data_dir.join("store"), config.quota)?
        .with_holds(Arc::new(Workspace::open(&config.data_dir)?))
        .with_sharing(config.sharing);
    let jobs = Jobs::open(&config.data_dir, config.trainers.clone(), config.exe.clone(), config.parallel, stop.clone()).await?;
    if config.stay.one_job.is_some() {
        jobs.take_one();
    }
    let gpus = Arc::new(Gpus::new(config.visible_devices.clone()));
    gpus.look().await;
    let facts = Arc::new(Facts::new(&config, &identity, jobs.clone(), gpus.clone()));
    let (news_tx, news) = mpsc::channel(MAX_CLIENTS);
    let info = facts.clone();
    let desk = Desk {
        jobs: jobs.clone(),
        store: Arc::new(store),
        info: Arc::new(move || info.info()),
        hold: config.hold,
        present: Presence::default(),
        uploads: Uploads::default(),
        network: NetworkChanges::watch(stop.clone()),
        news: news_tx,
        stop: stop.clone(),
    };
    let options = PeerOptions { server_ice: Some(api.ice_servers()), ..PeerOptions::new(&config.network, api.is_loopback())? };
    let heart = Heart::new(&config.data_dir);
    let agent = Agent { config, api, identity, desk, facts, options, heart, events, shutdown: shutdown.clone() };
    let watching = stop.clone();
    shutdown.spawn(async move { watching.run_until_cancelled(watch(&gpus)).await });
    let result = stop.run_until_cancelled(agent.run(news)).await.unwrap_or(Ok(None));
    stop.cancel();
    jobs.drain().await;
    result
}

/// Looks at the GPUs every now and then, in a task of its own: a driver that does not answer holds nobody else up.
async fn watch(gpus: &Gpus) {
    loop {
        sleep(REFRESH).await;
        gpus.look().await;
    }
}

struct Agent {
    config: AgentConfig,
    api: Arc<Api>,
    identity: Arc<Identity>,
    desk: Desk,
    facts: Arc<Facts>,
    options: PeerOptions,
    heart: Heart,
    events: mpsc::Sender<AgentEvent>,
    shutdown: Shutdown,
}

/// The present registration.
struct Seat {
    room: Room,
    signal: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
    answerer: Answerer,
    stop: CancellationToken,
    announced: bool,
    /// Whether it is registered at this moment.
    in_room: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Agent {
    async fn run(self, mut news: mpsc::Receiver<News>) -> Result<Option<Leave>, Failure> {
        let (link_tx, mut links) = mpsc::channel(4);
        let places = Places::new(MAX_CLIENTS);
        let mut seat = self.take_seat(&link_tx, false).await?;
        let mut network = self.desk.network.clone();
        let mut moved: Vec<(PeerId, Instant)> = Vec::new();
        let mut renew = interval(RENEW);
        let mut refresh = interval(REFRESH);
        let mut clean_up = interval(CLEAN_UP);
        let mut departure = Departure::new(self.config.stay);
        let began = Instant::now();
        let mut look = interval(LOOK);
        for ticks in [&mut renew, &mut refresh, &mut clean_up, &mut look] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                event = seat.events.recv() => match event {
                    Some(SignalEvent::Message(ToPeer::Renewed { expires_at })) => tracing::debug!(expires_at, "the room was renewed"),
                    Some(SignalEvent::Message(message)) => {
                        if let ToPeer::PeerLeft { peer_id } = &message {
                            places.left(peer_id);
                        }
                        seat.answerer.handle(message, &self.options).await;
                    }
                    Some(SignalEvent::Registered { expires_at, .. }) => {
                        self.registered(&mut seat, expires_at).await;
                        tell_moved(&seat, &mut moved).await;
                    }
                    Some(SignalEvent::Alive) => tell_moved(&seat, &mut moved).await,
                    Some(SignalEvent::Lost { failure, retry_in }) => {
                        seat.in_room = false;
                        self.beat(false);
                        let _ = self.events.send(AgentEvent::Waiting { failure, retry_in }).await;
                    }
                    Some(SignalEvent::Refused(failure)) if failure.code == Code::RoomNotFound => {
                        tracing::warn!("the room is gone; a new one is opened, and invites of the old one are void");
                        seat = self.take_seat(&link_tx, true).await?;
                    }
                    Some(SignalEvent::Refused(failure)) => return Err(failure),
                    // At the end of the worker the connection ends with it, at times a moment before us.
                    None if self.shutdown.token.is_cancelled() => return Ok(None),
                    None => return Err(Failure::new(Code::Internal, "the connection to the signaling server has ended")),
                },
                Some((peer, link)) = links.recv() => self.serve(&places, peer, link),
                () = network.changed() => seat.signal.urge(),
                Some(news) = news.recv() => {
                    if let News::Moved(peer, at) = news {
                        moved.retain(|(other, _)| *other != peer);
                        moved.push((peer, at));
                    }
                    seat.signal.urge();
                }
                _ = renew.tick() => { let _ = seat.signal.send(ToServer::Renew).await; }
                _ = clean_up.tick() => self.clean_up(),
                _ = look.tick(), if self.config.stay.is_limited() => {
                    if let Some(leave) = departure.look(began.elapsed(), self.scene(&places)) {
                        tracing::info!(?leave, "the worker leaves by itself");
                        self.close_room(&mut seat).await;
                        return Ok(Some(leave));
                    }
                }
                _ = refresh.tick() => {
                    self.beat(seat.in_room);
                    if self.facts.changed() {
                        let _ = seat.signal.send(ToServer::UpdateMetadata { metadata: self.facts.metadata(&seat.room) }).await;
                    }
                }
            }
        }
    }

    fn beat(&self, in_room: bool) {
        self.heart.beat(Beat { in_room, jobs: self.desk.jobs.active() });
    }

    /// What there is that somebody may stay for.
    fn scene(&self, places: &Places) -> Scene {
        let clients = places.taken() + self.desk.present.expected(Instant::now());
        Scene { clients, busy: self.desk.jobs.busy(), over: self.desk.jobs.over() }
    }

    /// Deletes the room, so that it admits nobody who would look for a worker in vain. Where the server is away, the room ends in its time.
    async fn close_room(&self, seat: &mut Seat) {
        if self.config.shared_room {
            return;
        }
        let deleted = async {
            seat.signal.send(ToServer::DeleteRoom).await?;
            while let Some(event) = seat.events.recv().await {
                match event {
                    SignalEvent::Message(ToPeer::Error { code, message, .. }) => return Err(Failure::new(code, message)),
                    // The server closes the sockets of a room that it deletes.
                    SignalEvent::Lost { .. } | SignalEvent::Refused(_) => break,
                    _ => {}
                }
            }
            Ok(())
        };
        match timeout(CLOSE, deleted).await {
            Ok(Ok(())) => tracing::info!(room = %seat.room.id, "the room is closed"),
            Ok(Err(failure)) => tracing::warn!(%failure, "the room could not be closed; it ends in its time"),
            Err(_) => tracing::warn!("the server did not say that it closed the room; it ends in its time"),
        }
        if let Err(error) = std::fs::remove_file(&self.config.room_file) {
            tracing::warn!(%error, path = %self.config.room_file.display(), "the room's file cannot be removed");
        }
    }

    /// Removes old jobs, and old packages that no job needs.
    fn clean_up(&self) {
        let (jobs, store, keep) = (self.desk.jobs.clone(), self.desk.store.clone(), self.config.keep);
        self.shutdown.tracker.spawn_blocking(move || {
            let now = now_ms() / 1000;
            let needed = jobs.forget_old(now.saturating_sub(keep), now.saturating_sub(KEEP_FETCHED.min(keep)));
            let limit = SystemTime::now().checked_sub(Duration::from_secs(keep));
            let stored = store.packages().unwrap_or_else(|failure| {
                tracing::warn!(%failure, "the store cannot be cleaned up");
                Vec::new()
            });
            for package in stored
                .iter()
                .filter(|package| !needed.contains(&package.summary.id) && limit.is_some_and(|limit| package.last_used < limit))
            {
                match store.remove(package) {
                    Ok(()) => tracing::info!(package = ?package.summary.id, bytes = package.summary.bytes, "an old package was removed"),
                    Err(failure) => tracing::info!(package = ?package.summary.id, %failure, "an old package stays"),
                }
            }
        });
    }

    async fn registered(&self, seat: &mut Seat, expires_at: u64) {
        seat.in_room = true;
        self.beat(true);
        let _ = seat.signal.send(ToServer::Renew).await;
        if std::mem::replace(&mut seat.announced, true) {
            return;
        }
        let opened = AgentEvent::RoomOpened {
            invite: Box::new(seat.room.invite(Grant::Submit, &self.identity)),
            watch: Box::new(seat.room.invite(Grant::Watch, &self.identity)),
            token: seat.room.token.clone(),
            expires_at,
        };
        let _ = self.events.send(opened).await;
    }

    fn serve(&self, places: &Places, peer: PeerId, link: Link) {
        let (desk, options, stop) = (self.desk.clone(), self.options.clone(), self.shutdown.token.clone());
        let asking = places.ask(peer.clone(), link.proven.remote_key);
        self.shutdown.spawn(async move {
            match stop.run_until_cancelled(asking.place()).await {
                Some(Some(place)) => serve(desk, link, peer, options, place.doubt()).await,
                Some(None) => tracing::warn!(%peer, "a client was turned away: {MAX_CLIENTS} are connected already"),
                None => {}
            }
        });
    }

    /// Goes back to the room of the last time, or opens one; tries until it succeeds or is refused for good.
    async fn take_seat(&self, links: &mpsc::Sender<(PeerId, Link)>, anew: bool) -> Result<Seat, Failure> {
        let path = self.config.room_file.clone();
        let known = if anew { None } else { Room::load(&path, self.api.server(), &room::peer_id(&self.identity))? };
        let room = match known {
            Some(room) => room,
            None => self.open_room(&path).await?,
        };
        let registration = Registration {
            room: room.id.clone(),
            token: room.token.clone(),
            peer: room.peer.clone(),
            role: Role::Worker,
            metadata: self.facts.metadata(&room),
        };
        let stop = self.shutdown.token.child_token();
        let (signal, events) = connect(self.api.clone(), registration, self.identity.clone(), stop.clone());
        let answerer =
            Answerer::new(room.id.clone(), room.peer.clone(), room.secret.clone(), self.identity.clone(), signal.clone(), links.clone())
                .with_questions(self.doctor(stop.clone()));
        Ok(Seat { room, signal, events, answerer, stop, announced: false, in_room: false })
    }

    /// Starts answering questions about this end, until `stop`.
    fn doctor(&self, stop: CancellationToken) -> mpsc::Sender<Question> {
        let (questions, asked) = mpsc::channel(doctor::QUESTIONS);
        let answering = doctor::answer(asked, self.api.clone());
        self.shutdown.spawn(async move {
            stop.run_until_cancelled(answering).await;
        });
        questions
    }

    async fn open_room(&self, path: &std::path::Path) -> Result<Room, Failure> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            match Room::create(path, &self.api, &self.identity, self.config.room_ttl).await {
                Err(failure) if failure.is_transient() => {
                    self.beat(false);
                    let retry_in = backoff.next_wait(u64::from_le_bytes(seal::random::<8>()?));
                    let _ = self.events.send(AgentEvent::Waiting { failure, retry_in }).await;
                    sleep(retry_in).await;
                }
                other => return other,
            }
        }
    }
}

/// Tells clients that our address has changed, once the server is there to tell it through.
async fn tell_moved(seat: &Seat, moved: &mut Vec<(PeerId, Instant)>) {
    for (peer, at) in moved.drain(..) {
        seat.answerer.tell_moved(&peer, at.elapsed()).await;
    }
}

/// What the worker says about itself.
struct Facts {
    name: String,
    trainers: Vec<String>,
    data_dir: PathBuf,
    jobs: Jobs,
    gpus: Arc<Gpus>,
    published: std::sync::Mutex<Option<WorkerInfo>>,
    peer: PeerId,
    key: [u8; 32],
}

impl Facts {
    fn new(config: &AgentConfig, identity: &Identity, jobs: Jobs, gpus: Arc<Gpus>) -> Self {
        Facts {
            name: config.name.clone(),
            trainers: config.trainers.names(),
            data_dir: config.data_dir.clone(),
            jobs,
            gpus,
            published: std::sync::Mutex::default(),
            peer: room::peer_id(identity),
            key: *identity.public(),
        }
    }

    /// Whether anything has changed since the last time it was published.
    fn changed(&self) -> bool {
        let info = self.info();
        let published = self.published.lock().expect("no panic happens under this lock");
        published.as_ref().is_none_or(|old| old.jobs != info.jobs || gpus::differ(&old.gpus, &info.gpus))
    }

    fn info(&self) -> WorkerInfo {
        WorkerInfo {
            peer: self.peer.clone(),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gpus: self.gpus.seen(),
            trainers: self.trainers.clone(),
            jobs: self.jobs.active(),
            disk_free: free_space(&self.data_dir),
        }
    }

    /// The facts as metadata for the room, with the ancestor's `tags` and `properties` beside ours.
    fn metadata(&self, room: &Room) -> Metadata {
        let info = self.info();
        let mut metadata = Metadata::new();
        metadata.insert("tags".into(), serde_json::json!(["sleap-rtc", "training-worker"]));
        let gpu = info.gpus.first();
        metadata.insert(
            "properties".into(),
            serde_json::json!({
                "status": if info.jobs == 0 { "available" } else { "busy" },
                "gpu_model": gpu.map(|gpu| gpu.name.clone()),
                "gpu_memory_mb": gpu.and_then(|gpu| gpu.memory).map(|memory| memory.total / 1_000_000),
            }),
        );
        metadata.insert("worker".into(), serde_json::to_value(&info).expect("facts have string keys only"));
        metadata.insert("worker_key".into(), URL_SAFE_NO_PAD.encode(self.key).into());
        metadata.insert("vouch".into(), seal::vouch(&room.secret, &room.id, &self.peer, &self.key).into());
        *self.published.lock().expect("no panic happens under this lock") = Some(info);
        metadata
    }
}

fn free_space(path: &std::path::Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}
