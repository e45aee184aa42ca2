//! The report on the terminal and as a page.

use crate::fixture::results;
use tapestry_demo::report::{html_report, terminal_report};
use tapestry_round::{RefusalReason, Verdict};

const GOLDEN: &str = include_str!("terminal.txt");

#[test]
fn the_terminal_report_is_the_golden_one() {
    let found = terminal_report(&results());
    if found != GOLDEN {
        let path = std::env::temp_dir().join("tapestry-terminal.txt");
        std::fs::write(&path, &found).unwrap();
        panic!("differs from tests/demo/terminal.txt; what was found is in {}:\n{found}", path.display());
    }
}

/// Results in which everything that a person or member may write is hostile.
fn hostile(text: &str) -> tapestry_demo::results::Results {
    let mut results = results();
    for member in &mut results.members {
        member.title = text.into();
        member.texts = text.into();
    }
    results.settings.insert(text.into(), text.into());
    results.version = text.into();
    for model in &mut results.models {
        model.path = Some(text.into());
    }
    for log in &mut results.logs {
        log.problem = Some(text.into());
    }
    let mut verdicts = results.rounds[0].outcome.verdicts.iter_mut();
    *verdicts.next().unwrap().1 = Verdict::Declined { reason: text.into() };
    *verdicts.next().unwrap().1 = Verdict::Refused { reasons: vec![RefusalReason::Malformed { what: text.into() }] };
    drop(verdicts);
    results.rounds[1].outcome.result = tapestry_round::RoundResult::Abandoned { reason: text.into() };
    results
}

#[test]
fn nothing_in_the_page_comes_from_elsewhere_or_is_taken_as_markup() {
    let attack = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' &amp; \u{202e}";
    let page = html_report(&hostile(attack));
    for forbidden in
        ["<script", "<img", "\" onload", "&amp; ", "\u{202e}", "http://", "https://", "url(", "@import", "src="]
    {
        let shown = page.find(forbidden).map(|at| &page[at.saturating_sub(60)..(at + 60).min(page.len())]);
        // An escaped `src=` is text, which is where the attack belongs.
        assert!(shown.is_none_or(|s| forbidden == "src=" && s.contains("&lt;img src=")), "{forbidden}: {shown:?}");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("&amp;amp;"));
}

#[test]
fn tags_of_the_page_are_balanced() {
    let page = html_report(&hostile("<b>&"));
    let mut open = Vec::new();
    for tag in page.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0) {
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('!') || name == "meta" || tag.ends_with('/') {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "</{name}>");
        } else {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn every_chart_has_a_title_and_every_id_is_used_once() {
    let page = html_report(&results());
    let charts = page.matches("<svg ").count();
    assert_eq!(charts, 6, "three members, general English, retention, timeline");
    assert_eq!(page.matches("role=\"img\" aria-labelledby=").count(), charts);
    let mut ids: Vec<&str> = page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), all), (charts * 3, charts * 3));
}

#[test]
fn the_terminal_gets_printable_ascii_within_a_hundred_columns() {
    for results in
        [results(), hostile("a\u{1b}[2J 東京 \r\n and a reason that goes on for longer than a line can hold, and on")]
    {
        for line in terminal_report(&results).lines() {
            assert!(line.len() <= 100, "{} columns: {line}", line.len());
            assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
        }
    }
}

#[test]
fn a_wide_consortium_is_cut_into_parts_that_fit() {
    let mut wide = results();
    let template = wide.members[0].clone();
    for i in 0..20 {
        let mut member = template.clone();
        member.name = format!("a-member-with-a-long-name-{i}").parse().unwrap();
        wide.members.push(member);
    }
    let text = terminal_report(&wide);
    assert!(text.lines().all(|line| line.len() <= 100));
    assert!((0..20).all(|i| text.contains(&format!("a-member-with-a-long-name-{i}"))));
}

#[test]
fn an_interrupted_run_still_has_a_report() {
    let mut bare = results();
    bare.measurements.clear();
    bare.rounds.clear();
    bare.phases.clear();
    bare.processes.clear();
    bare.logs.clear();
    bare.models.clear();
    let text = terminal_report(&bare);
    assert!(text.contains("NOT better") && text.contains("NOT every role's log"), "{text}");
    assert!(html_report(&bare).contains("</html>"));
}
