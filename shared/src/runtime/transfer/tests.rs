//! Real peer connections on loopback, an in-process relay in the signaling server's place, memory at both ends.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::{
        error::Code,
        id::{PeerId, RoomId, Secret},
        invite::{Grant, Invite},
        manifest::{Chunk, ChunkPlace, Entry, Hash, Manifest},
        signal::{ToPeer, ToServer},
        transfer::{ChunkSet, Places, Progress, WholeChunk, WholeManifest},
    },
    runtime::{
        identity::Identity,
        link::{Answerer, Bulk, Description, Link, answer_bulk, dial, dial_bulk, ports},
        peer::PeerOptions,
        seal,
        signal::{SignalEvent, SignalSender},
    },
};

fn loopback() -> PeerOptions {
    PeerOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..Default::default() }
}

/// What the relay does to a message on its way.
type Tamper = fn(ToPeer) -> ToPeer;

/// The room of these tests: one worker that answers, one client that dials.
struct Room {
    invite: Invite,
    client: PeerId,
    signal: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
    links: mpsc::Receiver<(PeerId, Link)>,
    stop: CancellationToken,
}

impl Room {
    fn new(tamper: Tamper) -> Room {
        let room: RoomId = "room".parse().unwrap();
        let (worker, client): (PeerId, PeerId) = ("worker".parse().unwrap(), "client".parse().unwrap());
        let secret = Secret::new([5; 32]);
        let identity = Arc::new(Identity::generate().unwrap());
        let invite = Invite {
            server: "http://127.0.0.1:1".into(),
            room: room.clone(),
            token: Secret::new("t".into()),
            worker: worker.clone(),
            grant: Grant::Submit,
            secret: seal::root_of(&secret, &room, Grant::Submit),
            worker_key: *identity.public(),
        };
        let (client_tx, mut from_client) = mpsc::channel(64);
        let (worker_tx, mut from_worker) = mpsc::channel(64);
        let (event_tx, events) = mpsc::channel(64);
        let (link_tx, links) = mpsc::channel(4);
        let mut answerer = Answerer::new(room, worker.clone(), secret, identity, SignalSender::for_tests(worker_tx), link_tx);
        let stop = CancellationToken::new();
        let (relay_stop, sender) = (stop.clone(), client.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = relay_stop.cancelled() => return,
                    Some(message) = from_client.recv() => answerer.handle(tamper(relayed(&sender, message)), &loopback()).await,
                    Some(message) = from_worker.recv() => {
                        let _ = event_tx.send(SignalEvent::Message(tamper(relayed(&worker, message)))).await;
                    }
                }
            }
        });
        Room { invite, client, signal: SignalSender::for_tests(client_tx), events, links, stop }
    }

    async fn dial(&mut self) -> Result<Link, Failure> {
        let identity = Identity::generate().unwrap();
        dial(&self.invite, &self.client, &identity, &loopback(), &self.signal, &mut self.events).await
    }

    async fn connect(&mut self) -> (Link, Link) {
        let ours = self.dial().await.unwrap();
        (ours, self.links.recv().await.unwrap().1)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn relayed(sender: &PeerId, message: ToServer) -> ToPeer {
    let sender = sender.clone();
    match message {
        ToServer::Offer { sdp, .. } => ToPeer::Offer { sender, sdp },
        ToServer::Answer { sdp, .. } => ToPeer::Answer { sender, sdp },
        ToServer::Candidate { candidate, .. } => ToPeer::Candidate { sender, candidate },
        ToServer::PeerMessage { to_peer_id, payload } => ToPeer::PeerMessage { from_peer_id: sender, to_peer_id, payload },
        other => panic!("nothing else is sent: {other:?}"),
    }
}

async fn bulk_pair(number: u32, client: &Link, worker: &Link) -> (Bulk, Bulk) {
    let (ours, mut theirs) = ports();
    let options = loopback();
    let dialing = dial_bulk(number, &client.proven.bulk_key, &options, ours);
    let key = worker.proven.bulk_key.clone();
    let answering = async {
        let Some(Description::Offer(sdp)) = theirs.rx.recv().await else { panic!("an offer comes first") };
        answer_bulk(number, &key, &loopback(), sdp, theirs).await
    };
    let (dialed, answered) = tokio::join!(dialing, answering);
    (dialed.unwrap(), answered.unwrap())
}

#[tokio::test]
async fn a_client_with_an_invite_and_its_worker_prove_themselves() {
    let mut room = Room::new(|message| message);
    let (client, mut worker) = room.connect().await;
    assert_eq!(client.proven.remote_key, room.invite.worker_key);
    assert_eq!(worker.proven.grant, Grant::Submit);
    client.control.sender().send_text("HELLO::{}").await.unwrap();
    assert_eq!(&worker.control.recv().await.unwrap()[..], b"HELLO::{}");
}

#[tokio::test]
async fn a_wrong_invite_is_refused_with_a_reason() {
    let mut room = Room::new(|message| message);
    room.invite.secret = Secret::new([1; 32]);
    let failure = room.dial().await.err().unwrap();
    assert!(failure.code == Code::NotAuthentic && failure.message.contains("invite"), "{failure}");
}

#[tokio::test]
async fn another_worker_than_the_invited_one_is_refused() {
    let mut room = Room::new(|message| message);
    room.invite.worker_key = [9; 32];
    assert_eq!(room.dial().await.err().unwrap().code, Code::NotAuthentic);
}

#[tokio::test]
async fn a_server_that_changes_a_sealed_description_is_refused() {
    let mut room = Room::new(|message| match message {
        ToPeer::Answer { sender, sdp } => {
            let text = sdp.as_str().unwrap();
            let (head, tail) = text.split_at(text.len() - 8);
            ToPeer::Answer { sender, sdp: format!("{head}{}", tail.chars().rev().collect::<String>()).into() }
        }
        other => other,
    });
    assert_eq!(room.dial().await.err().unwrap().code, Code::NotAuthentic);
}

#[tokio::test]
async fn a_client_of_the_older_system_is_told_why_it_is_refused() {
    let mut room = Room::new(|message| message);
    let offer = ToServer::Offer { target: room.invite.worker.clone(), sdp: "v=0".into() };
    room.signal.send(offer).await.unwrap();
    let Some(SignalEvent::Message(ToPeer::PeerMessage { payload, .. })) = room.events.recv().await else { panic!("the worker answers") };
    assert!(payload["refused"]["message"].as_str().unwrap().contains("older Python system"), "{payload}");
}

/// 8 MiB of text-like bytes in chunks of 128 KiB, in two files.
fn package() -> (Vec<u8>, Manifest) {
    let bytes: Vec<u8> = (0u32..2 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let file = |path: &str, bytes: &[u8]| Entry {
        path: path.parse().unwrap(),
        size: bytes.len() as u64,
        executable: false,
        root: Hash::of(bytes),
        chunks: bytes.chunks(128 << 10).map(|chunk| Chunk { hash: Hash::of(chunk), len: chunk.len() as u32 }).collect(),
    };
    let (first, second) = bytes.split_at(5 << 20);
    let manifest = Manifest::new(vec![file("a.slp", first), file("b.slp", second)]).unwrap();
    (bytes, manifest)
}

struct Memory(Vec<u8>);

impl ReadChunk for Memory {
    fn read(&mut self, place: ChunkPlace, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        let start = place.entry * (5 << 20) + place.offset as usize;
        buffer.clear();
        buffer.extend_from_slice(&self.0[start..start + place.chunk.len as usize]);
        Ok(())
    }
}

#[derive(Clone)]
struct Shelf {
    manifest: Arc<Manifest>,
    present: ChunkSet,
    written: Vec<u32>,
    /// Chunks that are found damaged at the first finish.
    damaged: Vec<u32>,
    count: Arc<Mutex<u32>>,
}

impl Sink for Shelf {
    type Done = u32;
    fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }
    fn present(&self) -> ChunkSet {
        self.present.clone()
    }
    fn write(&mut self, chunk: WholeChunk) -> Result<(), Failure> {
        *self.count.lock().unwrap() += 1;
        self.written.push(chunk.index);
        Ok(())
    }
    fn sync(&mut self) -> Result<Vec<u32>, Failure> {
        for &index in &self.written {
            self.present.insert(index);
        }
        Ok(std::mem::take(&mut self.written))
    }
    fn finish(mut self) -> Result<Finished<Self>, Failure> {
        assert!(self.present.is_full());
        if self.damaged.is_empty() {
            return Ok(Finished::Done(*self.count.lock().unwrap()));
        }
        let mut set = ChunkSet::new(self.present.len());
        for index in std::mem::take(&mut self.damaged) {
            set.insert(index);
            self.present.remove(index);
        }
        Ok(Finished::Damaged(self, set))
    }
}

fn step_ports() -> (StepPort, StepPort) {
    let (a_tx, a_rx) = mpsc::channel(64);
    let (b_tx, b_rx) = mpsc::channel(64);
    (StepPort { tx: a_tx, rx: b_rx }, StepPort { tx: b_tx, rx: a_rx })
}

/// Transfers the package from a client's pool to a worker's; how many chunks were written.
async fn transfer(from: Pool, to: Pool, damaged: Vec<u32>) -> Result<u32, Failure> {
    let (bytes, manifest) = package();
    let encoded = manifest.encode();
    let summary = manifest.summary(&encoded);
    let places = Arc::new(Places::new(Arc::new(manifest)));
    let outgoing = Outgoing {
        transfer: 1,
        job: "j".parse().unwrap(),
        summary,
        encoded: Bytes::from(encoded),
        places,
        reader: Box::new(Memory(bytes)),
    };
    let (ours, mut theirs) = step_ports();
    let sent = watch::Sender::new(Progress::default());
    let sending = send(outgoing, &from, ours, &sent);
    let receiving = async {
        let Some(Step::Meta(meta)) = theirs.rx.recv().await else { panic!("it begins with an announcement") };
        let open = move |whole: Option<WholeManifest>| {
            let manifest = Arc::new(whole.expect("it was wanted").manifest);
            let present = ChunkSet::new(manifest.chunk_count());
            Ok(Shelf { manifest, present, written: vec![], damaged, count: Arc::default() })
        };
        receive(meta, true, open, &to, theirs, watch::Sender::new(Progress::default())).await
    };
    let (sent_result, received) = tokio::join!(sending, receiving);
    sent_result?;
    assert_eq!(sent.borrow().acked_bytes, 8 << 20);
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_arrives_once_over_two_connections() {
    let mut room = Room::new(|message| message);
    let (client, worker) = room.connect().await;
    let (from, to) = (Pool::default(), Pool::default());
    for number in 1..=2 {
        let (ours, theirs) = bulk_pair(number, &client, &worker).await;
        from.add(ours);
        to.add(theirs);
    }
    assert_eq!(transfer(from, to, vec![]).await.unwrap(), 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_damaged_on_disk_come_again_and_only_they() {
    let mut room = Room::new(|message| message);
    let (client, worker) = room.connect().await;
    let (from, to) = (Pool::default(), Pool::default());
    let (ours, theirs) = bulk_pair(1, &client, &worker).await;
    from.add(ours);
    to.add(theirs);
    assert_eq!(transfer(from, to, vec![3, 40]).await.unwrap(), 66);
}

#[tokio::test]
async fn a_bulk_connection_with_another_sessions_key_is_refused() {
    let mut room = Room::new(|message| message);
    let (client, mut worker) = room.connect().await;
    worker.proven.bulk_key = Secret::new([0; 32]);
    let (ours, mut theirs) = ports();
    let options = loopback();
    let dialing = dial_bulk(1, &client.proven.bulk_key, &options, ours);
    let key = worker.proven.bulk_key.clone();
    let answering = async {
        let Some(Description::Offer(sdp)) = theirs.rx.recv().await else { panic!("an offer comes first") };
        answer_bulk(1, &key, &loopback(), sdp, theirs).await
    };
    let (dialed, answered) = tokio::join!(dialing, answering);
    assert!(dialed.is_err() && answered.is_err());
}
