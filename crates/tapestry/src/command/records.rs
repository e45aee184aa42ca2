//! `tapestry charter records`: what members have decided, for the public: one page a decision, out of the log, with what is
//! needed to check that it is.
//!
//! Markdown for whoever archives, a static site for whoever reads. Every text in it comes from members and is escaped; there is
//! no script, and nothing is loaded from elsewhere.

use super::decide::describe_change;
use super::log;
use crate::files;
use crate::home::Home;
use crate::stores::Place;
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use tapestry_core::{Digest, PublicKey, Timestamp};
use tapestry_governance::{Choice, Governance, Proposal, Vote};
use tapestry_ledger::TreeHash;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};
use tapestry_store::{LogIndex, read_log};

/// A decision, as the log tells it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    number: usize,
    proposal_digest: Digest,
    proposal: Proposal,
    /// What it changes, term by term.
    changes: String,
    decides: Vec<String>,
    votes: Vec<(Timestamp, Vote)>,
    adopted: bool,
    required: u32,
    outcome: String,
    decided_at: Timestamp,
    charter_version: u32,
    /// The entries of the log that prove it: the proposal, each vote, the decision.
    entries: Vec<Proof>,
}

/// Where an entry is in the log, and the proof.
#[derive(Debug, Clone, Serialize)]
struct Proof {
    entry: u64,
    leaf_hash: TreeHash,
    inclusion: Vec<TreeHash>,
}

pub(crate) async fn publish(home: &Home, key: Option<PublicKey>, out: &Path) -> Result<usize> {
    ensure!(!out.exists(), "{} exists; give another --out", out.display());
    let key = log::founder(home, key).await?;
    let store = Place::of(home)?.log_to_read().await?;
    let content = read_log::<CoordinatorEvent>(&store, key)
        .await
        .context("decision records are made from a coordinator's log")?;
    let checkpoint = content.chain.sealed().context("the log is empty")?.clone();
    let mut state = Coordinator::new(key);
    let mut open: BTreeMap<Digest, (u64, Proposal, Governance)> = BTreeMap::new();
    let mut votes: BTreeMap<Digest, Vec<(u64, Timestamp, Vote)>> = BTreeMap::new();
    let mut records = vec![];
    for entry in &content.entries {
        match &entry.event {
            CoordinatorEvent::Proposed { proposal } => {
                let governance = state.governance().context("a proposal before there was a charter")?.clone();
                open.insert(proposal.digest()?, (entry.seq, proposal.document.clone(), governance));
            }
            CoordinatorEvent::Voted { vote } => {
                votes.entry(vote.document.proposal).or_default().push((entry.seq, entry.at, vote.document.clone()));
            }
            CoordinatorEvent::Decided { proposal: digest, adopted, required, reason } => {
                let (proposed, proposal, governance) = open.remove(digest).context("a decision on no proposal")?;
                let own = votes.remove(digest).unwrap_or_default();
                let numbers = std::iter::once(proposed).chain(own.iter().map(|(seq, ..)| *seq)).chain([entry.seq]);
                let size = checkpoint.checkpoint().size;
                let mut entries = vec![];
                for seq in numbers {
                    entries.push(prove(&content.index, seq, size).await?);
                }
                let kinds = governance.kinds_of(&proposal.change).unwrap_or_default();
                records.push(Record {
                    number: records.len() + 1,
                    proposal_digest: *digest,
                    changes: describe_change(&proposal.change, &governance)?,
                    decides: kinds.iter().map(ToString::to_string).collect(),
                    charter_version: governance.charter().document.version,
                    proposal,
                    votes: own.into_iter().map(|(_, at, vote)| (at, vote)).collect(),
                    adopted: *adopted,
                    required: *required,
                    outcome: reason.clone(),
                    decided_at: entry.at,
                    entries,
                });
            }
            _ => {}
        }
        state.apply(&entry.event).with_context(|| format!("log entry {} cannot follow", entry.seq))?;
    }
    let consortium = state.charter().context("no charter is in force there")?.document.consortium.clone();
    write(&consortium, &records, &checkpoint.to_string(), out)?;
    Ok(records.len())
}

async fn prove(index: &LogIndex, seq: u64, size: u64) -> Result<Proof> {
    let leaf = index.entries(seq - 1..seq).await?.context("the log has no such entry")?;
    let inclusion = index.inclusion(seq - 1, size).context("the log has no such entry")?;
    Ok(Proof { entry: seq, leaf_hash: TreeHash::of_leaf(&leaf[0]), inclusion })
}

/// All files, or none.
fn write(consortium: &str, records: &[Record], checkpoint: &str, out: &Path) -> Result<()> {
    let mut name = out.file_name().context("give the name of a folder as --out")?.to_owned();
    name.push(".part");
    let partial = out.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let put = |name: &str, content: &str| files::write_atomic(&partial.join(name), content.as_bytes());
    for record in records {
        let name = format!("{:04}", record.number);
        put(&format!("{name}.md"), &markdown(record)?)?;
        put(&format!("{name}.html"), &page(&format!("Decision {}", record.number), &body(record)?))?;
        let proof = json!({ "record": record, "checkpoint": checkpoint });
        put(&format!("{name}.json"), &serde_json::to_string_pretty(&proof)?)?;
    }
    put("checkpoint", checkpoint)?;
    put("index.html", &page(&format!("Decisions of {consortium}"), &overview(consortium, records)?))?;
    fs::rename(&partial, out).with_context(|| format!("cannot make {}", out.display()))
}

const fn outcome(record: &Record) -> &'static str {
    if record.adopted { "adopted" } else { "not adopted" }
}

const HOW_TO_CHECK: &str = "Each entry is a leaf of the Merkle tree (RFC 6962) whose root the file `checkpoint` signs; the file \
    with the same name and `.json` has the hashes of the path. With a copy of the log: `tapestry log verify EXPORT`, then \
    `tapestry log prove ENTRY --export EXPORT`.";

fn markdown(record: &Record) -> Result<String> {
    let mut text = String::new();
    let proposal = &record.proposal;
    writeln!(text, "# Decision {}: {}\n", record.number, outcome(record))?;
    writeln!(text, "- Proposed by: {}, {}", proposal.member, proposal.made_at)?;
    writeln!(text, "- Decided: {}, under version {} of the charter", record.decided_at, record.charter_version)?;
    writeln!(text, "- Decides: {}", record.decides.join(", "))?;
    writeln!(text, "- Outcome: {}\n", record.outcome)?;
    writeln!(text, "## What changes\n\n{}", quoted(&record.changes))?;
    writeln!(text, "## Rationale\n\n{}", quoted(&proposal.rationale))?;
    writeln!(text, "## Parties consulted\n")?;
    for party in &proposal.consulted {
        writeln!(text, "{}", quoted(party).trim_end())?;
    }
    if proposal.consulted.is_empty() {
        writeln!(text, "None named.")?;
    }
    for (title, choices) in [("Votes", &[Choice::Yes, Choice::Abstain][..]), ("Dissent", &[Choice::No][..])] {
        writeln!(text, "\n## {title}\n")?;
        let mut is_empty = true;
        for (at, vote) in record.votes.iter().filter(|(_, vote)| choices.contains(&vote.choice)) {
            is_empty = false;
            writeln!(text, "- {} ({at}): {}", vote.member, vote.choice)?;
            if !vote.reason.trim().is_empty() {
                writeln!(text, "{}", quoted(&vote.reason).trim_end())?;
            }
        }
        if is_empty {
            writeln!(text, "None.")?;
        }
    }
    let entries: Vec<_> = record.entries.iter().map(|proof| proof.entry.to_string()).collect();
    writeln!(
        text,
        "\n## Proof\n\nProposal `{}`; log entries {}. {HOW_TO_CHECK}",
        record.proposal_digest,
        entries.join(", ")
    )?;
    Ok(text)
}

/// Somebody's words, as a block in which nothing is markup.
fn quoted(text: &str) -> String {
    text.trim().lines().fold(String::new(), |block, line| format!("{block}    {line}\n"))
}

fn body(record: &Record) -> Result<String> {
    let mut text = String::new();
    let proposal = &record.proposal;
    writeln!(text, "<p><a href=\"index.html\">All decisions</a></p>")?;
    writeln!(
        text,
        "<h1>Decision {}: <span class=\"{}\">{}</span></h1>",
        record.number,
        outcome(record).replace(' ', "-"),
        outcome(record)
    )?;
    writeln!(text, "<dl><dt>Proposed by</dt><dd>{}, {}</dd>", proposal.member, proposal.made_at)?;
    writeln!(
        text,
        "<dt>Decided</dt><dd>{}, under version {} of the charter</dd>",
        record.decided_at, record.charter_version
    )?;
    writeln!(text, "<dt>Decides</dt><dd>{}</dd>", escape(&record.decides.join(", ")))?;
    writeln!(text, "<dt>Outcome</dt><dd>{}</dd></dl>", escape(&record.outcome))?;
    writeln!(text, "<h2>What changes</h2><pre>{}</pre>", escape(record.changes.trim()))?;
    writeln!(text, "<h2>Rationale</h2><blockquote>{}</blockquote>", escape(proposal.rationale.trim()))?;
    writeln!(text, "<h2>Parties consulted</h2><ul>")?;
    for party in &proposal.consulted {
        writeln!(text, "<li>{}</li>", escape(party))?;
    }
    writeln!(text, "</ul>{}", if proposal.consulted.is_empty() { "<p>None named.</p>" } else { "" })?;
    writeln!(
        text,
        "<h2>Votes and dissent</h2><table><tr><th>member</th><th>vote</th><th>reason</th><th>when</th></tr>"
    )?;
    for (at, vote) in &record.votes {
        let reason = escape(vote.reason.trim());
        writeln!(
            text,
            "<tr class=\"{0}\"><td>{1}</td><td>{0}</td><td>{reason}</td><td>{at}</td></tr>",
            vote.choice, vote.member
        )?;
    }
    let entries: Vec<_> = record.entries.iter().map(|proof| proof.entry.to_string()).collect();
    writeln!(
        text,
        "</table><h2>Proof</h2><p>Proposal <code>{}</code>; log entries {}.</p>",
        record.proposal_digest,
        entries.join(", ")
    )?;
    // Every other piece between backticks is a name or a command.
    let pieces = HOW_TO_CHECK.split('`').map(escape).enumerate();
    let how_to_check: String =
        pieces.map(|(i, piece)| if i % 2 == 1 { format!("<code>{piece}</code>") } else { piece.to_string() }).collect();
    writeln!(
        text,
        "<p>{how_to_check}</p><p><a href=\"{:04}.json\">The proof</a> · <a href=\"checkpoint\">The checkpoint</a></p>",
        record.number
    )?;
    Ok(text)
}

fn overview(consortium: &str, records: &[Record]) -> Result<String> {
    let mut text = format!("<h1>Decisions of {}</h1>\n", escape(consortium));
    writeln!(text, "<table><tr><th></th><th>decides</th><th>by</th><th>outcome</th><th>when</th></tr>")?;
    for record in records {
        writeln!(
            text,
            "<tr><td><a href=\"{0:04}.html\">Decision {0}</a></td><td>{1}</td><td>{2}</td><td class=\"{3}\">{4}</td><td>{5}</td></tr>",
            record.number,
            escape(&record.decides.join(", ")),
            record.proposal.member,
            outcome(record).replace(' ', "-"),
            outcome(record),
            record.decided_at
        )?;
    }
    writeln!(text, "</table>{}", if records.is_empty() { "<p>Nothing has been decided yet.</p>" } else { "" })?;
    Ok(text)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
    h1{font-size:1.6rem}h2{font-size:1.1rem;margin-top:2rem}pre,blockquote{white-space:pre-wrap;background:#f5f5f2;padding:.8rem;margin:0}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.4rem .8rem .4rem 0;border-bottom:1px solid #ddd;vertical-align:top}\
    dt{float:left;clear:left;width:8rem;color:#666}dd{margin-left:9rem}.adopted{color:#17642f}.not-adopted,.no td{color:#8a1f11}code{word-break:break-all}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_members_write_is_text_and_never_markup() {
        assert_eq!(escape("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
        assert_eq!(quoted("# a title\n- a list"), "    # a title\n    - a list\n");
    }
}
