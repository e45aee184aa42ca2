//! The page: one file, readable on a phone, in light and dark.

use super::tables::{self, Align, Table};
use super::{charts, verdict};
use crate::results::{Mode, Results};
use std::fmt::Write;

/// Text for an HTML element or a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // HTML has no form for control characters, and bidirectional overrides could reorder a reason's words.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                escaped.push('\u{fffd}')
            }
            c => escaped.push(c),
        }
    }
    escaped
}

pub(super) fn render(results: &Results) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Tapestry demonstration</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    page.push_str(&introduction(results));
    for table in tables::all(results) {
        let chart = match table.title {
            tables::BITS_PER_BYTE => charts::bits_per_byte(results),
            tables::RETENTION => charts::retention(results),
            tables::TIME_AND_BYTES => charts::timeline(results),
            _ => String::new(),
        };
        let _ =
            write!(page, "<section>\n<h2>{}</h2>\n<p class=\"note\">{}</p>\n", escape(table.title), escape(table.note));
        page.push_str(&chart);
        page.push_str(&html_table(&table));
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn introduction(results: &Results) -> String {
    let effect = results.effect();
    let mode = match results.mode {
        Mode::Full => "a real open-weights base and real texts",
        Mode::Quick => "quick mode: a tiny base and generated texts",
    };
    let took = tables::format_seconds(results.finished_at.since(results.started_at).as_secs_f64());
    let mut text = format!(
        "<h1>One Shared Base, {} Sovereign Models</h1>\n<p class=\"note\">Tapestry {}, {mode}. Began {}, took {took}, seed {}.</p>\n",
        results.honest_members().count(),
        escape(&results.version),
        results.started_at,
        results.seed
    );
    let _ = writeln!(
        text,
        "<p class=\"verdict {}\">{}</p>",
        if effect.is_shown { "good" } else { "bad" },
        escape(&verdict(results))
    );
    let verified = results.logs_verified();
    let logs = if verified { "Every role's log is verified." } else { "Not every role's log is verified." };
    let _ = writeln!(text, "<p class=\"verdict {}\">{logs}</p>", if verified { "good" } else { "bad" });
    text.push_str("<ul class=\"members\">");
    for member in &results.members {
        let faulty = if member.is_faulty { " (made to send poisoned weights)" } else { "" };
        let _ = write!(text, "<li><b>{}</b>: {}{faulty}</li>", escape(&member.title), escape(&member.texts));
    }
    text.push_str("</ul>\n");
    if !results.settings.is_empty() {
        let settings: Vec<String> = results.settings.iter().map(|(k, v)| escape(&format!("{k} {v}"))).collect();
        let _ = writeln!(
            text,
            "<p class=\"note\">Settings: {}. Charter <code>{}</code>.</p>",
            settings.join(", "),
            results.charter
        );
    }
    text
}

fn html_table(table: &Table) -> String {
    let class = |align: Align| if align == Align::Right { " class=\"number\"" } else { "" };
    let mut text = format!("<div class=\"scroll\"><table><caption>{}</caption>\n<thead><tr>", escape(table.title));
    for (heading, align) in &table.columns {
        let _ = write!(text, "<th scope=\"col\"{}>{}</th>", class(*align), escape(heading));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        text.push_str("<tr>");
        for (i, (cell, (_, align))) in row.iter().zip(&table.columns).enumerate() {
            let cell = escape(cell);
            let _ = match i {
                0 => write!(text, "<th scope=\"row\"{}>{cell}</th>", class(*align)),
                _ => write!(text, "<td{}>{cell}</td>", class(*align)),
            };
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    text
}

const STYLE: &str = include_str!("style.css");
