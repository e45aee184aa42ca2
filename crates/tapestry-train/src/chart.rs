//! A chart of the losses, as a file that any browser shows.

use crate::metrics::StepMetrics;
use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
/// More points than a chart of this width shows.
const MAX_POINTS: usize = 1500;

/// Training and validation loss over the updates, as SVG.
pub(crate) fn svg(title: &str, unit: &str, steps: &[StepMetrics], validation: &[(u64, f64)]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^52")]
    let point = |(step, loss): (u64, f64)| (step as f64, loss);
    let trained: Vec<(f64, f64)> = thinned(steps).into_iter().map(point).collect();
    let measured: Vec<(f64, f64)> = validation.iter().copied().map(point).collect();
    let all = || trained.iter().chain(&measured);
    let last = all().map(|(step, _)| *step).fold(1.0, f64::max);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
    let (low, high) = if low < high { (low, high) } else { (low.min(1e9) - 0.5, low.min(1e9) + 0.5) };
    let y_step = tick(high - low);
    let (low, high) = ((low / y_step).floor() * y_step, (high / y_step).ceil() * y_step);
    let x = |step: f64| LEFT + step / last * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n<title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n",
        title = escaped(title)
    );
    let mut text = |x: f64, y: f64, anchor: &str, more: &str, content: &str| {
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{}</text>",
            escaped(content)
        );
    };
    text(LEFT, 22.0, "start", "font-size=\"15\" fill=\"#222\"", title);
    text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "fill=\"#444\"", "update");
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    let turned = format!("fill=\"#444\" transform=\"rotate(-90 16 {middle:.1})\"");
    text(16.0, middle, "middle", &turned, unit);
    let digits = if y_step < 0.01 {
        3
    } else if y_step < 0.1 {
        2
    } else {
        1
    };
    let mut lines = String::new();
    let mut at = low;
    while at <= high + y_step / 2.0 {
        text(LEFT - 8.0, y(at) + 4.0, "end", "fill=\"#444\"", &format!("{at:.digits$}"));
        let _ = writeln!(
            lines,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            WIDTH - RIGHT,
            y = y(at)
        );
        at += y_step;
    }
    let x_step = tick(last).max(1.0);
    let mut at = 0.0;
    while at <= last {
        text(x(at), HEIGHT - BOTTOM + 20.0, "middle", "fill=\"#444\"", &format!("{at:.0}"));
        at += x_step;
    }
    text(WIDTH - RIGHT, 22.0, "end", "fill=\"#1f5fa8\"", "training");
    if !measured.is_empty() {
        text(WIDTH - RIGHT - 80.0, 22.0, "end", "fill=\"#b3441e\"", "validation");
    }
    out.push_str(&lines);
    let path = |points: &[(f64, f64)]| {
        points.iter().map(|(step, loss)| format!("{:.1},{:.1}", x(*step), y(*loss))).collect::<Vec<_>>().join(" ")
    };
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.4\"/>",
        path(&trained)
    );
    if !measured.is_empty() {
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#b3441e\" stroke-width=\"2\"/>",
            path(&measured)
        );
        for (step, loss) in &measured {
            let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#b3441e\"/>", x(*step), y(*loss));
        }
    }
    out + "</svg>\n"
}

/// As many points as a chart shows, each the mean of its neighbours.
#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn thinned(steps: &[StepMetrics]) -> Vec<(u64, f64)> {
    let size = steps.len().div_ceil(MAX_POINTS).max(1);
    let mean = |steps: &[StepMetrics]| steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64;
    steps.chunks(size).map(|steps| (steps[steps.len() - 1].step, mean(steps))).collect()
}

/// A round number that cuts a length into four to ten.
fn tick(length: f64) -> f64 {
    let power = 10_f64.powf((length / 4.0).log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|n| n * power).find(|step| length / step >= 4.0).unwrap_or(power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> StepMetrics {
        StepMetrics { step, loss, ..StepMetrics::default() }
    }

    #[test]
    fn a_chart_shows_every_loss_and_holds_nothing_from_elsewhere() {
        let steps: Vec<StepMetrics> = (1..=40).map(|n| step(n, 4.0 - n as f64 / 20.0)).collect();
        let chart = svg("<a & b>", "nats per token", &steps, &[(0, 4.0), (40, 2.2)]);
        assert_eq!(chart.matches("<circle").count(), 2);
        let line = chart.lines().find(|line| line.starts_with("<polyline")).expect("a line");
        assert_eq!(line.matches(',').count(), 40);
        assert!(chart.contains("&lt;a &amp; b&gt;") && !chart.contains("href"));
        let many: Vec<StepMetrics> = (1..=10_000).map(|n| step(n, 1.0)).collect();
        assert!(svg("x", "y", &many, &[]).len() < 60_000);
        assert!(svg("x", "y", &[step(1, 3.0)], &[]).contains("<polyline"));
        assert!(!svg("x", "y", &[], &[]).contains("NaN"));
    }

    #[test]
    fn ticks_are_round() {
        for (length, expected) in [(1.0, 0.2), (4.0, 1.0), (30.0, 5.0), (320.0, 50.0), (0.07, 0.01)] {
            assert!((tick(length) - expected).abs() < 1e-12, "{length}: {}", tick(length));
        }
    }
}
