//! What a client sends that only wants to know: the manifest of a package, and frames that measure the path.

use bytes::{BufMut, BytesMut};

use super::pool::{Connection, Pool};
use crate::domain::{
    frame::{FrameHeader, FrameKind, HEADER, MAX_PIECE},
    message::PLAN_TRANSFER,
};

/// The length of a probe's frame: short, so that a slow path delivers several in the time of a probe.
const PROBE_FRAME: usize = 16 * 1024;
static NOTHING: [u8; PROBE_FRAME - HEADER] = [0; PROBE_FRAME - HEADER];

/// Sends a manifest for a plan, and once more whenever the connection is lost that it went over: until the caller has its answer.
pub async fn send_plan(pool: &Pool, encoded: &[u8]) {
    loop {
        let connection = first_connection(pool).await;
        for (number, piece) in encoded.chunks(MAX_PIECE).enumerate() {
            if !send(&connection, frame(FrameKind::Manifest, (number * MAX_PIECE) as u32, piece)).await {
                break;
            }
        }
        connection.lost.cancelled().await;
    }
}

/// Sends at most so many bytes of probe frames over one connection, as fast as it takes them.
pub async fn probe(pool: &Pool, bytes: u64) {
    let connection = first_connection(pool).await;
    for _ in 0..bytes.div_ceil(PROBE_FRAME as u64) {
        if !send(&connection, frame(FrameKind::Probe, 0, &NOTHING)).await {
            return;
        }
    }
}

fn frame(kind: FrameKind, offset: u32, piece: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEADER + piece.len());
    frame.put_slice(&FrameHeader { transfer: PLAN_TRANSFER, kind, offset }.encode());
    frame.put_slice(piece);
    frame
}

/// `false`: the connection is lost.
async fn send(connection: &Connection, frame: BytesMut) -> bool {
    connection.credit().await.is_ok() && connection.send(frame).await.is_ok()
}

async fn first_connection(pool: &Pool) -> Connection {
    let mut connections = pool.connections();
    let found = connections.wait_for(|connections| !connections.is_empty()).await;
    found.expect("the pool is borrowed, so its sender lives")[0].clone()
}
