//! Both sides of a transfer against each other, over connections that lose and damage what they carry.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind},
    manifest::{Chunk, Entry, Hash, MAX_CHUNK},
};

/// Chunk `n` is `len` bytes of `n`.
fn content(index: u32, len: u32) -> Vec<u8> {
    vec![index as u8; len as usize]
}

fn manifest(files: &[Vec<u32>]) -> Manifest {
    let mut index = 0;
    let entries = files
        .iter()
        .enumerate()
        .map(|(n, lens)| {
            let mut chunks = Vec::new();
            for &len in lens {
                chunks.push(Chunk { hash: Hash::of(&content(index, len)), len });
                index += 1;
            }
            let size = lens.iter().map(|&len| u64::from(len)).sum();
            Entry { path: format!("f{n:04}").parse().unwrap(), size, executable: false, chunks }
        })
        .collect();
    Manifest::new(entries).unwrap()
}

fn layout(files: &[Vec<u32>]) -> Arc<Layout> {
    Arc::new(Layout::new(&manifest(files)))
}

/// Takes a piece, and verifies what is whole.
fn accept(receiving: &mut Receiving, connection: u32, header: FrameHeader, piece: &[u8]) -> Result<Accepted, Failure> {
    match receiving.accept_piece(connection, header, Bytes::copy_from_slice(piece))? {
        Accepted::Whole(chunk) => verify(receiving, chunk),
        other => Ok(other),
    }
}

fn verify(receiving: &mut Receiving, chunk: WholeChunk) -> Result<Accepted, Failure> {
    let hash = Hash::of(&content(chunk.index, chunk.place.len));
    receiving.verify(chunk, &hash)
}

fn piece(index: u32, offset: u32) -> FrameHeader {
    FrameHeader { transfer: 1, kind: FrameKind::Chunk(index), offset }
}

fn indexed(layout: &Layout) -> impl Iterator<Item = ChunkPlace> {
    (0..layout.len()).map(|index| layout.get(index).unwrap())
}

#[test]
fn a_layout_finds_every_chunk() {
    let manifest = manifest(&[vec![], vec![5, 6], vec![], vec![7], vec![]]);
    let layout = Layout::new(&manifest);
    assert!(manifest.places().map(|(place, _)| place).eq(indexed(&layout)));
    assert_eq!(layout.get(3), None);
    assert_eq!((0..5).map(|entry| layout.of_entry(entry)).collect::<Vec<_>>(), [0..0, 0..2, 2..2, 2..3, 3..3]);
}

#[test]
fn a_layout_finds_every_chunk_of_long_files() {
    let lens = |count: u32| (0..count).map(|n| n % 7 + 1).collect::<Vec<_>>();
    let noted = NOTED as u32;
    let files = [lens(noted), lens(2), lens(noted - 1), lens(noted + 1), vec![], lens(3 * noted + 5), lens(2 * noted)];
    let manifest = manifest(&files);
    let layout = Layout::new(&manifest);
    assert!(manifest.places().map(|(place, _)| place).eq(indexed(&layout)));
    assert!((0..layout.len()).all(|index| layout.len_of(index) == u64::from(layout.get(index).unwrap().len)));
    assert_eq!((layout.get(layout.len()), layout.len_of(layout.len())), (None, 0));
    assert_eq!((layout.bytes_of(&ChunkSet::full(layout.len())), layout.bytes()), (manifest.bytes(), manifest.bytes()));
}

#[test]
fn the_window_holds_and_acks_open_it() {
    let layout = layout(&[vec![MAX_CHUNK; 3]]);
    let mut sending = Sending::new(layout.clone(), ChunkSet::full(3), 1).unwrap();
    assert!(matches!(sending.next(0), Next::Chunk(0, _)));
    assert_eq!(sending.next(0), Next::Wait);
    assert_eq!(sending.acked(&[(1, 1)]).unwrap_err().code, Code::InvalidRequest);
    assert_eq!(sending.acked(&[(0, 5)]).unwrap_err().code, Code::InvalidRequest);
    sending.acked(&[(0, 0)]).unwrap();
    assert!(matches!(sending.next(1), Next::Chunk(1, _)));
    sending.connection_lost(1);
    assert!(matches!(sending.next(0), Next::Chunk(1, _)));
    sending.acked(&[(0, 1)]).unwrap();
    assert!(matches!(sending.next(0), Next::Chunk(2, _)));
    assert_eq!(sending.next(0), Next::AllSent);
    assert!(!sending.is_complete());
    sending.acked(&[(2, 2)]).unwrap();
    assert!(sending.is_complete());
    assert_eq!(sending.progress().acked_bytes, 3 * u64::from(MAX_CHUNK));
}

#[test]
fn an_ack_that_comes_after_its_connection_was_lost_counts() {
    let mut sending = Sending::new(layout(&[vec![10, 10]]), ChunkSet::full(2), 1 << 20).unwrap();
    assert!(matches!(sending.next(0), Next::Chunk(0, _)));
    sending.connection_lost(0);
    sending.acked(&[(0, 0)]).unwrap();
    assert!(matches!(sending.next(1), Next::Chunk(1, _)));
}

#[test]
fn pieces_that_nobody_asked_for_are_refused() {
    let layout = layout(&[vec![10, 10]]);
    let mut present = ChunkSet::new(2);
    present.insert(0);
    let fails =
        |header: FrameHeader, piece: &[u8]| accept(&mut Receiving::new(layout.clone(), &present), 0, header, piece).unwrap_err().code;
    for (index, offset, bytes) in [(0, 0, 10), (2, 0, 10), (1, 0, 11), (1, 5, 5), (1, 0, 0)] {
        assert_eq!(fails(piece(index, offset), &vec![1; bytes]), Code::InvalidRequest, "{index} {offset} {bytes}");
    }
    let manifest = FrameHeader { kind: FrameKind::Manifest, ..piece(0, 0) };
    assert_eq!(fails(manifest, &[1]), Code::InvalidRequest);
    let mut receiving = Receiving::new(layout.clone(), &ChunkSet::new(2));
    assert_eq!(accept(&mut receiving, 0, piece(0, 0), &[0; 4]).unwrap(), Accepted::More);
    assert!(accept(&mut receiving, 0, piece(1, 0), &[1; 4]).is_err());
}

#[test]
fn three_damaged_chunks_end_it_and_many_good_ones_forgive() {
    let layout = layout(&[vec![1; 3000]]);
    let mut receiving = Receiving::new(layout.clone(), &ChunkSet::new(3000));
    let good = |receiving: &mut Receiving, index: u32| accept(receiving, 0, piece(index, 0), &content(index, 1));
    let bad = |receiving: &mut Receiving, index: u32| accept(receiving, 0, piece(index, 0), &[index as u8 ^ 1]);
    for index in 0..3000 {
        if index % 1200 == 0 {
            assert_eq!(bad(&mut receiving, index).unwrap(), Accepted::Corrupt(index));
            assert!(receiving.needed().contains(index));
        }
        assert!(matches!(good(&mut receiving, index).unwrap(), Accepted::Verified(_)));
    }
    let mut receiving = Receiving::new(layout, &ChunkSet::new(3000));
    assert!(bad(&mut receiving, 0).is_ok() && bad(&mut receiving, 0).is_ok());
    assert_eq!(bad(&mut receiving, 7).unwrap_err().code, Code::NotAuthentic);
}

#[test]
fn a_compressed_chunk_counts_once_it_is_decompressed_and_has_its_hash() {
    let layout = layout(&[vec![10, 10]]);
    let mut receiving = Receiving::new(layout, &ChunkSet::new(2));
    let header = |index, len, offset| FrameHeader { kind: FrameKind::Compressed { index, len }, ..piece(0, offset) };
    for len in [0, 10, 11] {
        assert_eq!(accept(&mut receiving, 0, header(0, len, 0), &[9; 1]).unwrap_err().code, Code::InvalidRequest, "{len}");
    }
    assert_eq!(accept(&mut receiving, 0, header(0, 3, 0), &[9; 2]).unwrap(), Accepted::More);
    assert!(accept(&mut receiving, 0, header(0, 4, 2), &[9; 1]).is_err(), "it has become longer");
    assert_eq!(accept(&mut receiving, 1, header(0, 3, 0), &[9; 2]).unwrap(), Accepted::More);
    let Accepted::Compressed(chunk) = accept(&mut receiving, 1, header(0, 3, 2), &[9; 1]).unwrap() else { panic!("it is whole") };
    assert_eq!((chunk.index, &chunk.bytes[..]), (0, &[9; 3][..]));
    assert_eq!(verify(&mut receiving, WholeChunk { bytes: Bytes::new(), ..chunk.clone() }).unwrap(), Accepted::Corrupt(0));
    let whole = WholeChunk { bytes: content(0, 10).into(), ..chunk };
    assert_eq!(verify(&mut receiving, whole.clone()).unwrap(), Accepted::Verified(whole.clone()));
    assert_eq!(verify(&mut receiving, whole).unwrap(), Accepted::Known(0));
}

#[test]
fn what_was_damaged_on_disk_travels_again() {
    let layout = layout(&[vec![10, 10]]);
    let mut present = ChunkSet::new(2);
    present.insert(0);
    let mut receiving = Receiving::new(layout.clone(), &present);
    let mut sending = Sending::new(layout.clone(), receiving.needed().clone(), 1 << 20).unwrap();
    for expected in [1, 0] {
        let Next::Chunk(index, place) = sending.next(0) else { panic!("a chunk is due") };
        assert_eq!(index, expected);
        let whole = accept(&mut receiving, 0, piece(index, 0), &content(index, place.len)).unwrap();
        assert!(matches!(whole, Accepted::Verified(chunk) if chunk.index == index));
        assert!(!receiving.is_stored(index));
        assert!(receiving.stored(index) && !receiving.stored(index));
        assert!(receiving.is_stored(index));
        sending.acked(&[(index, index)]).unwrap();
        if index == 1 {
            assert!(receiving.is_complete() && sending.is_complete());
            receiving.damaged(&present);
            sending.asked_again(receiving.needed()).unwrap();
        }
    }
    assert!(receiving.is_complete() && sending.is_complete());
    assert_eq!(receiving.progress(), Progress { sent_bytes: 0, ..sending.progress() });
    assert_eq!(sending.progress(), Progress { total_bytes: 20, needed_bytes: 20, acked_bytes: 20, in_flight: 0, sent_bytes: 20 });
}

#[derive(Debug, Clone)]
enum Step {
    /// A connection sends its next chunk.
    Send(u32),
    /// A connection's oldest piece arrives.
    Deliver(u32),
    /// A connection's oldest piece arrives with a bit flipped.
    Damage(u32),
    /// A connection is lost with what it carries.
    Lose(u32),
    /// What was written becomes durable, and is acked.
    Sync,
    /// An ack arrives.
    Ack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let connection = 0u32..4;
    let step = prop_oneof![
        6 => connection.clone().prop_map(Step::Send),
        12 => connection.clone().prop_map(Step::Deliver),
        1 => connection.clone().prop_map(Step::Damage),
        1 => connection.prop_map(Step::Lose),
        3 => Just(Step::Sync),
        3 => Just(Step::Ack),
    ];
    proptest::collection::vec(step, 0..300)
}

/// What travels back, on the control channel.
struct Reply {
    acked: Vec<(u32, u32)>,
    again: Vec<u32>,
}

/// Two sides, four connections, and a count of what each chunk went through.
struct Pair {
    layout: Arc<Layout>,
    sending: Sending,
    receiving: Receiving,
    wires: HashMap<u32, VecDeque<(FrameHeader, Vec<u8>)>>,
    unsynced: Vec<u32>,
    replies: VecDeque<Reply>,
    stored: Vec<u32>,
    sent_bytes: u64,
    losses: u64,
    damages: u64,
}

impl Pair {
    fn new(layout: Arc<Layout>, present: &ChunkSet, window: u64) -> Self {
        let receiving = Receiving::new(layout.clone(), present);
        let sending = Sending::new(layout.clone(), receiving.needed().clone(), window).unwrap();
        let stored = (0..layout.len()).map(|index| u32::from(present.contains(index))).collect();
        let (wires, unsynced, replies) = Default::default();
        Pair { layout, sending, receiving, wires, unsynced, replies, stored, sent_bytes: 0, losses: 0, damages: 0 }
    }

    /// `false`: nothing could be sent.
    fn send(&mut self, connection: u32) -> bool {
        let Next::Chunk(index, place) = self.sending.next(connection) else { return false };
        self.sent_bytes += u64::from(place.len);
        let mut offset = 0;
        for part in content(index, place.len).chunks(40_000) {
            self.wires.entry(connection).or_default().push_back((piece(index, offset), part.to_vec()));
            offset += part.len() as u32;
        }
        true
    }

    /// `false`: the sides disagreed for good (too many damaged chunks).
    fn deliver(&mut self, connection: u32, damage: bool) -> bool {
        let Some((header, mut piece)) = self.wires.entry(connection).or_default().pop_front() else { return true };
        if damage {
            piece[0] ^= 1;
            self.damages += 1;
        }
        match accept(&mut self.receiving, connection, header, &piece) {
            Ok(Accepted::Verified(chunk)) => self.unsynced.push(chunk.index),
            Ok(Accepted::Corrupt(index)) => {
                // Over the control channel, behind the acks that are under way.
                self.replies.push_back(Reply { acked: Vec::new(), again: vec![index] });
            }
            Ok(Accepted::Whole(_) | Accepted::Compressed(_)) => panic!("nothing is compressed here"),
            Ok(Accepted::More | Accepted::Known(_)) => {}
            Err(failure) => {
                assert_eq!(failure.code, Code::NotAuthentic);
                assert!(self.damages >= 3);
                return false;
            }
        }
        true
    }

    fn sync(&mut self) {
        self.unsynced.sort_unstable();
        for &index in &self.unsynced {
            assert!(self.receiving.stored(index));
            self.stored[index as usize] += 1;
        }
        self.replies.push_back(Reply { acked: ranges_of(self.unsynced.drain(..)), again: Vec::new() });
    }

    fn ack(&mut self) {
        let Some(reply) = self.replies.pop_front() else { return };
        self.sending.acked(&reply.acked).unwrap();
        let mut set = ChunkSet::new(self.layout.len());
        for index in reply.again {
            set.insert(index);
        }
        self.sending.asked_again(&set).unwrap();
    }

    fn lose(&mut self, connection: u32) {
        self.losses += 1;
        self.wires.remove(&connection);
        self.sending.connection_lost(connection);
        self.receiving.connection_lost(connection);
    }

    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Send(connection) => {
                self.send(connection);
            }
            Step::Deliver(connection) => return self.deliver(connection, false),
            Step::Damage(connection) => return self.deliver(connection, true),
            Step::Lose(connection) => self.lose(connection),
            Step::Sync => self.sync(),
            Step::Ack => self.ack(),
        }
        true
    }

    /// Lets everything that is left travel undisturbed.
    fn drain(&mut self) -> bool {
        for round in 0.. {
            if self.sending.is_complete() {
                break;
            }
            assert!(round < 1000, "the sides wait for each other");
            self.send(0);
            for connection in 0..4 {
                while self.wires.get(&connection).is_some_and(|wire| !wire.is_empty()) {
                    if !self.deliver(connection, false) {
                        return false;
                    }
                }
            }
            self.sync();
            while !self.replies.is_empty() {
                self.ack();
            }
        }
        true
    }
}

proptest! {
    #[test]
    fn whatever_happens_every_chunk_is_stored_once(
        files in proptest::collection::vec(proptest::collection::vec(1u32..=MAX_CHUNK, 0..6), 1..6),
        there in proptest::collection::vec(any::<bool>(), 40),
        window in 300_000u64..1_500_000,
        steps in steps(),
    ) {
        let layout = layout(&files);
        let mut present = ChunkSet::new(layout.len());
        for index in (0..layout.len()).filter(|&index| there[index as usize]) {
            present.insert(index);
        }
        let needed = layout.bytes_of(&present.complement());
        let mut pair = Pair::new(layout.clone(), &present, window);
        let mut alive = true;
        for step in steps {
            prop_assert!(pair.sending.progress().in_flight <= window);
            alive = alive && pair.step(step);
            if !alive { break; }
        }
        if alive && pair.drain() {
            prop_assert!(pair.receiving.is_complete());
            prop_assert!(pair.stored.iter().all(|&times| times == 1), "{:?}", pair.stored);
            let again = pair.sent_bytes - needed;
            prop_assert!(again <= pair.losses * window + pair.damages * u64::from(MAX_CHUNK), "{again} bytes were sent again");
            let (sent, got) = (pair.sending.progress(), pair.receiving.progress());
            prop_assert_eq!(sent.sent_bytes, pair.sent_bytes);
            prop_assert_eq!(Progress { sent_bytes: 0, ..sent }, got);
            prop_assert_eq!(sent.acked_bytes, needed);
        } else {
            prop_assert!(pair.damages >= 3);
        }
    }

    #[test]
    fn any_piece_is_taken_or_refused(index in 0u32..6, offset in 0u32..30, len in 0usize..30, connection in 0u32..3) {
        let mut receiving = Receiving::new(layout(&[vec![20, 20], vec![1]]), &ChunkSet::new(3));
        for _ in 0..3 {
            let _ = accept(&mut receiving, connection, piece(index, offset), &vec![7; len]);
        }
    }

    #[test]
    fn any_ack_is_taken_or_refused(ranges in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..4)) {
        let mut sending = Sending::new(layout(&[vec![20, 20], vec![1]]), ChunkSet::full(3), 1 << 20).unwrap();
        sending.next(0);
        let _ = sending.acked(&ranges);
        prop_assert!(sending.progress().acked_bytes <= 20);
    }
}

#[test]
fn many_slow_connections_are_not_starved_by_what_is_unacked() {
    let (least, most) = (12 << 20, 64 << 20);
    assert_eq!(unacked(least, 0, 1, most), least);
    assert_eq!(unacked(least, 6 << 20, 4, most), 18 << 20, "three times what the path holds");
    assert_eq!(unacked(least, 1 << 20, 96, most), 24 << 20, "a chunk for each of 96");
    assert_eq!(unacked(least, 100 << 20, 96, most), most);
}
