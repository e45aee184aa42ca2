//! Running a job to its end.

use crate::checkpoint::{self, State};
use crate::corpus::{Batches, Corpus};
use crate::metrics::{self, StepMetrics};
use crate::optimizer::{self, Moments, Update};
use crate::process::{cpu_seconds, peak_memory_bytes};
use crate::schedule::learning_rate;
use crate::{CptJob, CptReport, METRICS_FILE, TrainError, TrainProgress};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tapestry_model::{Decoder, Tokenizer};

/// The time between checkpoints, where the job does not count steps.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(600);

/// `done.json`: written last, so that a job that is done is not done again.
#[derive(Serialize, Deserialize)]
struct Done {
    job: CptJob,
    report: CptReport,
}

/// Trains, or goes on training, until the job is done; a job that is done already is not done again.
///
/// When `stop` is set, the state is saved and the job can go on later.
///
/// # Errors
/// [`TrainError`]: settings, texts or base that cannot be used, all before the first step; [`TrainError::Diverged`] and
/// [`TrainError::Stopped`] with the state saved.
pub fn run_cpt(
    job: &CptJob,
    progress: &mut (dyn FnMut(&TrainProgress) + Send),
    stop: &AtomicBool,
) -> Result<CptReport, TrainError> {
    job.check()?;
    let num_threads = job.num_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
    let pool = pool.map_err(|error| TrainError::Threads { num_threads, reason: error.to_string() })?;
    pool.install(|| run(job, progress, stop))
}

fn run(
    job: &CptJob,
    progress: &mut (dyn FnMut(&TrainProgress) + Send),
    stop: &AtomicBool,
) -> Result<CptReport, TrainError> {
    let out_dir = &job.out_dir;
    fs::create_dir_all(out_dir).map_err(TrainError::io("make", out_dir))?;
    // A trainer whose node was killed may still be ending: two must not write here at once.
    let lock = out_dir.join("lock");
    let held = fs::File::options().create(true).append(true).open(&lock).and_then(|file| file.lock().map(|()| file));
    let _held = held.map_err(TrainError::io("lock", &lock))?;
    if let Some(report) = finished(job)? {
        return Ok(report);
    }
    let corpus = Corpus::read(job)?;
    let tokenizer = Tokenizer::read(&job.base_dir.join("tokenizer.json"))?;
    let mut batches = Batches::new(&corpus, &tokenizer, job.seed, job.window);

    let device = Device::flex().autodiff();
    let (mut model, mut moments, mut state) = match checkpoint::find(out_dir) {
        Some(path) => {
            let state = checkpoint::read_state(&path)?;
            if state.job.identity() != job.identity() {
                return Err(TrainError::OtherJob { out_dir: out_dir.clone() });
            }
            (Decoder::load(&path, &device)?, checkpoint::read_moments(&path)?, state)
        }
        None => {
            let state =
                State { job: job.clone(), steps: vec![], wall_seconds: 0.0, cpu_seconds: 0.0, peak_memory_bytes: 0 };
            (Decoder::load(&job.base_dir, &device)?, Moments::default(), state)
        }
    };
    for _ in &state.steps {
        batches.skip(job.batch_windows, job.window)?;
    }
    let mut file = metrics::reopen(&out_dir.join(METRICS_FILE), &state.steps)?;
    let mut clock = Clock::start(&state);
    let tokens_per_step = (job.batch_windows * job.window) as u64;
    let mut last_checkpoint = Instant::now();
    for step in state.steps.len() as u64..job.num_steps {
        if stop.load(Ordering::Relaxed) {
            clock.note(&mut state);
            checkpoint::save(out_dir, &job.base_dir, &model, &moments, &state)?;
            return Err(TrainError::Stopped { step });
        }
        let (began, cpu_before) = (Instant::now(), cpu_seconds());
        let batch = batches.next(job.batch_windows, job.window)?;
        let loss = model.loss(&batch)?;
        let loss_value = f64::from(loss.clone().into_scalar::<f32>());
        let mut gradients = loss.backward();
        let grad_norm = optimizer::gradient_norm(&model, &gradients);
        if !loss_value.is_finite() || !grad_norm.is_finite() {
            clock.note(&mut state);
            checkpoint::save(out_dir, &job.base_dir, &model, &moments, &state)?;
            let what = if loss_value.is_finite() { "the gradient" } else { "the loss" };
            return Err(TrainError::Diverged { what, step: step + 1, checkpoint: checkpoint::place(out_dir) });
        }
        let rate = learning_rate(step, job.num_steps, job.warmup_steps, job.learning_rate);
        #[expect(clippy::cast_possible_truncation, reason = "settings as the arithmetic has them")]
        let update = Update {
            step: u32::try_from(step + 1).unwrap_or(u32::MAX),
            learning_rate: rate as f32,
            weight_decay: job.weight_decay as f32,
            clip_norm: job.clip_norm,
        };
        model = optimizer::update(model, &mut gradients, grad_norm, &mut moments, &update);
        let metrics = StepMetrics {
            step: step + 1,
            loss: loss_value,
            learning_rate: rate,
            grad_norm,
            tokens: tokens_per_step,
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - cpu_before,
        };
        metrics::append(&mut file, &metrics).map_err(TrainError::io("write", &out_dir.join(METRICS_FILE)))?;
        state.steps.push(metrics);
        progress(&clock.progress(job, &state, tokens_per_step, loss_value));
        let is_due = match job.checkpoint_every {
            Some(every) => (step + 1) % every == 0,
            None => last_checkpoint.elapsed() >= CHECKPOINT_EVERY,
        };
        if is_due && step + 1 < job.num_steps {
            clock.note(&mut state);
            checkpoint::save(out_dir, &job.base_dir, &model, &moments, &state)?;
            last_checkpoint = Instant::now();
        }
    }
    drop(moments);
    model.save(&job.base_dir, out_dir)?;
    clock.note(&mut state);
    let report = report(&state, tokens_per_step);
    write_json(&out_dir.join("done.json"), &Done { job: job.clone(), report: report.clone() })?;
    checkpoint::remove(out_dir);
    Ok(report)
}

/// The report of a job that is done.
fn finished(job: &CptJob) -> Result<Option<CptReport>, TrainError> {
    let path = job.out_dir.join("done.json");
    let Ok(text) = fs::read(&path) else { return Ok(None) };
    let other = || TrainError::OtherJob { out_dir: job.out_dir.clone() };
    let done: Done = serde_json::from_slice(&text).map_err(|_| other())?;
    if done.job.identity() == job.identity() { Ok(Some(done.report)) } else { Err(other()) }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let temporary = path.with_extension("json.tmp");
    let write = || -> std::io::Result<()> {
        fs::write(&temporary, serde_json::to_vec_pretty(value)?)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(TrainError::io("write", path))
}

/// Time of this process, on top of that of the processes before it.
struct Clock {
    began: Instant,
    cpu_at_start: f64,
    wall_before: f64,
    cpu_before: f64,
    steps_before: usize,
}

impl Clock {
    fn start(state: &State) -> Self {
        Self {
            began: Instant::now(),
            cpu_at_start: cpu_seconds(),
            wall_before: state.wall_seconds,
            cpu_before: state.cpu_seconds,
            steps_before: state.steps.len(),
        }
    }

    fn note(&mut self, state: &mut State) {
        state.wall_seconds = self.wall_before + self.began.elapsed().as_secs_f64();
        state.cpu_seconds = self.cpu_before + cpu_seconds() - self.cpu_at_start;
        state.peak_memory_bytes = state.peak_memory_bytes.max(peak_memory_bytes());
    }

    #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
    fn progress(&self, job: &CptJob, state: &State, tokens_per_step: u64, loss: f64) -> TrainProgress {
        let step = state.steps.len() as u64;
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-9);
        let per_second = (step - self.steps_before as u64) as f64 / elapsed;
        TrainProgress {
            step,
            num_steps: job.num_steps,
            tokens_done: step * tokens_per_step,
            tokens_total: job.num_steps * tokens_per_step,
            loss,
            tokens_per_second: per_second * tokens_per_step as f64,
            seconds_left: (job.num_steps - step) as f64 / per_second.max(1e-9),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn report(state: &State, tokens_per_step: u64) -> CptReport {
    let losses: Vec<f64> = state.steps.iter().map(|step| step.loss).collect();
    let last = &losses[losses.len() - losses.len().div_ceil(4)..];
    CptReport {
        num_tokens: losses.len() as u64 * tokens_per_step,
        num_steps: losses.len() as u64,
        first_loss: losses.first().copied().unwrap_or_default(),
        last_loss: last.iter().sum::<f64>() / last.len().max(1) as f64,
        wall_seconds: state.wall_seconds,
        cpu_seconds: state.cpu_seconds,
        peak_memory_bytes: state.peak_memory_bytes,
    }
}
