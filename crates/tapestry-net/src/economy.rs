//! Whether compressing pays, by measurement: what the link carries, what a sample saves, and what that costs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So much has gone plain before anything is decided: enough to see the link through the buffers of the system.
const LEAST_BYTES: u64 = 4 << 20;
/// And so long it has taken.
const LEAST_TIME: Duration = Duration::from_millis(250);
/// The gain in time below which it is not worth the trouble.
const LEAST_GAIN: f64 = 1.15;
/// Both sides work on every byte, and both have other things to do.
const SHARE_OF_PROCESSOR: f64 = 0.5;

/// What a sample gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Encoded bytes for each plain one.
    pub(crate) ratio: f64,
    /// Plain bytes a second that one thread encodes.
    pub(crate) bytes_per_second: f64,
}

/// Whether a sample says that compressing pays on a link of so many bytes a second.
pub(crate) fn pays(link_bytes_per_second: f64, sample: Sample) -> bool {
    let plain = 1.0 / link_bytes_per_second;
    let encoded = (sample.ratio / link_bytes_per_second).max(1.0 / (sample.bytes_per_second * SHARE_OF_PROCESSOR));
    plain > LEAST_GAIN * encoded
}

/// What to do with the next blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Send it as it is.
    Plain,
    /// Encode it and report, in [`Economy::sampled`], what that gave.
    Sample,
    /// Encode it.
    Encode,
}

/// One transfer's measurements.
#[derive(Debug)]
pub(crate) struct Economy(Mutex<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    wire_bytes: u64,
    sample: Option<Sample>,
    is_sampling: bool,
}

impl Economy {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(State { start: now, wire_bytes: 0, sample: None, is_sampling: false }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes of a blob have gone over the link.
    pub(crate) fn moved(&self, wire_bytes: u64) {
        self.state().wire_bytes += wire_bytes;
    }

    pub(crate) fn sampled(&self, sample: Sample) {
        let mut state = self.state();
        (state.sample, state.is_sampling) = (Some(sample), false);
    }

    pub(crate) fn advice(&self, now: Instant) -> Advice {
        let mut state = self.state();
        let elapsed = now.saturating_duration_since(state.start);
        if state.is_sampling || state.wire_bytes < LEAST_BYTES || elapsed < LEAST_TIME {
            return Advice::Plain;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let link = state.wire_bytes as f64 / elapsed.as_secs_f64();
        match state.sample {
            Some(sample) if pays(link, sample) => Advice::Encode,
            Some(_) => Advice::Plain,
            // A link that is too fast for any sample is not worth one.
            None if !pays(link, Sample { ratio: 0.0, bytes_per_second: 1e9 }) => Advice::Plain,
            None => {
                state.is_sampling = true;
                Advice::Sample
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_pays_on_slow_links_and_never_on_fast_ones() {
        let weights = Sample { ratio: 0.7, bytes_per_second: 400e6 };
        assert!(pays(25e6, weights) && pays(118e6, weights), "200 Mbit/s and 1 Gbit/s");
        assert!(!pays(1.2e9, weights) && !pays(400e6, weights), "10 Gbit/s and loopback");
        assert!(!pays(25e6, Sample { ratio: 0.95, ..weights }), "what saves little");
        assert!(!pays(25e6, Sample { bytes_per_second: 20e6, ..weights }), "a slow processor");
    }

    #[test]
    fn one_sample_is_taken_after_the_link_is_known_and_then_it_decides() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let economy = Economy::new(start);
        assert_eq!(economy.advice(later(1000)), Advice::Plain, "nothing has moved");
        economy.moved(8 << 20);
        assert_eq!(economy.advice(later(100)), Advice::Plain, "too early");
        assert_eq!(economy.advice(later(1000)), Advice::Sample);
        assert_eq!(economy.advice(later(1000)), Advice::Plain, "one sample at a time");
        economy.sampled(Sample { ratio: 0.7, bytes_per_second: 400e6 });
        assert_eq!(economy.advice(later(1000)), Advice::Encode);
        economy.moved(800 << 20);
        assert_eq!(economy.advice(later(1000)), Advice::Plain, "the link turned out to be fast");
        let fast = Economy::new(start);
        fast.moved(800 << 20);
        assert_eq!(fast.advice(later(1000)), Advice::Plain, "no sample is taken on a fast link");
    }
}
