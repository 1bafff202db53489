//! One client's link: its requests, the journals it follows, its uploads and downloads.
//!
//! * a link is disposable; the session (its id, and what the client was uploading) is not: a new link with the same session id and
//!   the same client key replaces the old one
//! * each followed journal, each transfer and each bulk connection is a task of its own; all end with the link
//! * a client may do what its grant says, whatever it asks
//! * a client that there is reason to doubt is asked for a sign of life
//! * once a client is silent, its place in the queue and its unfinished uploads' are held for a while ([`Desk::hold`])

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use shared::{
    domain::{
        error::{Code, Failure},
        id::{CommandId, JobId, PeerId, SessionId, hex},
        invite::Grant,
        job::JobState,
        manifest::Manifest,
        message::{
            Accepted, BulkCandidate, BulkSdp, Bye, CheckpointWish, Control, ControlState, FileMeta, FileRefused, Hello, JobList, JobRef,
            PLAN_TRANSFER, PROTOCOL, Ping, Refused, Req, Step, Submit, ToClient, ToWorker, TransferId, Watch, Welcome, WorkerInfo,
        },
        transfer::{MAX_CONNECTIONS, Progress},
    },
    runtime::{
        files::Source,
        link::{Carrier, Description, Link, Port, answer_bulk, ports},
        listing::Listing,
        network_changes::NetworkChanges,
        peer::{Channel, ChannelSender, PeerOptions},
        store::Store,
        transfer::{Outgoing, Pool, StepPort, send},
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    checkpoint,
    follow::{follow, report_command},
    jobs::Jobs,
    plan::Planning,
    presence::{Entered, Presence},
    upload::{Upload, Uploads},
};
use crate::domain::pulse::{DOUBTED, Due, Pulse};

/// How long a client may take to say hello once it has proved itself.
const HELLO: Duration = Duration::from_secs(10);
/// How long a client that has our last word may take to close the connection.
const FAREWELL: Duration = Duration::from_secs(2);
/// What is added to the time for which a session is held, since it is counted from the client's last word: that may be 5 s older than the
/// break, and to come back takes up to 10 s.
const ALLOWANCE: Duration = Duration::from_secs(15);
/// Silence after which our own way to the server is looked at, too: the client pings every 5 s, gives the link up after 10 s of silence, and
/// then wants to come back through the server.
const QUIET: Duration = Duration::from_secs(7);
/// Journals that one client may follow at the same time.
const MAX_FOLLOWED: usize = 32;
/// Bulk connections of one client: the 96 that it may use, and lost ones that this side has not noticed yet.
const MAX_BULK: usize = MAX_CONNECTIONS;
/// The first transfer number on the worker's side.
const FIRST_TRANSFER: TransferId = 1 << 31;

/// What all sessions share.
#[derive(Clone)]
pub struct Desk {
    /// The jobs.
    pub jobs: Jobs,
    /// Packages.
    pub store: Arc<Store>,
    /// What the worker says about itself.
    pub info: Arc<dyn Fn() -> WorkerInfo + Send + Sync>,
    /// How long a session without a link is held.
    pub hold: Duration,
    /// The sessions that have a link, or are held.
    pub present: Presence,
    /// Packages on their way in.
    pub uploads: Uploads,
    /// Word of changes of this machine's network.
    pub network: NetworkChanges,
    /// To whoever keeps the way to the server.
    pub news: mpsc::Sender<News>,
    /// Cancelled when the worker ends.
    pub stop: CancellationToken,
}

/// What a session knows that matters for the way to the server.
#[derive(Debug)]
pub enum News {
    /// The client is silent: the fault may be on our side.
    Silent,
    /// The address that its link uses is ours no longer, since then: its client is to know.
    Moved(PeerId, Instant),
}

/// Serves a link to its end. `doubt` tells when there is reason to think that the client is gone.
pub async fn serve(desk: Desk, link: Link, peer: PeerId, options: PeerOptions, doubt: Arc<Notify>) {
    let Link { mut control, progress, proven, carrier, path_mtu, near } = link;
    let options = PeerOptions { path_mtu, near, ..options };
    let stop = desk.stop.child_token();
    let (out, outgoing) = mpsc::channel(64);
    let tasks = TaskTracker::new();
    tasks.spawn(write(control.sender().clone(), outgoing, stop.clone()));
    let mut session = Session {
        owner: hex(&proven.remote_key),
        grant: proven.grant,
        desk,
        out,
        progress: progress.sender().clone(),
        options,
        bulk_key: proven.bulk_key,
        pool: Pool::default(),
        steps: Arc::default(),
        bulk: HashMap::new(),
        followed: HashSet::new(),
        noticed: HashSet::new(),
        uploading: Arc::default(),
        planning: Arc::new(Semaphore::new(1)),
        next_transfer: FIRST_TRANSFER,
        checkpoint: None,
        id: None,
        tasks: tasks.clone(),
        stop: stop.clone(),
        heard: Instant::now(),
        peer: peer.clone(),
    };
    tracing::info!(%peer, grant = %session.grant, "a client has connected");
    let end = session.run(&mut control, &carrier, proven.remote_key, &doubt).await;
    let farewell = end.is_ok();
    match end {
        Ok(()) => tracing::info!(%peer, "the client has left"),
        Err(failure) => tracing::info!(%peer, %failure, "the client's link has ended"),
    }
    session.leave(farewell);
    stop.cancel();
    session.steps.lock().expect("no panic happens under this lock").clear();
    tasks.close();
    tasks.wait().await;
    carrier.connection.close().await;
}

/// The client's first message. It says hello unasked, and so at once; one in doubt has no more time for it than for any other answer.
async fn first(control: &mut Channel, doubt: &Notify) -> Result<Bytes, Failure> {
    let doubted = async {
        doubt.notified().await;
        sleep(DOUBTED).await;
    };
    let message = tokio::select! {
        biased;
        message = timeout(HELLO, control.recv()) => message.map_err(|_| gone("it did not say hello"))?,
        () = doubted => return Err(gone("it has left without a hello")),
    };
    message.ok_or_else(|| gone("it closed the connection"))
}

async fn write(channel: ChannelSender, mut outgoing: mpsc::Receiver<ToClient>, stop: CancellationToken) {
    let writing = async {
        while let Some(message) = outgoing.recv().await {
            tracing::trace!(message = message.name(), "to the client");
            if channel.send_text(&message.encode()).await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(writing).await;
}

struct Session {
    /// The client's static key as text: whose packages and jobs these are.
    owner: String,
    grant: Grant,
    desk: Desk,
    out: mpsc::Sender<ToClient>,
    progress: ChannelSender,
    options: PeerOptions,
    bulk_key: shared::domain::id::Secret<[u8; 32]>,
    pool: Pool,
    steps: Arc<Mutex<HashMap<TransferId, mpsc::Sender<Step>>>>,
    bulk: HashMap<u32, mpsc::Sender<Description>>,
    followed: HashSet<JobId>,
    noticed: HashSet<JobId>,
    uploading: Arc<Mutex<HashSet<JobId>>>,
    planning: Arc<Semaphore>,
    next_transfer: TransferId,
    /// The transfer of a checkpoint that may be under way.
    checkpoint: Option<TransferId>,
    /// The session, once there was a hello, and word that it has a newer link.
    id: Option<(SessionId, CancellationToken)>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// When the client was last heard.
    heard: Instant,
    peer: PeerId,
}

impl Session {
    async fn run(&mut self, control: &mut Channel, carrier: &Carrier, client: [u8; 32], doubt: &Notify) -> Result<(), Failure> {
        let first = first(control, doubt).await?;
        let replaced = match self.hello(&first, client).await {
            Ok(replaced) => replaced,
            Err(failure) => {
                // It leaves once it has our refusal; to go first would lose that.
                let _ = timeout(FAREWELL, control.recv()).await;
                return Err(failure);
            }
        };
        let began = Instant::now();
        let mut pulse = Pulse::default();
        let (mut network, mut restarted) = (self.desk.network.clone(), carrier.restarted());
        let mut told_silent = false;
        let mut address_lost = None;
        loop {
            // The deadline last: what waits to be read is a sign of life, however long we were busy before.
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let _ = self.out.try_send(ToClient::Bye(Bye { reason: "shutdown".to_owned() }));
                    return Ok(());
                }
                () = replaced.cancelled() => return Err(gone("the same session has a new link")),
                () = carrier.lost() => return Err(gone("the connection failed")),
                () = doubt.notified() => {
                    pulse.doubt(began.elapsed());
                    continue;
                }
                message = control.recv() => message,
                () = network.changed() => {
                    self.look_at_address(carrier, &mut address_lost);
                    continue;
                }
                Ok(()) = restarted.changed() => {
                    tracing::info!(peer = %self.peer, "the path to the client was restarted");
                    self.pool.give_up();
                    continue;
                }
                () = sleep_until(self.heard + QUIET), if !told_silent => {
                    told_silent = true;
                    let _ = self.desk.news.try_send(News::Silent);
                    continue;
                }
                () = sleep_until(began + pulse.deadline()) => match pulse.due(began.elapsed()) {
                    Some(Due::Gone) => return Err(gone("nothing was heard from it")),
                    Some(Due::Ping(n)) => {
                        self.ping(n);
                        continue;
                    }
                    None => continue,
                },
            };
            pulse.heard(began.elapsed());
            self.heard = Instant::now();
            told_silent = false;
            let message = read(&message.ok_or_else(|| gone("it closed the connection"))?)?;
            if let ToWorker::Bye(bye) = message {
                self.out.send(ToClient::Bye(bye)).await.map_err(|_| gone("it closed the connection"))?;
                // The client closes the connection once it has our answer.
                let _ = timeout(FAREWELL, control.recv()).await;
                return Ok(());
            }
            if let ToWorker::Pong(pong) = message {
                pulse.answered(pong.n);
                continue;
            }
            self.handle(message).await?;
        }
    }

    async fn hello(&mut self, first: &[u8], client: [u8; 32]) -> Result<CancellationToken, Failure> {
        let ToWorker::Hello(Hello { protocol, version, session }) = read(first)? else {
            return Err(Failure::new(Code::InvalidRequest, "its first message was no hello"));
        };
        if protocol != PROTOCOL {
            let failure = Failure::new(
                Code::VersionMismatch,
                format!(
                    "this worker (version {}) speaks protocol {PROTOCOL}, the client (version {version}) {protocol}; install the same version on both",
                    env!("CARGO_PKG_VERSION")
                ),
            );
            self.refuse(0, failure.clone()).await?;
            return Err(failure);
        }
        let Entered { replaced, resumed } = self.desk.present.enter(session.clone(), client, Instant::now());
        self.id = Some((session, replaced.clone()));
        let worker = (self.desk.info)();
        self.tell(ToClient::Welcome(Welcome { protocol: PROTOCOL, grant: self.grant, worker, resumed, held: self.desk.hold.as_secs() }))
            .await?;
        Ok(replaced)
    }

    /// The network has changed: the client is to know when the address that its link uses has gone, and another one leads to it.
    fn look_at_address(&self, carrier: &Carrier, lost: &mut Option<Instant>) {
        *lost = carrier.has_lost_address().then(|| lost.unwrap_or_else(Instant::now));
        if let Some(at) = lost.filter(|_| carrier.has_moved()) {
            // Where it cannot be told, the client's own judgement serves.
            let _ = self.desk.news.try_send(News::Moved(self.peer.clone(), at));
        }
    }

    fn leave(&mut self, farewell: bool) {
        let held_until = self.heard + self.desk.hold + ALLOWANCE;
        let left = self.id.as_ref().is_some_and(|(id, replaced)| self.desk.present.leave(id, replaced, held_until, farewell));
        if !left {
            return;
        }
        for job in self.uploading.lock().expect("no panic happens under this lock").iter() {
            self.desk.jobs.left(job, held_until);
        }
    }

    async fn handle(&mut self, message: ToWorker) -> Result<(), Failure> {
        let message = match message.into_step() {
            Ok(Step::Meta(meta)) => return self.receive_package(meta).await,
            Ok(step) => return self.route(step).await,
            Err(message) => message,
        };
        match message {
            ToWorker::Submit(submit) if submit.plan => {
                let req = submit.req;
                let done = self.plan(submit).map(|()| None);
                self.answer(req, done).await
            }
            ToWorker::Submit(submit) => {
                let req = submit.req;
                let done = self.submit(submit);
                self.answer(req, done).await
            }
            ToWorker::Jobs(request) => {
                let list = JobList { req: request.req, jobs: self.desk.jobs.list(100), worker: (self.desk.info)() };
                self.tell(ToClient::JobList(list)).await
            }
            ToWorker::Watch(watch) => {
                let req = watch.req;
                let done = self.watch(watch).map(|()| None);
                self.answer(req, done).await
            }
            ToWorker::Unwatch(JobRef { job, .. }) => {
                self.followed.remove(&job);
                Ok(())
            }
            ToWorker::Control(control) => self.control(control).await,
            ToWorker::Fetch(fetch) => {
                let req = fetch.req;
                let done = self.fetch(fetch).map(|()| None);
                self.answer(req, done).await
            }
            ToWorker::FetchCheckpoint(wish) => {
                let req = wish.req;
                let done = self.fetch_checkpoint(wish).map(|()| None);
                self.answer(req, done).await
            }
            ToWorker::Fetched(JobRef { job, .. }) => {
                if let Err(failure) = self.may_submit().and_then(|()| self.desk.jobs.fetched(&job)) {
                    tracing::warn!(%job, %failure, "that the results were fetched could not be noted");
                }
                Ok(())
            }
            ToWorker::BulkOffer(offer) => self.bulk_offer(offer),
            ToWorker::BulkCandidate(BulkCandidate { connection, candidate }) => {
                if let Some(port) = self.bulk.get(&connection) {
                    let _ = port.try_send(Description::Candidate(candidate));
                }
                Ok(())
            }
            ToWorker::Ping(ping) => self.tell(ToClient::Pong(ping)).await,
            ToWorker::Unknown(name) => {
                tracing::debug!(name, "a message of a newer client is ignored");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn tell(&self, message: ToClient) -> Result<(), Failure> {
        self.out.send(message).await.map_err(|_| gone("it closed the connection"))
    }

    /// In a task: where the queue is full, the ping waits for its turn, and we do not.
    fn ping(&self, n: u64) {
        let out = self.out.clone();
        self.spawn(async move {
            let _ = out.send(ToClient::Ping(Ping { n })).await;
        });
    }

    async fn refuse(&self, req: Req, failure: Failure) -> Result<(), Failure> {
        self.tell(ToClient::Refused(Refused { req, failure })).await
    }

    async fn answer(&self, req: Req, done: Result<Option<ToClient>, Failure>) -> Result<(), Failure> {
        match done {
            Ok(Some(message)) => self.tell(message).await,
            Ok(None) => Ok(()),
            Err(failure) => self.refuse(req, failure).await,
        }
    }

    fn may_submit(&self) -> Result<(), Failure> {
        if self.grant >= Grant::Submit {
            return Ok(());
        }
        Err(Failure::new(Code::Forbidden, "this invite only lets you watch; ask for the worker's submit invite"))
    }

    fn submit(&mut self, submit: Submit) -> Result<Option<ToClient>, Failure> {
        self.may_submit()?;
        let Submit { req, spec, manifest, .. } = submit;
        let (status, known) = self.desk.jobs.submit(spec, manifest, &self.owner)?;
        let job = status.job.clone();
        if status.state == JobState::Uploading
            && let Some(package) = self.desk.store.package(&self.owner, &manifest.id)?
        {
            // An earlier job brought the same package.
            self.desk.jobs.uploaded(&job, package.path())?;
        }
        let status = self.desk.jobs.status(&job)?;
        self.notice_changes(&job)?;
        Ok(Some(ToClient::Accepted(Accepted { req, status, known })))
    }

    /// Says what a submission would do, in a task of its own.
    fn plan(&self, submit: Submit) -> Result<(), Failure> {
        self.may_submit()?;
        let busy = |_| Failure::new(Code::RateLimited, "a plan is being made over this connection already; ask again when it has come");
        let planning = Planning {
            turn: self.planning.clone().try_acquire_owned().map_err(busy)?,
            jobs: self.desk.jobs.clone(),
            store: self.desk.store.clone(),
            owner: self.owner.clone(),
            info: self.desk.info.clone(),
            inbound: self.pool.route(PLAN_TRANSFER),
            out: self.out.clone(),
        };
        self.spawn(planning.run(submit));
        Ok(())
    }

    /// Tells the client every change of a job's state from now on.
    fn notice_changes(&mut self, job: &JobId) -> Result<(), Failure> {
        if self.noticed.contains(job) {
            return Ok(());
        }
        if self.noticed.len() >= MAX_FOLLOWED {
            return Err(Failure::new(Code::RateLimited, "too many jobs are followed over one connection"));
        }
        let mut status = self.desk.jobs.watch(job)?;
        status.mark_changed();
        self.noticed.insert(job.clone());
        let (out, jobs, job) = (self.out.clone(), self.desk.jobs.clone(), job.clone());
        self.spawn(async move {
            while status.changed().await.is_ok() {
                status.borrow_and_update();
                let Ok(status) = jobs.status(&job) else { return };
                if out.send(ToClient::JobState(status)).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn watch(&mut self, watch: Watch) -> Result<(), Failure> {
        let Watch { job, from, .. } = watch;
        let (path, appended) = self.desk.jobs.journal(&job)?;
        self.notice_changes(&job)?;
        if !self.followed.insert(job.clone()) {
            return Err(Failure::new(Code::WrongState, "this job is followed over this connection already"));
        }
        let (progress, out) = (self.progress.clone(), self.out.clone());
        self.spawn(async move {
            if let Err(failure) = follow(path, appended, job.clone(), from, progress, out).await {
                tracing::warn!(%job, %failure, "a journal cannot be followed further");
            }
        });
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<(), Failure> {
        let Control { job, id, command } = control;
        let jobs = self.desk.jobs.clone();
        let began = self.may_submit().and_then(|()| jobs.journal(&job));
        let (path, appended) = match began {
            Ok(journal) => journal,
            Err(failure) => return self.refuse_command(job, id, failure).await,
        };
        // From the start: the command may be an old one, repeated by a client that did not hear the answer.
        let (out, tasks_out, watched) = (self.out.clone(), self.out.clone(), (job.clone(), id.clone()));
        self.spawn(async move {
            if let Err(failure) = report_command(path, appended, watched.0, watched.1, out).await {
                tracing::warn!(%failure, "a command's progress cannot be followed");
            }
        });
        self.spawn(async move {
            if let Err(failure) = jobs.command(&job, id.clone(), command).await {
                let state = ControlState { job, id, state: shared::domain::job::CommandState::Refused, message: failure.message };
                let _ = tasks_out.send(ToClient::ControlState(state)).await;
            }
        });
        Ok(())
    }

    async fn refuse_command(&self, job: JobId, id: CommandId, failure: Failure) -> Result<(), Failure> {
        let state = ControlState { job, id, state: shared::domain::job::CommandState::Refused, message: failure.message };
        self.tell(ToClient::ControlState(state)).await
    }

    async fn receive_package(&mut self, meta: FileMeta) -> Result<(), Failure> {
        let transfer = meta.transfer;
        let awaited = self.may_submit().and_then(|()| {
            let (package, owner) = self.desk.jobs.awaited_package(&meta.job)?;
            if package != meta.manifest || owner != self.owner {
                return Err(Failure::new(Code::Forbidden, "this is not the package that the job waits for"));
            }
            Ok(())
        });
        if transfer == PLAN_TRANSFER || transfer >= FIRST_TRANSFER {
            return Err(Failure::new(Code::InvalidRequest, "it used a transfer number of ours"));
        }
        if let Err(failure) = awaited {
            return self.tell(ToClient::FileRefused(FileRefused { transfer, failure })).await;
        }
        self.uploading.lock().expect("no panic happens under this lock").insert(meta.job.clone());
        let (routes, out) = (self.steps.clone(), self.out.clone());
        let give_way = move |failure| {
            routes.lock().expect("no panic happens under this lock").remove(&transfer);
            // A client that is gone hears nothing, and one that does not keep up sees its transfer end.
            let _ = out.try_send(ToClient::FileRefused(FileRefused { transfer, failure }));
        };
        let turn = self.desk.uploads.take_over((self.owner.clone(), meta.manifest.id), Box::new(give_way));
        let steps = self.step_port(transfer);
        let upload = Upload {
            store: self.desk.store.clone(),
            jobs: self.desk.jobs.clone(),
            owner: self.owner.clone(),
            secret: self.bulk_key.clone(),
            pool: self.pool.clone(),
            uploading: self.uploading.clone(),
        };
        self.tasks.spawn(upload.run(meta, steps, turn));
        Ok(())
    }

    fn fetch(&mut self, fetch: JobRef) -> Result<(), Failure> {
        self.may_submit()?;
        let (dir, encoded) = self.desk.jobs.results(&fetch.job)?;
        self.end_checkpoint();
        let transfer = self.number_transfer()?;
        let steps = self.step_port(transfer);
        let (pool, job) = (self.pool.clone(), fetch.job);
        self.tasks.spawn(async move {
            let opening = tokio::task::spawn_blocking(move || -> Result<Outgoing, Failure> {
                let listing = Arc::new(Listing::new(&Manifest::decode(&encoded)?, dir.root()));
                let reader = Arc::new(Source::folder(&dir.results())?).reader(listing.clone())?;
                Ok(Outgoing { transfer, job, listing, reader: Box::new(reader), session: None })
            });
            let sending = async {
                let outgoing =
                    opening.await.map_err(|error| Failure::new(Code::Internal, format!("opening results ended unexpectedly: {error}")))?;
                match outgoing {
                    Ok(outgoing) => send(outgoing, &pool, steps, &watch::Sender::new(Progress::default())).await,
                    Err(failure) => {
                        let _ = steps.tx.send(Step::Refused(FileRefused { transfer, failure: failure.clone() })).await;
                        Err(failure)
                    }
                }
            };
            if let Err(failure) = sending.await {
                tracing::info!(%failure, "sending results has ended early");
            }
        });
        Ok(())
    }

    /// Sends a step's newest checkpoint; one that is under way is superseded.
    fn fetch_checkpoint(&mut self, wish: CheckpointWish) -> Result<(), Failure> {
        self.may_submit()?;
        let dir = self.desk.jobs.dir(&wish.job)?;
        self.end_checkpoint();
        let transfer = self.number_transfer()?;
        self.checkpoint = Some(transfer);
        let steps = self.step_port(transfer);
        self.tasks.spawn(checkpoint::send(wish, dir, transfer, self.pool.clone(), steps, self.out.clone()));
        Ok(())
    }

    /// Without the way for its steps, its task ends; frames that are under way find no receiver.
    fn end_checkpoint(&mut self) {
        if let Some(transfer) = self.checkpoint.take() {
            self.steps.lock().expect("no panic happens under this lock").remove(&transfer);
        }
    }

    fn number_transfer(&mut self) -> Result<TransferId, Failure> {
        let transfer = self.next_transfer;
        self.next_transfer =
            transfer.checked_add(1).ok_or_else(|| Failure::new(Code::TooLarge, "too many transfers over one connection"))?;
        Ok(transfer)
    }

    fn step_port(&self, transfer: TransferId) -> StepPort {
        let (tx, mut outgoing) = mpsc::channel::<Step>(64);
        let (in_tx, rx) = mpsc::channel(64);
        self.steps.lock().expect("no panic happens under this lock").insert(transfer, in_tx);
        let out = self.out.clone();
        self.spawn(async move {
            while let Some(step) = outgoing.recv().await {
                if out.send(step.into()).await.is_err() {
                    return;
                }
            }
        });
        StepPort { tx, rx }
    }

    async fn route(&self, step: Step) -> Result<(), Failure> {
        let route = self.steps.lock().expect("no panic happens under this lock").get(&step.transfer()).cloned();
        if let Some(route) = route {
            let _ = route.send(step).await;
        }
        Ok(())
    }

    fn bulk_offer(&mut self, offer: BulkSdp) -> Result<(), Failure> {
        self.bulk.retain(|_, port| !port.is_closed());
        if self.bulk.len() >= MAX_BULK {
            return Err(Failure::new(Code::RateLimited, "it opened too many bulk connections"));
        }
        let BulkSdp { connection, sdp } = offer;
        let (ours, theirs) = ports();
        self.bulk.insert(connection, theirs.tx.clone());
        let (key, options, pool, out) = (self.bulk_key.clone(), self.options.clone(), self.pool.clone(), self.out.clone());
        self.spawn(forward_bulk(connection, theirs, out));
        self.spawn(async move {
            match answer_bulk(connection, &key, &options, sdp, ours).await {
                Ok(bulk) => pool.add(bulk),
                Err(failure) => tracing::info!(connection, %failure, "a bulk connection was not made"),
            }
        });
        Ok(())
    }

    /// A task that ends with the link.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

async fn forward_bulk(connection: u32, mut theirs: Port, out: mpsc::Sender<ToClient>) {
    while let Some(description) = theirs.rx.recv().await {
        let message = match description {
            Description::Answer(sdp) => ToClient::BulkAnswer(BulkSdp { connection, sdp }),
            Description::Candidate(candidate) => ToClient::BulkCandidate(BulkCandidate { connection, candidate }),
            Description::Offer(_) | Description::Restart(_) | Description::Refused(_) => continue,
        };
        if out.send(message).await.is_err() {
            return;
        }
    }
}

fn read(message: &[u8]) -> Result<ToWorker, Failure> {
    let text = std::str::from_utf8(message).map_err(|_| Failure::new(Code::InvalidRequest, "it sent something that is no text"))?;
    ToWorker::decode(text)
}

fn gone(why: &str) -> Failure {
    Failure::new(Code::NoConnection, why)
}
