//! A run's results for people: text for a terminal and a self-contained HTML page.
//!
//! Both show the same tables (`tables`); the page adds charts. Nothing is computed here that is not a sum or a share of
//! what [`Results`] holds. The page loads nothing from anywhere and runs no script.

mod charts;
mod html;
mod tables;
mod terminal;

use crate::atomic::{self, AtomicError};
use crate::results::Results;
use std::path::Path;

/// The results as plain ASCII text of at most 100 columns.
#[must_use]
pub fn terminal_report(results: &Results) -> String {
    terminal::render(results)
}

/// The results as one HTML page.
#[must_use]
pub fn html_report(results: &Results) -> String {
    html::render(results)
}

/// Writes the HTML page; a crash leaves the old file or the new one, never half of it.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_html_report(results: &Results, path: &Path) -> Result<(), AtomicError> {
    atomic::write(path, html_report(results).as_bytes())
}

/// What the run shows, in a sentence or two.
fn verdict(results: &Results) -> String {
    let effect = results.effect();
    let num_rounds = results.rounds.len();
    let rounds = if num_rounds == 1 { "1 round".to_owned() } else { format!("{num_rounds} rounds") };
    let percent = |change: f64| format!("{:+.1}%", change * 100.0);
    let shown = |change: Option<f64>| change.map_or("not measured".to_owned(), percent);
    let changes: Vec<String> = results
        .honest_members()
        .map(|m| format!("{} {}", m.name, shown(effect.member_changes.get(&m.name).copied().flatten())))
        .chain([format!("general English {}", shown(effect.general_english_change))])
        .collect();
    let judgement = if effect.is_shown {
        "the Shared Base is better for every member, and general English is not harmed (at most 3% worse)"
    } else {
        "the Shared Base is NOT better for every member with general English unharmed (at most 3% worse)"
    };
    format!("After {rounds} {judgement}. Bits per byte against the adopted base: {}.", changes.join(", "))
}
