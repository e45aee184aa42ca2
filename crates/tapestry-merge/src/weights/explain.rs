//! Weight records as a table for people.

use super::WeightRecord;
use std::fmt::Write as _;

/// The weights of one merge, a line for each member, and a line that says how to read them.
#[must_use]
pub fn explain(weights: &[WeightRecord]) -> String {
    let has_community = weights.iter().any(|w| w.community.is_some());
    let has_tokens = weights.iter().any(|w| w.num_tokens.is_some());
    let width = weights.iter().map(|w| w.member.as_str().len()).max().unwrap_or(0).max(6);
    let mut text = format!("  {:<width$}  {:>7}  {:>7}  {:>7}", "member", "score", "base", "floor");
    if has_community {
        text.push_str("  own text     base");
    }
    if has_tokens {
        text.push_str("        tokens");
    }
    text.push_str("     raw  late  discount     cap    weight\n");
    for w in weights {
        let _ = write!(
            text,
            "  {:<width$}  {:>7.4}  {:>7.4}  {:>7.4}",
            w.member.as_str(),
            w.score_bpb,
            w.base_bpb,
            w.floor_bpb
        );
        match w.community {
            Some(community) => {
                let _ = write!(text, "  {:>8.4}  {:>7.4}", community.score_bpb, community.base_bpb);
            }
            None if has_community => text.push_str("         -        -"),
            None => {}
        }
        match w.num_tokens {
            Some(num_tokens) => {
                let _ = write!(text, "  {num_tokens:>12}");
            }
            None if has_tokens => text.push_str("             -"),
            None => {}
        }
        let mark = if w.is_capped { "  capped" } else { "" };
        let _ = writeln!(
            text,
            "  {:>6.4}  {:>4}  {:>8.4}  {:>6.4}  {:>8.6}{mark}",
            w.raw_weight, w.staleness, w.discount, w.cap, w.weight
        );
    }
    text.push_str(
        "Bits per byte, lower is better. weight = raw weight times the discount for lateness, divided by their sum, and none above the cap.\n",
    );
    text
}
