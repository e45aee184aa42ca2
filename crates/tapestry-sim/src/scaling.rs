//! What a round costs as a consortium grows: messages, entries of the coordinator's log, and time without training.

use std::fmt::Write as _;

use tapestry_sim::{Summary, calm_round};

const NUM_ROUNDS: u32 = 4;

/// A cost of one round, by number of members, with the straight line through it.
struct Row {
    name: &'static str,
    points: Vec<(f64, f64)>,
    slope: f64,
    offset: f64,
    /// The share of the variance that the line explains.
    r_squared: f64,
}

/// Measures, prints a table, and writes the plot.
///
/// # Errors
/// A broken promise, or a file that cannot be written.
pub(crate) fn measure(file: &str) -> Result<(), String> {
    let mut summaries = vec![];
    for num_members in [2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50] {
        summaries.push(calm_round(num_members, NUM_ROUNDS).map_err(|failure| failure.to_string())?);
    }
    let rows = [
        row("messages", &summaries, |s| s.num_messages),
        row("log entries", &summaries, |s| s.num_entries),
        row("milliseconds", &summaries, |s| s.simulated_ms),
    ];
    println!("{:>8} {:>12} {:>12} {:>14}", "members", rows[0].name, rows[1].name, rows[2].name);
    for (number, summary) in summaries.iter().enumerate() {
        let of = |row: &Row| row.points[number].1;
        println!("{:>8} {:>12.1} {:>12.1} {:>14.0}", summary.num_members, of(&rows[0]), of(&rows[1]), of(&rows[2]));
    }
    for Row { name, slope, offset, r_squared, .. } in &rows {
        println!("{name} a round = {slope:.2} x members + {offset:.1} (R2 {r_squared:.4})");
    }
    std::fs::write(file, svg(&rows)).map_err(|e| format!("cannot write {file}: {e}"))
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn row(name: &'static str, summaries: &[Summary], of: fn(&Summary) -> u64) -> Row {
    let point = |s: &Summary| (s.num_members as f64, of(s) as f64 / s.num_rounds as f64);
    let points: Vec<_> = summaries.iter().map(point).collect();
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |f: &dyn Fn(f64, f64) -> f64| points.iter().map(|(x, y)| f(x - mean_x, y - mean_y)).sum::<f64>();
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    let slope = xy / xx;
    let r_squared = if yy > 0.0 { xy * xy / (xx * yy) } else { 1.0 };
    Row { name, points, slope, offset: mean_y - slope * mean_x, r_squared }
}

/// Three small plots beside each other.
fn svg(rows: &[Row]) -> String {
    let (width, height, left, top) = (230.0, 150.0, 56.0, 28.0);
    let total = 300.0 * rows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} 230\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, row) in rows.iter().enumerate() {
        let at = 300.0 * number as f64 + left;
        let max_y = row.points.iter().map(|p| p.1).fold(1.0, f64::max) * 1.05;
        let x = |members: f64| at + members / 50.0 * width;
        let y = |cost: f64| top + height - (cost / max_y).clamp(0.0, 1.0) * height;
        let _ = writeln!(
            svg,
            "<text x=\"{at}\" y=\"16\">{} a round: {:.2} a member, R² {:.4}</text>\n\
             <path d=\"M{at},{top} V{} H{}\" fill=\"none\" stroke=\"black\"/>\n\
             <path d=\"M{},{:.1} L{},{:.1}\" stroke=\"#999\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">members</text>",
            row.name,
            row.slope,
            row.r_squared,
            top + height,
            at + width,
            x(0.0),
            y(row.offset),
            x(50.0),
            y(row.offset + 50.0 * row.slope),
            at + width / 2.0,
            top + height + 34.0,
        );
        for members in [10.0, 20.0, 30.0, 40.0, 50.0] {
            let (x, y) = (x(members), top + height + 16.0);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{members}</text>");
        }
        for share in [0.0, 0.5, 1.0] {
            let (x, cost) = (at - 6.0, share * max_y);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{:.1}\" text-anchor=\"end\">{cost:.0}</text>", y(cost) + 4.0);
        }
        for (members, cost) in &row.points {
            let _ =
                writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#2563a8\"/>", x(*members), y(*cost));
        }
    }
    svg + "</svg>\n"
}
