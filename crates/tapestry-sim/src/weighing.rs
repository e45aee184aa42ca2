//! The weights that a charter asks for, found another way than by the code under test: the formulas of docs/merge-policy.md, written down
//! again, and the cap by halving an interval instead of by filling up.

use tapestry_merge::weights::{WeightRecord, Weighting};

/// The shares that follow from what the records say was measured.
pub(crate) fn shares(weighting: &Weighting, cap: f64, staleness_exponent: f64, records: &[WeightRecord]) -> Vec<f64> {
    let saved = |record: &WeightRecord| 1.0 - record.score_bpb / record.base_bpb;
    let own = |record: &WeightRecord| record.community.map_or(0.0, |own| 1.0 - own.score_bpb / own.base_bpb);
    #[expect(clippy::cast_precision_loss, reason = "a proportion")]
    let score = |record: &WeightRecord| match weighting {
        Weighting::Uniform(_) => 0.0,
        Weighting::DataProportional(_) => (record.num_tokens.unwrap_or(0).max(1) as f64).ln(),
        Weighting::QualityWeighted(terms) => saved(record) / terms.temperature,
        Weighting::CulturallyAware(terms) => {
            let share = terms.community_share;
            ((1.0 - share) * saved(record) + share * own(record)) / terms.temperature
        }
    };
    let best = records.iter().map(score).fold(f64::NEG_INFINITY, f64::max);
    let discounted = |record: &WeightRecord| {
        let discount = (-staleness_exponent * f64::from(record.staleness).ln_1p()).exp();
        (score(record) - best).exp().max(1e-100) * discount
    };
    let raw: Vec<f64> = records.iter().map(discounted).collect();
    // The one factor for which what the cap leaves sums to one.
    let sum = |factor: f64| raw.iter().map(|raw| (factor * raw).min(cap)).sum::<f64>();
    let (mut low, mut high) = (-300.0_f64, 300.0_f64);
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if sum(middle.exp()) < 1.0 { low = middle } else { high = middle }
    }
    raw.iter().map(|raw| (high.exp() * raw).min(cap)).collect()
}
