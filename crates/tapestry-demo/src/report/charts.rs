//! Charts as SVG inside the page: no script, no font and no image from elsewhere.
//!
//! Colours are classes of the page's style sheet, so that the charts follow light and dark. Every chart has a title and
//! a description, and every mark its own title with the number.

use super::html::escape;
use super::tables::{format_seconds, roles};
use crate::results::{ModelName, Phase, Results, Role, TextName};
use std::fmt::Write;
use tapestry_core::{MemberName, Timestamp};

/// A series of a line chart: its name, its style class, and for each tick of the x axis a value or nothing.
struct Series {
    label: String,
    class: &'static str,
    values: Vec<Option<f64>>,
}

/// The frame of an SVG: `id` must be unique in the page.
fn svg(id: &str, class: &str, size: (f64, f64), title: &str, description: &str, body: &str) -> String {
    let (width, height) = size;
    format!(
        "<svg id=\"{id}\" class=\"{class}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>{body}</svg>\n",
        escape(title),
        escape(description)
    )
}

/// Bits per byte over the run: one small chart per member's text, and one for general English.
pub(super) fn bits_per_byte(results: &Results) -> String {
    let mut charts = String::new();
    for member in results.honest_members() {
        let text = TextName::HeldOut { member: member.name.clone() };
        charts.push_str(&bpb_chart(results, &text, &format!("{}: {}", member.title, member.texts), Some(&member.name)));
    }
    charts.push_str(&bpb_chart(results, &TextName::GeneralEnglish, "General English", None));
    format!("<div class=\"grid\">{charts}</div>\n")
}

fn bpb_chart(results: &Results, text: &TextName, title: &str, member: Option<&MemberName>) -> String {
    let rounds: Vec<u32> = results.round_numbers().collect();
    let bpb = |model: &ModelName| results.bpb(model, text);
    let base = bpb(&ModelName::AdoptedBase);
    let shared = rounds.iter().map(|round| bpb(&ModelName::SharedBase { round: *round }));
    let mut ticks = vec!["base".to_owned()];
    ticks.extend(rounds.iter().map(|round| format!("round {round}")));
    ticks.push("sovereign".to_owned());
    let none = [None];
    let label = "Shared Base".to_owned();
    let mut series =
        vec![Series { label, class: "shared", values: [base].into_iter().chain(shared).chain(none).collect() }];
    if let Some(member) = member {
        let own = rounds.iter().map(|round| bpb(&ModelName::OwnCpt { member: member.clone(), round: *round }));
        let label = "own CPT".to_owned();
        series.push(Series { label, class: "own", values: none.into_iter().chain(own).chain(none).collect() });
        let mut values = vec![None; rounds.len() + 1];
        values.push(bpb(&ModelName::Sovereign { member: member.clone() }));
        series.push(Series { label: "Sovereign Model".to_owned(), class: "sovereign", values });
    } else {
        ticks.pop();
        series[0].values.pop();
    }
    let id = format!("bpb-{}", member.map_or("general-english", MemberName::as_str));
    line_chart(&id, title, &ticks, &series)
}

/// A line chart of bits per byte. Empty where there is no value at all.
fn line_chart(id: &str, title: &str, ticks: &[String], series: &[Series]) -> String {
    const SIZE: (f64, f64) = (340.0, 230.0);
    const LEFT: f64 = 46.0;
    const RIGHT: f64 = 32.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 44.0;
    let values: Vec<f64> = series.iter().flat_map(|s| s.values.iter().flatten().copied()).collect();
    let (min, max) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
    if !(min.is_finite() && max.is_finite()) {
        return String::new();
    }
    let pad = ((max - min) * 0.12).max(max.abs() * 0.002).max(1e-6);
    let (low, high) = (min - pad, max + pad);
    let step = (SIZE.0 - LEFT - RIGHT) / (as_f64(ticks.len()) - 1.0).max(1.0);
    let x = |i: usize| LEFT + step * as_f64(i);
    let y = |value: f64| TOP + (high - value) / (high - low) * (SIZE.1 - TOP - BOTTOM);

    let mut body = format!("<text class=\"head\" x=\"0\" y=\"14\">{}</text>", escape(title));
    for i in 0..=3 {
        let value = low + (high - low) * f64::from(i) / 3.0;
        let (at, right) = (y(value), SIZE.0 - RIGHT);
        let _ = write!(body, "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ = write!(body, "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{value:.3}</text>", LEFT - 5.0, at + 4.0);
    }
    for (i, tick) in ticks.iter().enumerate() {
        let _ =
            write!(body, "<text class=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>", x(i), SIZE.1 - 28.0, escape(tick));
    }
    let mut legend_x = LEFT;
    for s in series {
        let points: Vec<(f64, f64, f64)> =
            s.values.iter().enumerate().filter_map(|(i, v)| v.map(|v| (x(i), y(v), v))).collect();
        let line: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(body, "<polyline class=\"line {}\" points=\"{}\"/>", s.class, line.join(" "));
        for (x, y, value) in &points {
            let title = escape(&format!("{}: {value:.4} bits per byte", s.label));
            let _ = write!(
                body,
                "<circle class=\"dot {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{title}</title></circle>",
                s.class
            );
        }
        let bottom = SIZE.1 - 6.0;
        let _ =
            write!(body, "<circle class=\"dot {}\" cx=\"{legend_x:.1}\" cy=\"{:.1}\" r=\"4\"/>", s.class, bottom - 4.0);
        let _ = write!(body, "<text x=\"{:.1}\" y=\"{bottom:.1}\">{}</text>", legend_x + 8.0, escape(&s.label));
        legend_x += 26.0 + 6.4 * as_f64(s.label.len());
    }
    let said = |s: &Series| {
        let values: Vec<String> = s.values.iter().flatten().map(|v| format!("{v:.4}")).collect();
        format!("{}: {}", s.label, values.join(", "))
    };
    let description =
        format!("Bits per byte, lower is better. {}.", series.iter().map(said).collect::<Vec<_>>().join(". "));
    svg(id, "small", SIZE, title, &description, &body)
}

/// Retention as bars: for each member a bar per round.
pub(super) fn retention(results: &Results) -> String {
    const WIDTH: f64 = 640.0;
    const LEFT: f64 = 120.0;
    const BAR: f64 = 18.0;
    let found: Vec<_> =
        results.retention().into_iter().filter_map(|r| Some((r.member, r.round, r.retention?))).collect();
    if found.is_empty() {
        return String::new();
    }
    let largest = found.iter().fold(1.0_f64, |m, (_, _, share)| m.max(*share));
    let smallest = found.iter().fold(0.0_f64, |m, (_, _, share)| m.min(*share));
    let scale = (WIDTH - LEFT - 60.0) / (largest - smallest);
    let zero = LEFT - smallest * scale;
    let mut body = String::new();
    let mut y = 8.0;
    let mut before = None;
    for (member, round, share) in &found {
        if before.is_some_and(|b: &MemberName| b != member) {
            y += 8.0;
        }
        before = Some(member);
        let (from, to) = (zero.min(zero + share * scale), zero.max(zero + share * scale));
        let label = format!("{member}, round {round}");
        let percent = format!("{:.0}%", share * 100.0);
        let _ =
            write!(body, "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>", LEFT - 8.0, y + 13.0, escape(&label));
        let _ = write!(
            body,
            "<rect class=\"bar\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"><title>{}: {percent}</title></rect>",
            (to - from).max(1.0),
            escape(&label)
        );
        let _ = write!(body, "<text x=\"{:.1}\" y=\"{:.1}\">{percent}</text>", to + 6.0, y + 13.0);
        y += BAR + 4.0;
    }
    for share in [0.0, 1.0] {
        let at = zero + share * scale;
        let _ = write!(body, "<line class=\"rule\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"2\" y2=\"{y:.1}\"/>");
        let _ = write!(body, "<text class=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{:.0}%</text>", y + 13.0, share * 100.0);
    }
    let said: Vec<String> =
        found.iter().map(|(m, round, share)| format!("{m} round {round}: {:.0}%", share * 100.0)).collect();
    let chart = svg("retention", "wide", (WIDTH, y + 20.0), "Retention by member and round", &said.join(", "), &body);
    format!("<div class=\"scroll\">{chart}</div>\n")
}

/// What each process did when: a row per role, a bar per phase.
pub(super) fn timeline(results: &Results) -> String {
    const WIDTH: f64 = 900.0;
    const LEFT: f64 = 110.0;
    const ROW: f64 = 26.0;
    let total = results.finished_at.since(results.started_at).as_secs_f64().max(1e-3);
    let scale = (WIDTH - LEFT - 20.0) / total;
    let at = |time: Timestamp| LEFT + time.since(results.started_at).as_secs_f64().min(total) * scale;
    let rows: Vec<Role> =
        roles(results).into_iter().filter(|role| results.phases.iter().any(|p| p.role == *role)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let bottom = 6.0 + ROW * as_f64(rows.len());
    let mut body = String::new();
    let tick = tick_seconds(total);
    let mut seconds = 0.0;
    while seconds <= total {
        let x = LEFT + seconds * scale;
        let _ = write!(body, "<line class=\"rule\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{bottom:.1}\"/>");
        let label = if total < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) };
        let label = if total >= 120.0 && tick < 60.0 { format!("{:.1} min", seconds / 60.0) } else { label };
        let _ = write!(body, "<text class=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", bottom + 16.0);
        seconds += tick;
    }
    for (i, role) in rows.iter().enumerate() {
        let y = 6.0 + ROW * as_f64(i);
        let _ = write!(
            body,
            "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 15.0,
            escape(&role.to_string())
        );
        for phase in results.phases.iter().filter(|p| p.role == *role) {
            let x = at(phase.started_at);
            let width = (phase.seconds * scale).clamp(1.0, (WIDTH - 20.0 - x).max(1.0));
            let round = phase.round.map_or(String::new(), |round| format!(", round {round}"));
            let title = format!("{role}: {}{round}, {}", phase.phase, format_seconds(phase.seconds));
            let _ = write!(
                body,
                "<rect class=\"phase {}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                phase.phase,
                ROW - 6.0,
                escape(&title)
            );
        }
    }
    let description = "One row per process, one bar per stretch of work; the table of time and bytes has the numbers.";
    let chart = svg("timeline", "wide", (WIDTH, bottom + 24.0), "Timeline of the processes", description, &body);
    let used = Phase::ALL.into_iter().filter(|phase| results.phases.iter().any(|p| p.phase == *phase));
    let legend: String = used.map(|phase| format!("<li><span class=\"key {phase}\"></span>{phase}</li>")).collect();
    format!("<div class=\"scroll\">{chart}</div>\n<ul class=\"legend\">{legend}</ul>\n")
}

/// A step of the time axis that gives at most ten ticks.
fn tick_seconds(total: f64) -> f64 {
    let steps = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
    steps.into_iter().find(|step| total / step <= 10.0).unwrap_or(total / 10.0)
}

fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a chart has few marks"))
}
