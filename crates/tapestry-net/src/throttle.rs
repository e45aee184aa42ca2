//! A limit of bytes a second, over all connections that share it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least rate that can be asked for: slower, and the other side would take the limit for a connection that stands still.
pub const MIN_BYTES_PER_SECOND: u64 = 64 << 10;
/// How much goes through at a time.
pub(crate) const STEP_BYTES: usize = 64 << 10;

/// A bucket that fills at a steady rate and holds a tenth of a second. Who takes more than is in it owes the rest, and until that is
/// paid everybody waits.
#[derive(Debug)]
pub(crate) struct Bucket {
    bytes_per_second: f64,
    level: Mutex<(f64, Instant)>,
}

/// The limits of both directions.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    pub(crate) sending: Arc<Bucket>,
    pub(crate) receiving: Arc<Bucket>,
}

impl Throttle {
    /// So many bytes a second in each direction, at least [`MIN_BYTES_PER_SECOND`].
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let bucket = || Arc::new(Bucket::new(bytes_per_second.max(MIN_BYTES_PER_SECOND), Instant::now()));
        Self { sending: bucket(), receiving: bucket() }
    }
}

impl Bucket {
    fn new(bytes_per_second: u64, now: Instant) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        Self { bytes_per_second: bytes_per_second as f64, level: Mutex::new((0.0, now)) }
    }

    /// How long to wait before more may move; zero: not at all.
    pub(crate) fn wait(&self) -> Duration {
        self.wait_at(Instant::now())
    }

    fn wait_at(&self, now: Instant) -> Duration {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = level.0 + now.saturating_duration_since(level.1).as_secs_f64() * self.bytes_per_second;
        *level = (filled.min(self.bytes_per_second / 10.0), now);
        if level.0 >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-level.0 / self.bytes_per_second) }
    }

    /// After so many bytes have moved.
    pub(crate) fn spend(&self, num_bytes: usize) {
        #[expect(clippy::cast_precision_loss, reason = "at most a step")]
        let num_bytes = num_bytes as f64;
        self.level.lock().unwrap_or_else(PoisonError::into_inner).0 -= num_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_is_the_rate_and_a_step_whoever_asks_how_often() {
        for pause_ms in [1, 7, 250] {
            let start = Instant::now();
            let bucket = Bucket::new(1_000_000, start);
            let mut moved = 0;
            for ms in (0..10_000).step_by(pause_ms) {
                while bucket.wait_at(start + Duration::from_millis(ms)).is_zero() {
                    bucket.spend(STEP_BYTES);
                    moved += STEP_BYTES;
                }
            }
            let most = 10_000_000 + STEP_BYTES;
            // Who asks seldom loses what would not fit into the bucket.
            let least = if pause_ms < 100 { 9_800_000 } else { 4_000_000 };
            assert!((least..=most).contains(&moved), "{pause_ms}: {moved}");
        }
    }
}
