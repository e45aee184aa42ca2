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
/// Where the processors are busy already, it is they that look like a slow link, and every byte that is worked on makes them slower.
const SHARE_OF_BUSY_PROCESSOR: f64 = 0.1;
/// Processors that are idle for less than this share of their time are busy.
const LEAST_IDLE: f64 = 0.2;

/// How long this machine's processors have worked and been idle, in any unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    /// As the system says; elsewhere than on Linux they are never busy.
    pub(crate) fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, waiting for input and output, and others.
    fn parse(stat: &str) -> Option<Self> {
        let words = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let times: Vec<u64> = words.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { idle: times.get(3)? + times.get(4)?, all: times.iter().sum() })
    }

    /// Whether they were busy between `before` and now.
    fn were_busy_since(self, before: Self) -> bool {
        let (idle, all) = (self.idle.saturating_sub(before.idle), self.all.saturating_sub(before.all));
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = idle as f64 / all as f64;
        all > 0 && share < LEAST_IDLE
    }
}

/// What a sample gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Encoded bytes for each plain one.
    pub(crate) ratio: f64,
    /// Plain bytes a second that one thread encodes.
    pub(crate) bytes_per_second: f64,
}

/// Whether a sample says that compressing pays on a link of so many bytes a second, where it may take this share of a processor.
fn pays(link_bytes_per_second: f64, share_of_processor: f64, sample: Sample) -> bool {
    let plain = 1.0 / link_bytes_per_second;
    let encoded = (sample.ratio / link_bytes_per_second).max(1.0 / (sample.bytes_per_second * share_of_processor));
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
    processors: Option<Processors>,
    link: Option<f64>,
    sample: Option<Sample>,
    is_sampling: bool,
}

impl Economy {
    /// `link`: what the link carries, in bytes a second, where that need not be measured.
    pub(crate) fn new(now: Instant, processors: Option<Processors>, link: Option<f64>) -> Self {
        Self(Mutex::new(State { start: now, processors, link, sample: None, is_sampling: false }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sampled(&self, sample: Sample) {
        let mut state = self.state();
        (state.sample, state.is_sampling) = (Some(sample), false);
    }

    /// What to do with the next blob, when so many bytes have gone over the link.
    pub(crate) fn advice(
        &self,
        now: Instant,
        wire_bytes: u64,
        processors: impl FnOnce() -> Option<Processors>,
    ) -> Advice {
        let mut state = self.state();
        let elapsed = now.saturating_duration_since(state.start);
        if state.is_sampling || wire_bytes < LEAST_BYTES || elapsed < LEAST_TIME {
            return Advice::Plain;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let measured = wire_bytes as f64 / elapsed.as_secs_f64();
        let link = state.link.unwrap_or(measured);
        let are_busy = processors().zip(state.processors).is_some_and(|(now, before)| now.were_busy_since(before));
        let share = if are_busy { SHARE_OF_BUSY_PROCESSOR } else { SHARE_OF_PROCESSOR };
        match state.sample {
            Some(sample) if pays(link, share, sample) => Advice::Encode,
            Some(_) => Advice::Plain,
            // A link that is too fast for any sample is not worth one.
            None if !pays(link, share, Sample { ratio: 0.0, bytes_per_second: 1e9 }) => Advice::Plain,
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
        let pays_at = |link, sample| pays(link, SHARE_OF_PROCESSOR, sample);
        assert!(pays_at(25e6, weights) && pays_at(118e6, weights), "200 Mbit/s and 1 Gbit/s");
        assert!(!pays_at(1.2e9, weights) && !pays_at(400e6, weights), "10 Gbit/s and loopback");
        assert!(!pays_at(25e6, Sample { ratio: 0.95, ..weights }), "what saves little");
        assert!(!pays_at(25e6, Sample { bytes_per_second: 20e6, ..weights }), "a slow processor");
        let when_busy = |link| pays(link, SHARE_OF_BUSY_PROCESSOR, weights);
        assert!(when_busy(25e6) && !when_busy(118e6), "busy processors");
    }

    #[test]
    fn one_sample_is_taken_after_the_link_is_known_and_then_it_decides() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let economy = Economy::new(start, None, None);
        let advice = |economy: &Economy, ms, bytes| economy.advice(later(ms), bytes, || None);
        assert_eq!(advice(&economy, 1000, 0), Advice::Plain, "nothing has moved");
        assert_eq!(advice(&economy, 100, 8 << 20), Advice::Plain, "too early");
        assert_eq!(advice(&economy, 1000, 8 << 20), Advice::Sample);
        assert_eq!(advice(&economy, 1000, 8 << 20), Advice::Plain, "one sample at a time");
        economy.sampled(Sample { ratio: 0.7, bytes_per_second: 400e6 });
        assert_eq!(advice(&economy, 1000, 8 << 20), Advice::Encode);
        assert_eq!(advice(&economy, 1000, 800 << 20), Advice::Plain, "the link turned out to be fast");
        assert_eq!(
            advice(&Economy::new(start, None, None), 1000, 800 << 20),
            Advice::Plain,
            "no sample on a fast link"
        );
    }

    #[test]
    fn busy_processors_are_not_taken_for_a_slow_link() {
        let at = |idle, all| Some(Processors { idle, all });
        let start = Instant::now();
        let advice = |processors| {
            let economy = Economy::new(start, at(1000, 5000), None);
            economy.sampled(Sample { ratio: 0.7, bytes_per_second: 400e6 });
            economy.advice(start + Duration::from_secs(1), 100 << 20, || processors)
        };
        assert_eq!(advice(at(1010, 5200)), Advice::Plain, "idle for a twentieth of the time");
        assert_eq!(advice(at(1100, 5200)), Advice::Encode, "idle for half of it");
        assert_eq!(advice(None), Advice::Encode);
        let stat = "cpu  10 1 20 300 5 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(Processors::parse(stat), at(305, 357));
        assert_eq!(Processors::parse("intr 1"), None);
    }
}
