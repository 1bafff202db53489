//! Every operation of the server, one method each; HTTP and WebSocket only translate.

use std::sync::Arc;

use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
    signal::{CreatedRoom, Filters, IceServer, PeerInfo, SignIn},
};
use shared::runtime::shutdown::Shutdown;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "aws")]
use super::user_pool::UserPool;
use super::{
    auth::Auth,
    config::Config,
    hub::Hub,
    key::KeyPair,
    metrics::Metrics,
    proof::random_name,
    rate::{Address, Rates, Sockets},
    relay::{Link, Nats, OneProcess, Relay},
    store::{MemoryStore, RedbStore, Store, StoreError},
    tls::Tls,
    turn_credentials::TurnIssuer,
};
use crate::domain::grant::{self, Change, Identity, PublicKey, Refusal, Room, TokenHash};

/// How often a new room tries another id. With 128 random bits the first is free unless the randomness is broken.
const ID_TRIES: usize = 3;
/// The part of the time for going down in which users are still deleted.
#[cfg(feature = "aws")]
const GOODBYE: f64 = 0.8;

/// The server's parts.
pub struct Server {
    /// What it was told.
    pub config: Config,
    /// Rooms that outlive the process.
    pub store: Arc<dyn Store>,
    /// Tokens.
    pub auth: Auth,
    /// Where anonymous users are made, unless they are ours.
    #[cfg(feature = "aws")]
    pub pool: Option<UserPool>,
    /// TURN credentials, where there are TURN servers to give them for.
    pub turn: Option<TurnIssuer>,
    /// How its own listeners are secured, if they are.
    pub tls: Option<Arc<Tls>>,
    /// Registered sockets.
    pub hub: Arc<Hub>,
    /// Limits on rates.
    pub rates: Rates,
    /// Open WebSockets.
    pub sockets: Arc<Sockets>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server goes down.
    pub stop: CancellationToken,
}

/// What several servers of one deployment have in common.
pub struct Common {
    /// Rooms.
    pub store: Arc<dyn Store>,
    /// What tokens of our own are signed with.
    pub keys: KeyPair,
}

impl Common {
    /// The store and the signing key in the data directory (made when missing), or in memory without one.
    ///
    /// # Errors
    /// [`Code::BadFile`] when a file cannot be used.
    pub fn open(config: &Config) -> Result<Self, Failure> {
        if config.nats.is_some() {
            tracing::warn!("rooms are kept by this server alone: peers on others cannot come into them (docs/several-servers.md)");
        }
        let Some(dir) = &config.data_dir else { return Ok(Common { store: Arc::new(MemoryStore::new()), keys: KeyPair::ephemeral()? }) };
        create_private(dir)
            .map_err(|error| Failure::new(Code::BadFile, format!("cannot make the data directory {}: {error}", dir.display())))?;
        Ok(Common { store: Arc::new(RedbStore::open(&dir.join("rooms.redb"))?), keys: KeyPair::load_or_create(dir)? })
    }
}

impl Server {
    /// Opens what the configuration names.
    ///
    /// # Errors
    /// [`Code::BadFile`] when a file cannot be used; as [`Server::with`].
    pub async fn open(config: Config, stop: CancellationToken) -> Result<Arc<Self>, Failure> {
        let common = Common::open(&config)?;
        Self::with(config, common, stop).await
    }

    /// One of several servers that have these in common.
    ///
    /// # Errors
    /// [`Code::BadFile`] when another file cannot be used, [`Code::InvalidRequest`] when something elsewhere is not as it is configured; as
    /// [`Nats::open`].
    pub async fn with(config: Config, Common { store, keys }: Common, stop: CancellationToken) -> Result<Arc<Self>, Failure> {
        let turn = config.turn.clone().map(TurnIssuer::open).transpose()?;
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let metrics = Arc::new(Metrics::new());
        let relay: Arc<dyn Relay> = match &config.nats {
            None => Arc::new(OneProcess::default()),
            Some(nats) => Nats::open(nats, metrics.clone()).await?,
        };
        let hub = Hub::new(config.limits.peers_per_room, relay, metrics.clone(), stop.clone());
        #[cfg(feature = "aws")]
        let (auth, pool) = match &config.cognito {
            None => (Auth::local(&keys, config.token_ttl)?, None),
            Some(settings) => {
                let (pool, auth) = Box::pin(UserPool::open(&config, settings, metrics.clone())).await?;
                (auth, Some(pool))
            }
        };
        #[cfg(not(feature = "aws"))]
        let auth = match &config.cognito {
            None => Auth::local(&keys, config.token_ttl)?,
            Some(_) => {
                return Err(Failure::new(Code::InvalidRequest, "this webrtc-server was built without AWS: it knows no --auth cognito"));
            }
        };
        let limits = config.limits.clone().for_users_of(config.cognito.is_some());
        Ok(Arc::new(Server {
            auth,
            #[cfg(feature = "aws")]
            pool,
            rates: Rates::new(&limits),
            sockets: Arc::default(),
            config,
            turn,
            tls,
            store,
            hub,
            metrics,
            stop,
        }))
    }

    /// Unix seconds.
    pub fn now(&self) -> u64 {
        self.config.clock.now()
    }

    /// The caller that a bearer token stands for.
    ///
    /// # Errors
    /// [`Code::Unauthorized`], [`Code::Unavailable`].
    pub async fn caller(&self, id_token: &str) -> Result<Identity, Failure> {
        Ok(Identity { subject: self.auth.verify(id_token, self.now()).await?.username, key: None })
    }

    /// Starts the tasks that look after what is elsewhere, until the shutdown.
    pub fn attend(&self, shutdown: &Shutdown) {
        #[cfg(feature = "aws")]
        if let Some(pool) = &self.pool {
            pool.attend(self.config.clock.clone(), self.config.timing.drain.mul_f64(GOODBYE), shutdown);
        }
        #[cfg(not(feature = "aws"))]
        let _ = shutdown;
    }

    /// A new anonymous user.
    ///
    /// # Errors
    /// [`Code::RateLimited`], [`Code::Unavailable`].
    pub async fn sign_in(&self, from: Address) -> Result<SignIn, Failure> {
        self.rates.sign_in(from, self.now()).inspect_err(|limit| self.metrics.sign_in_refused(*limit))?;
        let sign_in = self.new_user().await?;
        self.metrics.sign_ins.increment(1);
        tracing::debug!(username = sign_in.username, %from, "signed in");
        Ok(sign_in)
    }

    async fn new_user(&self) -> Result<SignIn, Failure> {
        #[cfg(feature = "aws")]
        if let Some(pool) = &self.pool {
            return pool.users.sign_in(&self.auth, self.now()).await;
        }
        self.auth.sign_in(self.now())
    }

    /// Has the users of rooms that have ended deleted, where they are not ours: without their rooms ours are nothing but names.
    fn forget_users_of(&self, rooms: &[Room]) {
        #[cfg(feature = "aws")]
        if let Some(pool) = &self.pool {
            pool.users.forget_those_of(rooms);
        }
        #[cfg(not(feature = "aws"))]
        let _ = rooms;
    }

    /// A new room of the caller's.
    ///
    /// # Errors
    /// [`Code::RateLimited`], [`Code::InvalidRequest`], [`Code::Unavailable`].
    pub async fn create_room(
        &self,
        from: Address,
        caller: Identity,
        ttl: Option<u64>,
        key: Option<PublicKey>,
    ) -> Result<CreatedRoom, Failure> {
        self.rates.create_room(from)?;
        let ttl = grant::checked_ttl(ttl, self.config.room_ttl)?;
        let owner = Identity { key, ..caller };
        let token = random_name()?;
        for _ in 0..ID_TRIES {
            let id: RoomId = random_name()?.parse()?;
            let room = Room::new(id.clone(), owner.clone(), TokenHash::of(&token), self.now(), ttl);
            let expires_at = room.expires_at;
            match self.store.create(self.now(), room).await {
                Err(StoreError::Exists) => continue,
                created => created?,
            }
            self.metrics.rooms_created.increment(1);
            tracing::info!(room = %id, owner = owner.subject, ttl, "room created");
            return Ok(CreatedRoom { room_id: id, token: Secret::new(token), expires_at });
        }
        Err(StoreError::Exists.into())
    }

    /// A room of the caller's, and who is connected to it. Somebody else's room looks like none.
    ///
    /// # Errors
    /// [`Code::RoomNotFound`], [`Code::Unavailable`].
    pub async fn room(&self, caller: &Identity, id: &RoomId) -> Result<(Room, Vec<PeerInfo>), Failure> {
        let room = self.store.get(self.now(), id).await?.filter(|room| room.owner.is(caller)).ok_or(Refusal::NoRoom)?;
        let peers = self.hub.peers(id, None, Filters::default()).await.peers;
        Ok((room, peers))
    }

    /// Lets the caller's room admit for longer; returns when it stops.
    ///
    /// # Errors
    /// [`Code::RoomNotFound`], [`Code::Forbidden`], [`Code::InvalidRequest`], [`Code::Unavailable`].
    pub async fn renew(&self, caller: &Identity, id: &RoomId, ttl: Option<u64>) -> Result<u64, Failure> {
        let ttl = ttl.map(|ttl| grant::checked_ttl(Some(ttl), ttl)).transpose()?;
        let room = self.store.change(self.now(), id, caller, Change::Renew { ttl }).await?;
        tracing::info!(room = %id, expires_at = room.expires_at, "room renewed");
        Ok(room.expires_at)
    }

    /// Deletes the caller's room and closes its sockets. Connections between peers stay.
    ///
    /// # Errors
    /// [`Code::RoomNotFound`], [`Code::Forbidden`], [`Code::Unavailable`].
    pub async fn delete_room(&self, caller: &Identity, id: &RoomId) -> Result<(), Failure> {
        let room = self.store.delete(self.now(), id, caller).await?;
        self.hub.expel(id, None, u64::MAX).await;
        self.forget_users_of(&[room]);
        self.metrics.rooms_deleted.increment(1);
        tracing::info!(room = %id, "room deleted");
        Ok(())
    }

    /// Frees a peer id and closes its socket: for the peer's owner or the room's.
    ///
    /// # Errors
    /// [`Code::RoomNotFound`], [`Code::PeerNotFound`], [`Code::Forbidden`], [`Code::Unavailable`].
    pub async fn delete_peer(&self, caller: &Identity, id: &RoomId, peer: &PeerId) -> Result<(), Failure> {
        let room = self.store.change(self.now(), id, caller, Change::Release { peer: peer.clone() }).await?;
        self.hub.expel(id, Some(peer), room.sessions).await;
        tracing::info!(room = %id, %peer, "peer deleted");
        Ok(())
    }

    /// The one room that a request means which names only a peer, as the ancestor's do: where the caller is connected as that peer.
    ///
    /// # Errors
    /// [`Code::PeerNotFound`] when there is none, [`Code::InvalidRequest`] when there are several.
    pub async fn room_of(&self, caller: &Identity, peer: &PeerId) -> Result<RoomId, Failure> {
        match &self.hub.rooms_of(peer, caller).await[..] {
            [room] => Ok(room.clone()),
            [] => Err(Failure::new(Code::PeerNotFound, "you have no such peer connected here; name its room_id")),
            _ => Err(Failure::new(Code::InvalidRequest, "this peer is connected to several rooms; name the room_id")),
        }
    }

    /// What an admitted peer uses for connectivity from now on.
    pub async fn ice_servers(&self, peer: &PeerId) -> Vec<IceServer> {
        let mut servers = self.config.ice_servers.clone();
        if let Some(turn) = &self.turn {
            servers.push(turn.server(self.now(), peer).await);
            self.metrics.turn_credentials.increment(1);
        }
        servers
    }

    /// The way to the other servers.
    pub fn link(&self) -> Link {
        self.hub.link()
    }

    /// Whether users can be made, in a word or two.
    pub fn users_health(&self) -> &'static str {
        #[cfg(feature = "aws")]
        if self.pool.as_ref().is_some_and(|pool| pool.users.are_away()) {
            return "not answering";
        }
        "ok"
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when it does not.
    pub async fn check_store(&self) -> Result<(), Failure> {
        let id: RoomId = "health".parse()?;
        self.store.get(self.now(), &id).await?;
        Ok(())
    }

    /// Removes what is gone, from time to time, until the server goes down.
    pub async fn sweep(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.config.timing.sweep);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            self.rates.prune();
            match self.store.sweep(self.now()).await {
                Ok(swept) if swept.is_empty() => {}
                Ok(swept) => {
                    self.metrics.rooms_swept.increment(swept.len() as u64);
                    self.forget_users_of(&swept);
                    tracing::info!(swept = swept.len(), "expired rooms removed");
                }
                Err(error) => tracing::warn!(%error, "expired rooms could not be removed; trying again later"),
            }
        }
    }
}

/// Makes the directory and its parents; what is new is for the owner only.
fn create_private(dir: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
