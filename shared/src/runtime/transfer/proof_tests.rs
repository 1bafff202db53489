//! What others have sent serves whoever proves that he has it, and tells nothing to anybody else.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};

use super::{
    tests::{Room, pools, step_ports},
    *,
};
use crate::{
    domain::{
        id::Secret,
        manifest::{Chunk, ChunkPlace, Entry, Hash, Manifest},
        message::{FileProve, ToClient},
        transfer::{Challenge, ChunkSet, ChunkSetAssembly, Progress},
    },
    runtime::{link::Link, listing::Listing, store::Store},
};

const CHUNK: usize = 64 << 10;

/// A package of one file, cut into chunks of one size.
struct Package {
    bytes: Arc<Vec<u8>>,
    manifest: Manifest,
}

impl Package {
    fn of(bytes: Vec<u8>) -> Package {
        let chunks = bytes.chunks(CHUNK).map(|chunk| Chunk { hash: Hash::of(chunk), len: chunk.len() as u32 }).collect();
        let path = "a.slp".parse().unwrap();
        let entry = Entry { path, size: bytes.len() as u64, executable: false, chunks };
        Package { bytes: Arc::new(bytes), manifest: Manifest::new(vec![entry]).unwrap() }
    }

    fn noise(seed: u32, len: usize) -> Package {
        Package::of((0..len as u32 / 4).flat_map(|n| (n ^ seed << 24).wrapping_mul(2_654_435_761).to_le_bytes()).collect())
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Sent by somebody who has `known` of it when he is asked for a proof, and who binds it to this secret.
    fn outgoing(&self, known: &Package, session: Option<[u8; 32]>) -> Outgoing {
        Outgoing {
            transfer: 1,
            job: "j".parse().unwrap(),
            listing: Listing::in_memory(&self.manifest),
            reader: Box::new(Sender { sends: self.bytes.clone(), proves: known.bytes.clone() }),
            session: session.map(Secret::new),
        }
    }
}

/// Sends what it should, in the end; what it reads for the proof may be something else.
struct Sender {
    sends: Arc<Vec<u8>>,
    proves: Arc<Vec<u8>>,
}

impl ReadChunk for Sender {
    fn read(&mut self, _: u32, place: ChunkPlace, into: &mut Vec<u8>, _check: bool) -> Result<(), Failure> {
        let start = place.offset as usize;
        into.extend_from_slice(&self.sends[start..start + place.len as usize]);
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn ReadChunk>, Failure> {
        Ok(Box::new(Sender { sends: self.proves.clone(), proves: self.proves.clone() }))
    }
}

/// A worker and the connections of one client to it.
struct Stage {
    _room: Room,
    from: Pool,
    to: Pool,
    _links: (Link, Link),
    _dir: tempfile::TempDir,
    store: Store,
}

/// The secret of the session, on the worker's side.
const SESSION: [u8; 32] = [7; 32];

impl Stage {
    async fn new() -> Stage {
        let mut room = Room::new(|message| message);
        let (from, to, client, worker) = pools(&mut room, 2).await;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), None).unwrap().with_sharing(true);
        Stage { _room: room, from, to, _links: (client, worker), _dir: dir, store }
    }

    /// Transfers a package as this owner; how many bytes had to travel, and what the worker said until the first
    /// acknowledgement. `on_step` sees each step before the sender does.
    async fn send_with(&self, owner: &str, outgoing: Outgoing, on_step: impl Fn(&Step)) -> (u64, Vec<String>) {
        let (mut ours, mut theirs) = step_ports();
        let (relay, relayed) = mpsc::channel(64);
        let mut said_by_worker = std::mem::replace(&mut ours.rx, relayed);
        let heard = Mutex::new(Vec::new());
        let sent = watch::Sender::new(Progress::default());
        let listing = outgoing.listing.clone();
        let sending = async { send(outgoing, &self.from, ours, &sent).await };
        let relaying = async {
            while let Some(step) = said_by_worker.recv().await {
                on_step(&step);
                heard.lock().unwrap().push(step.clone());
                if relay.send(step).await.is_err() {
                    return;
                }
            }
        };
        let receiving = async {
            let Some(Step::Meta(meta)) = theirs.rx.recv().await else { panic!("it begins with an announcement") };
            let begun = self.store.begin_proving(owner, &meta.manifest, Secret::new(SESSION)).unwrap();
            receive(meta, begun, &self.to, theirs, watch::Sender::new(Progress::default())).await
        };
        let (result, received, ()) = tokio::join!(sending, receiving, relaying);
        result.unwrap();
        let received = std::fs::read(received.unwrap().path().join("a.slp")).unwrap();
        assert!(received.chunks(CHUNK).map(Hash::of).eq((0..listing.layout().len()).map(|index| listing.hash(index).unwrap())));
        let Progress { acked_bytes, needed_bytes, .. } = *sent.borrow();
        assert_eq!(acked_bytes, needed_bytes);
        (needed_bytes, said(&heard.into_inner().unwrap()))
    }

    async fn send(&self, owner: &str, outgoing: Outgoing) -> (u64, Vec<String>) {
        self.send_with(owner, outgoing, |_| {}).await
    }
}

/// What the worker says before the data, as it is on the wire, challenges apart.
fn said(steps: &[Step]) -> Vec<String> {
    let before = steps.iter().take_while(|step| !matches!(step, Step::Ack(_) | Step::Done(_)));
    let line = |step: &Step| match step.clone() {
        Step::Prove(prove) => {
            assert_ne!(prove.challenge, Challenge([0; 32]));
            Step::Prove(FileProve { challenge: Challenge([0; 32]), ..prove })
        }
        other => other,
    };
    before.map(|step| ToClient::from(line(step)).encode()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_what_another_has_sent_need_not_send_it() {
    let stage = Stage::new().await;
    let package = Package::noise(1, 3 << 20);
    let (bytes, said) = stage.send("ann", package.outgoing(&package, Some(SESSION))).await;
    assert_eq!((bytes, said.len()), (package.size(), 2), "nobody has sent anything yet: no proof is asked for");
    let (bytes, said) = stage.send("bob", package.outgoing(&package, Some(SESSION))).await;
    assert_eq!((bytes, said.len()), (0, 3));
    // Only what has changed travels.
    let changed = Package::of([&package.bytes[..], &[5; 1000]].concat());
    let (bytes, _) = stage.send("cyd", changed.outgoing(&changed, Some(SESSION))).await;
    assert_eq!(bytes, 1000);
    // One's own is found without a proof; only what it does not cover is asked about.
    let heard = Mutex::new(ChunkSet::new(0));
    let listen = |step: &Step| {
        if let Step::Prove(prove) = step {
            let asked = ChunkSetAssembly::new(49).absorb(prove.first, &prove.bits, prove.last).unwrap();
            *heard.lock().unwrap() = asked.unwrap();
        }
    };
    let (bytes, _) = stage.send_with("bob", changed.outgoing(&changed, Some(SESSION)), listen).await;
    assert_eq!((bytes, heard.into_inner().unwrap().ranges()), (0, vec![(48, 48)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_knows_the_hashes_sends_everything_and_sees_the_same_as_if_nobody_had_it() {
    let secret = Package::noise(1, 3 << 20);
    let guess = Package::of(vec![0; 3 << 20]);
    let mut heard = Vec::new();
    for others in [&secret, &Package::noise(2, 3 << 20)] {
        let stage = Stage::new().await;
        stage.send("ann", others.outgoing(others, Some(SESSION))).await;
        let (bytes, said) = stage.send("eve", secret.outgoing(&guess, Some(SESSION))).await;
        assert_eq!(bytes, secret.size());
        heard.push(said);
    }
    assert_eq!(heard[0], heard[1]);
    assert!(heard[0].len() == 3 && heard[0][1].starts_with("FILE_PROVE"), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_chunk_is_decided_by_its_own_tag() {
    let stage = Stage::new().await;
    let package = Package::noise(1, 2 << 20);
    stage.send("ann", package.outgoing(&package, Some(SESSION))).await;
    let mut known = package.bytes.to_vec();
    for chunk in [0, 7, 31] {
        known[chunk * CHUNK] ^= 1;
    }
    let (bytes, _) = stage.send("eve", package.outgoing(&Package::of(known), Some(SESSION))).await;
    assert_eq!(bytes, 3 * CHUNK as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_for_another_session_is_none_and_who_cannot_prove_is_not_asked() {
    let stage = Stage::new().await;
    let package = Package::noise(1, 1 << 20);
    stage.send("ann", package.outgoing(&package, None)).await;
    let (bytes, said) = stage.send("eve", package.outgoing(&package, Some([8; 32]))).await;
    assert_eq!((bytes, said.len()), (package.size(), 3));
    let (bytes, said) = stage.send("old", package.outgoing(&package, None)).await;
    assert_eq!((bytes, said.len()), (package.size(), 2));
    let stage = Stage { store: stage.store.with_sharing(false), ..stage };
    let (bytes, said) = stage.send("bob", package.outgoing(&package, Some(SESSION))).await;
    assert_eq!((bytes, said.len()), (package.size(), 2), "it is switched off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_whose_connection_is_lost_is_sent_on_another() {
    let stage = Stage::new().await;
    let package = Package::noise(1, 1 << 20);
    stage.send("ann", package.outgoing(&package, Some(SESSION))).await;
    let first = stage.from.connections().borrow()[0].clone();
    let cut = |step: &Step| {
        if matches!(step, Step::Prove(_)) {
            first.lost.cancel();
        }
    };
    let (bytes, _) = stage.send_with("bob", package.outgoing(&package, Some(SESSION)), cut).await;
    assert_eq!(bytes, 0);
}
