//! Tokens per second of the fused operations and of the same model composed of plain Burn operations, side by side.
//!
//! Run it as `RAYON_NUM_THREADS=2 cargo run --release -p tapestry-kernels --example throughput -- 4`, where the number is how
//! many steps of each are timed (the fastest and the median are printed). The shape is that of SmolLM2-135M with one window
//! of 256 tokens; the weights are made up, because time does not depend on them. Both forms are stepped in turn, so that a
//! machine with other work slows both alike; both use the same AdamW.

mod composed;
mod model;

use model::{Form, Model, NUM_TOKENS};
use std::io::{Result, Write};
use std::sync::LazyLock;
use std::time::Instant;

// The default allocator gives large blocks back at once and pays for fresh pages at every operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let num_steps = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(4_usize).max(1);
    let with_composed = std::env::args().nth(2).is_none_or(|only| only != "fused");
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} threads, {NUM_TOKENS} tokens a step", rayon::current_num_threads())?;
    let forms = if with_composed { &[Form::Fused, Form::Composed][..] } else { &[Form::Fused] };
    let mut models: Vec<Model> = forms.iter().map(|_| Model::new()).collect();
    let mut steps = vec![vec![]; forms.len()];
    for step in 0..=num_steps {
        for ((form, model), steps) in forms.iter().zip(&mut models).zip(&mut steps) {
            let start = Clock::now();
            let (loss, phases) = model.train_step(*form);
            // The first step meets cold memory.
            if step > 0 {
                steps.push(start.elapsed());
            }
            writeln!(out, "step {step} {form:?}: loss {loss:.4}, seconds forward/backward/update {phases:.3?}")?;
        }
    }
    let training: Vec<f64> = forms
        .iter()
        .zip(&mut steps)
        .map(|(form, steps)| report(&mut out, &format!("training {form:?}"), steps))
        .collect::<Result<_>>()?;
    if let [fused, composed] = training[..] {
        writeln!(out, "training: {:.2} times the composed form", fused / composed)?;
    }
    let slices = models[0].to_slices();
    drop(models);
    let mut passes: Vec<Clock> = (0..=num_steps)
        .map(|_| {
            let start = Clock::now();
            std::hint::black_box(slices.score());
            start.elapsed()
        })
        .skip(1)
        .collect();
    report(&mut out, "scoring on slices", &mut passes)?;
    Ok(())
}

/// Seconds on the clock on the wall and of this process's threads together.
#[derive(Debug, Clone, Copy)]
struct Clock {
    wall: f64,
    cpu: f64,
}

impl Clock {
    fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self { wall: START.elapsed().as_secs_f64(), cpu: cpu_seconds().unwrap_or(f64::NAN) }
    }

    fn elapsed(self) -> Self {
        let now = Self::now();
        Self { wall: now.wall - self.wall, cpu: now.cpu - self.cpu }
    }
}

/// User and system time of this process, in the 100 ticks a second that Linux reports; none elsewhere.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Some(ticks.iter().sum::<f64>() / 100.0)
}

/// Prints the fastest and the median pass as tokens per second; returns the median's. Tokens per second of one thread's time
/// are what a machine with other work can still measure.
#[expect(clippy::cast_precision_loss, reason = "a few hundred tokens")]
fn report(out: &mut impl Write, what: &str, passes: &mut [Clock]) -> Result<f64> {
    let rate = |seconds: f64| NUM_TOKENS as f64 / seconds;
    passes.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
    let per_cpu = rate(passes[passes.len() / 2].cpu);
    passes.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    let (median, fastest) = (rate(passes[passes.len() / 2].wall), rate(passes[0].wall));
    writeln!(out, "{what}: median {median:.1}, fastest {fastest:.1} tokens/s; {per_cpu:.1} per second of a thread")?;
    Ok(median)
}
