//! From logits to the next token.

use crate::ModelError;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; zero takes the most probable token, the first of equals.
    pub temperature: f32,
    /// Only the most probable tokens that together have this probability are drawn from; 1 is all.
    ///
    /// # Source
    /// Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    pub top_p: f32,
    /// Decides every draw. Sequences of a batch draw independently, and each as it would alone.
    pub seed: u64,
}

impl Default for Sampling {
    /// The most probable token.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ModelError::Sampling`] naming the one that is impossible.
    pub fn check(&self) -> Result<(), ModelError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(ModelError::Sampling {
                setting: "temperature",
                expected: "0 or more",
                found: self.temperature,
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(ModelError::Sampling { setting: "top-p", expected: "above 0, at most 1", found: self.top_p });
        }
        Ok(())
    }
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    state: u64,
}

/// A token with the logarithm of its probability under the model, before temperature and top-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

impl Sampler {
    /// The sampler of sequence `index` of a batch.
    pub(crate) fn new(sampling: Sampling, index: u64) -> Self {
        let mut sampler = Self { sampling, state: sampling.seed };
        // The stream of a sequence must not be that of its neighbour one step later.
        sampler.state = sampler.next() ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03);
        sampler
    }

    /// SplitMix64.
    ///
    /// # Source
    /// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", figure 17.
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept exactly")]
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The next token.
    ///
    /// # Errors
    /// [`ModelError::LogitsNotFinite`].
    #[expect(clippy::cast_possible_truncation, reason = "ids have 32 bits; log-probabilities are as exact as logits")]
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Result<Drawn, ModelError> {
        let mut best = 0;
        for (id, logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return Err(ModelError::LogitsNotFinite { token: id as u32, value: *logit });
            }
            if *logit > logits[best] {
                best = id;
            }
        }
        let largest = f64::from(logits[best]);
        let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        let drawn =
            |id: usize| Drawn { token: id as u32, log_prob: (f64::from(logits[id]) - largest - total.ln()) as f32 };
        let Sampling { temperature, top_p, .. } = self.sampling;
        if temperature <= 0.0 {
            return Ok(drawn(best));
        }
        let heat = |logit: f32| ((f64::from(logit) - largest) / f64::from(temperature)).exp();
        let mut weights: Vec<(usize, f64)> = logits.iter().map(|logit| heat(*logit)).enumerate().collect();
        if top_p < 1.0 {
            // Stable, so that equals stay in the order of their ids.
            weights.sort_by(|a, b| b.1.total_cmp(&a.1));
            let whole: f64 = weights.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let reached = |(_, weight): &(usize, f64)| {
                sum += weight;
                sum >= whole * f64::from(top_p)
            };
            let kept = weights.iter().position(reached).map_or(weights.len(), |at| at + 1);
            weights.truncate(kept);
        }
        let whole: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.uniform() * whole;
        for (id, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return Ok(drawn(*id));
            }
        }
        // Rounding may leave a little at the end.
        Ok(drawn(weights.last().map_or(best, |(id, _)| *id)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::cast_precision_loss, reason = "tests")]
    use super::*;

    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f32> {
        let mut counts = vec![0; logits.len()];
        for index in 0..20_000 {
            counts[Sampler::new(sampling, index).draw(logits).unwrap().token as usize] += 1;
        }
        counts.iter().map(|count| *count as f32 / 20_000.0).collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.015), "{found:?} {expected:?}");
    }

    #[test]
    fn draws_follow_temperature_and_top_p() {
        let logits = [1.0_f32, 3.0, 2.0, 0.0].map(|p: f32| (p + 0.01).ln());
        let sampling = |temperature, top_p| Sampling { temperature, top_p, seed: 7 };
        close(&shares(sampling(1.0, 1.0), &logits), &[1.0 / 6.0, 0.5, 1.0 / 3.0, 0.0]);
        // Squared probabilities at half the temperature.
        close(&shares(sampling(0.5, 1.0), &logits), &[1.0 / 14.0, 9.0 / 14.0, 4.0 / 14.0, 0.0]);
        close(&shares(sampling(1.0, 0.8), &logits), &[0.0, 0.6, 0.4, 0.0]);
        close(&shares(sampling(1.0, 0.1), &logits), &[0.0, 1.0, 0.0, 0.0]);
        close(&shares(sampling(0.0, 1.0), &logits), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_log_probability_is_the_models_whatever_the_temperature() {
        let logits = [0.0, 2.0, -1.0];
        let total = logits.iter().map(|x: &f32| x.exp()).sum::<f32>().ln();
        for temperature in [0.0, 0.3, 2.0] {
            let drawn = Sampler::new(Sampling { temperature, ..Sampling::default() }, 0).draw(&logits).unwrap();
            assert!((drawn.log_prob - (logits[drawn.token as usize] - total)).abs() < 1e-6);
        }
    }

    #[test]
    fn what_cannot_be_drawn_from_is_refused() {
        let error = Sampler::new(Sampling::default(), 0).draw(&[0.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, ModelError::LogitsNotFinite { token: 1, .. }), "{error}");
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampling { temperature, top_p, seed: 0 }.check().is_err());
        }
    }
}
