//! Whether compressing the chunks of a transfer pays, measured on its chunks and on its way, not guessed from names.
//!
//! Compressing pays when chunks become clearly shorter, and when it is so much faster than the way that it does not hold the sender up. The
//! first chunks are all tried; later, while it does not pay, one in [`PROBE`], because a package's files differ.

use std::time::Duration;

/// So many chunks are tried at the beginning.
const FIRST: u32 = 4;
/// While it does not pay, one chunk in so many is tried.
const PROBE: u32 = 32;
/// What a chunk must shrink to for it to be worth the receiver's work.
const RATIO: f64 = 0.9;
/// A way that carries this part of what can be compressed in the same time is fast enough to do without.
const HEADROOM: f64 = 0.7;
/// The weight of the newest chunk in the averages.
const WEIGHT: f64 = 0.2;

/// A rate that falls to this part of what went without compression means that the way or the content has changed.
const COLLAPSE: f64 = 0.9;

/// Decides for each chunk whether to compress it.
#[derive(Debug, Default)]
pub struct Compression {
    chunks: u32,
    on: bool,
    /// Compressed length over length, averaged.
    ratio: Option<f64>,
    /// Bytes of content that are compressed in a second, averaged.
    speed: Option<f64>,
    /// Bytes of content a second that arrived without compression.
    plain: Option<f64>,
}

impl Compression {
    /// Whether to compress the next chunk.
    pub fn compress_next(&mut self) -> bool {
        self.chunks = self.chunks.wrapping_add(1);
        self.chunks <= FIRST || self.on || self.chunks.is_multiple_of(PROBE)
    }

    /// What came of it: a chunk of `len` bytes became `compressed` bytes in this time.
    pub fn handle_compressed(&mut self, len: u32, compressed: u32, took: Duration) {
        let average = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + (new - old) * WEIGHT));
        self.ratio = average(self.ratio, f64::from(compressed) / f64::from(len.max(1)));
        self.speed = average(self.speed, f64::from(len) / took.as_secs_f64().max(1e-9));
        self.on = self.on && self.shrinks();
    }

    /// How fast content arrived of late, in bytes a second before compression. A time in which compression was switched on or off does not
    /// count: `true` asks for a fresh start.
    pub fn handle_goodput(&mut self, goodput: f64) -> bool {
        let was = self.on;
        if !self.on {
            self.plain = Some(goodput);
            self.on = self.shrinks() && self.speed.is_some_and(|speed| goodput < speed * HEADROOM);
        } else if self.plain.is_some_and(|plain| goodput < plain * COLLAPSE) {
            self.on = false;
        }
        was != self.on
    }

    fn shrinks(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio < RATIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 1,000 chunks are compressed to `ratio` at `speed` bytes a second, on a way that carries `goodput`.
    fn compressed(ratio: f64, speed: f64, goodput: f64) -> u32 {
        let (mut compression, mut count) = (Compression::default(), 0);
        for _ in 0..1000 {
            if compression.compress_next() {
                count += 1;
                compression.handle_compressed(100_000, (1e5 * ratio) as u32, Duration::from_secs_f64(1e5 / speed));
            }
            compression.handle_goodput(goodput);
        }
        count
    }

    #[test]
    fn it_pays_for_content_that_shrinks_on_a_way_slower_than_the_compressor() {
        assert!(compressed(0.5, 500e6, 12e6) > 990);
        assert!(compressed(0.99, 500e6, 12e6) < 40, "images are compressed already");
        assert!(compressed(0.5, 500e6, 450e6) < 40, "the way is as fast as the compressor");
    }

    #[test]
    fn compression_that_holds_the_sender_up_is_switched_off_again() {
        let mut compression = Compression::default();
        assert!(compression.compress_next());
        compression.handle_compressed(100_000, 50_000, Duration::from_micros(200));
        assert!(compression.handle_goodput(200e6), "on: a way of 200 MB/s, and 500 MB/s can be compressed");
        assert!(!compression.handle_goodput(190e6));
        assert!(compression.handle_goodput(150e6), "off: it does not keep up after all");
    }

    #[test]
    fn a_package_whose_files_differ_is_found_out() {
        let (mut compression, mut count) = (Compression::default(), 0);
        for chunk in 0..1000 {
            if compression.compress_next() {
                count += u32::from(chunk >= 500);
                let length = if chunk < 500 { 99_000 } else { 10_000 };
                compression.handle_compressed(100_000, length, Duration::from_micros(200));
            }
            compression.handle_goodput(12e6);
        }
        assert!(count > 400, "{count}");
    }
}
