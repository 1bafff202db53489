//! What a client sends that only wants to know: the manifest of a package, and frames that measure the path.

use std::sync::Arc;

use super::{
    feed::frames_of,
    pool::Pool,
    send::{send_frames, send_listing},
};
use crate::{
    domain::{
        error::Failure,
        frame::{FrameKind, HEADER},
        message::PLAN_TRANSFER,
    },
    runtime::listing::Listing,
};

/// The length of a probe's frame: short, so that a slow path delivers several in the time of a probe.
const PROBE_FRAME: usize = 16 * 1024;
static NOTHING: [u8; PROBE_FRAME - HEADER] = [0; PROBE_FRAME - HEADER];

/// Sends a manifest for a plan, and once more whenever the connection is lost that it went over: until the caller has its answer. Ends
/// only when it cannot be read back from the disk, with [`Code::BadFile`](crate::domain::error::Code::BadFile).
pub async fn send_plan(pool: &Pool, listing: &Arc<Listing>) -> Failure {
    loop {
        let connection = pool.first_connection().await;
        match send_listing(&connection, PLAN_TRANSFER, listing).await {
            Ok(true) => connection.lost.cancelled().await,
            Ok(false) => {}
            Err(failure) => return failure,
        }
        connection.lost.cancel();
    }
}

/// Sends at most so many bytes of probe frames over one connection, as fast as it takes them.
pub async fn probe(pool: &Pool, bytes: u64) {
    let connection = pool.first_connection().await;
    for _ in 0..bytes.div_ceil(PROBE_FRAME as u64) {
        if send_frames(&connection, frames_of(PLAN_TRANSFER, FrameKind::Probe, 0, &NOTHING)).await.is_err() {
            return;
        }
    }
}
