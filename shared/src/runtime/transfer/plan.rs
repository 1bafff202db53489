//! What a client sends that only wants to know: the manifest of a package, and frames that measure the path.

use super::{
    feed::{frames_of, manifest_frames},
    pool::Pool,
    send::send_frames,
};
use crate::domain::{
    frame::{FrameKind, HEADER},
    manifest::Manifest,
    message::PLAN_TRANSFER,
};

/// The length of a probe's frame: short, so that a slow path delivers several in the time of a probe.
const PROBE_FRAME: usize = 16 * 1024;
static NOTHING: [u8; PROBE_FRAME - HEADER] = [0; PROBE_FRAME - HEADER];

/// Sends a manifest for a plan, and once more whenever the connection is lost that it went over: until the caller has its answer.
pub async fn send_plan(pool: &Pool, manifest: &Manifest) {
    loop {
        let connection = pool.first_connection().await;
        if send_frames(&connection, manifest_frames(PLAN_TRANSFER, manifest)).await.is_ok() {
            connection.lost.cancelled().await;
        }
        connection.lost.cancel();
    }
}

/// Sends at most so many bytes of probe frames over one connection, as fast as it takes them.
pub async fn probe(pool: &Pool, bytes: u64) {
    let connection = pool.first_connection().await;
    for _ in 0..bytes.div_ceil(PROBE_FRAME as u64) {
        if send_frames(&connection, frames_of(PLAN_TRANSFER, FrameKind::Probe, &NOTHING)).await.is_err() {
            return;
        }
    }
}
