//! Samples that are not cut: token sequences of which the model has to predict a part, packed into windows.

use crate::TrainError;
use crate::random::Random;
use tapestry_model::Batch;

/// A sequence of tokens, with which of them the model has to predict.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) tokens: Vec<u32>,
    /// One for each token; that of the first is of no use.
    pub(crate) counts: Vec<bool>,
}

impl Sample {
    /// Positions that it takes in a window: its last token is only predicted.
    pub(crate) const fn len(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Whether there is something to predict.
    pub(crate) fn has_answer(&self) -> bool {
        self.counts.iter().skip(1).any(|counts| *counts)
    }
}

/// Windows under construction.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    segments: Vec<u32>,
    counts: Vec<bool>,
    num_segments: u32,
}

impl Packing {
    /// The room left in the window that is open.
    fn room(&self, window: usize) -> usize {
        window - self.tokens.len() % window
    }

    /// Whole windows, the open one included.
    pub(crate) fn num_windows(&self, window: usize) -> usize {
        self.tokens.len().div_ceil(window)
    }

    /// Whether a sample fits into `num_windows`.
    pub(crate) fn has_room(&self, sample: &Sample, window: usize, num_windows: usize) -> bool {
        let is_open = !self.tokens.len().is_multiple_of(window);
        self.num_windows(window) < num_windows || (is_open && sample.len() <= self.room(window))
    }

    /// Puts a sample into the open window, or into the next where it does not fit; returns the positions that it takes.
    pub(crate) fn push(&mut self, sample: &Sample, window: usize) -> std::ops::Range<usize> {
        let is_open = !self.tokens.len().is_multiple_of(window);
        if is_open && sample.len() > self.room(window) {
            self.close(window);
        }
        let first = self.tokens.len();
        let n = sample.len();
        self.tokens.extend(&sample.tokens[..n]);
        self.targets.extend(&sample.tokens[1..]);
        self.counts.extend(&sample.counts[1..]);
        self.segments.extend(std::iter::repeat_n(self.num_segments, n));
        self.num_segments += 1;
        first..first + n
    }

    /// Fills the open window with what does not count.
    fn close(&mut self, window: usize) {
        let count = (window - self.tokens.len() % window) % window;
        self.tokens.extend(std::iter::repeat_n(0, count));
        self.targets.extend(std::iter::repeat_n(0, count));
        self.counts.extend(std::iter::repeat_n(false, count));
        self.segments.extend(std::iter::repeat_n(self.num_segments, count));
        self.num_segments += 1;
    }

    /// The batch of all windows.
    pub(crate) fn finish(mut self, window: usize) -> Result<Batch, TrainError> {
        self.close(window);
        let num_windows = self.tokens.len() / window;
        Ok(Batch::new(num_windows, window, self.tokens, self.targets, self.segments, self.counts)?)
    }
}

/// Indices of items in passes, each in an order of its own that the seed decides.
#[derive(Debug)]
pub(crate) struct Passes {
    random: Random,
    order: Vec<usize>,
    next: usize,
}

impl Passes {
    pub(crate) fn new(num_items: usize, seed: u64) -> Self {
        Self { random: Random::new(seed), order: (0..num_items).collect(), next: usize::MAX }
    }

    /// The next item, without taking it.
    pub(crate) fn peek(&mut self) -> usize {
        if self.next >= self.order.len() {
            self.random.shuffle(&mut self.order);
            self.next = 0;
        }
        self.order[self.next]
    }

    pub(crate) const fn take(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(first: u32, count: u32) -> Sample {
        Sample { tokens: (first..first + count).collect(), counts: (0..count).map(|i| i > 1).collect() }
    }

    #[test]
    fn samples_are_packed_whole_and_do_not_run_into_each_other() {
        let mut packing = Packing::default();
        assert_eq!(packing.push(&sample(10, 4), 5), 0..3);
        assert!(packing.has_room(&sample(0, 3), 5, 1) && !packing.has_room(&sample(0, 4), 5, 1));
        assert_eq!(packing.push(&sample(20, 4), 5), 5..8, "it did not fit any more");
        assert_eq!(packing.push(&sample(30, 3), 5), 8..10);
        assert_eq!(packing.num_windows(5), 2);
        let batch = packing.finish(5).expect("a batch");
        assert_eq!((batch.num_windows(), batch.num_counted()), (2, 2 + 2 + 1));
        let expected = [false, true, true, false, false, false, true, true, false, true];
        assert_eq!(batch.counts(), expected);
    }

    #[test]
    fn a_pass_gives_each_item_once() {
        let mut passes = Passes::new(5, 3);
        let mut seen: Vec<usize> = (0..5)
            .map(|_| {
                let at = passes.peek();
                passes.take();
                at
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }
}
