//! Running a job to its end.

use crate::checkpoint::{self, State};
use crate::job::Stage;
use crate::metrics::{self, StepMetrics, ValidationMetrics};
use crate::objective::{Data, Margins, Stream, Work};
use crate::optimizer::{self, Moments, Update};
use crate::process::{cpu_seconds, peak_memory_bytes};
use crate::{
    METRICS_FILE, TrainError, TrainJob, TrainProgress, TrainReport, chart, estimate_memory, memory, reference,
};
use burn::tensor::{Device, Gradients};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tapestry_model::{Decoder, DecoderConfig, ModelError, Tokenizer};
use tapestry_weights::HfDir;

/// Measurements on what was set aside, a line each.
const VALIDATION_FILE: &str = "validation.jsonl";
/// A picture of the losses.
const CHART_FILE: &str = "loss.svg";
/// The time between checkpoints, where the job does not count steps.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(600);

/// `done.json`: written last, so that a job that is done is not done again.
#[derive(Serialize, Deserialize)]
struct Done {
    job: TrainJob,
    report: TrainReport,
}

/// Trains, or goes on training, until the job is done; a job that is done already is not done again.
///
/// When `stop` is set, the state is saved and the job can go on later.
///
/// # Errors
/// [`TrainError`]: settings, texts or base that cannot be used, all before the first step; [`TrainError::Diverged`] and
/// [`TrainError::Stopped`] with the state saved.
pub fn run_job(
    job: &TrainJob,
    progress: &mut (dyn FnMut(&TrainProgress) + Send),
    stop: &AtomicBool,
) -> Result<TrainReport, TrainError> {
    job.check()?;
    let num_threads = job.num_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
    let pool = pool.map_err(|error| TrainError::Threads { num_threads, reason: error.to_string() })?;
    pool.install(|| run(job, progress, stop))
}

fn run(
    job: &TrainJob,
    progress: &mut (dyn FnMut(&TrainProgress) + Send),
    stop: &AtomicBool,
) -> Result<TrainReport, TrainError> {
    let out_dir = &job.out_dir;
    fs::create_dir_all(out_dir).map_err(TrainError::io("make", out_dir))?;
    // A trainer whose node was killed may still be ending: two must not write here at once.
    let lock = out_dir.join("lock");
    let held = fs::File::options().create(true).append(true).open(&lock).and_then(|file| file.lock().map(|()| file));
    let _held = held.map_err(TrainError::io("lock", &lock))?;
    if let Some(report) = finished(job)? {
        return Ok(report);
    }
    let config = DecoderConfig::try_from(HfDir::open(&job.base_dir)?.shape)?;
    if job.window > config.max_position_embeddings {
        let limit = config.max_position_embeddings;
        return Err(ModelError::ContextOverflow { tokens: job.window, limit }.into());
    }
    let tokenizer = Tokenizer::read(&job.base_dir.join("tokenizer.json"))?;
    tokenizer.check_fits(&config)?;
    let mut data = Data::read(job, &tokenizer)?;
    let recompute = job.checkpoint_activations.unwrap_or(false);
    memory::check(&estimate_memory(&config, job.batch_windows, job.window, recompute))?;
    if let Data::Preferences { all, settings } = &mut data
        && settings.needs_reference()
    {
        reference::fill(all, || Ok(Decoder::load(&job.base_dir, &Device::flex())?), job, stop)?;
    }
    let validation = data.take_validation();
    let validation = if validation.is_empty() { data.validation(job)? } else { validation };

    let device = Device::flex().autodiff();
    let (model, moments, state) = match checkpoint::find(out_dir) {
        Some(path) => {
            let state = checkpoint::read_state(&path)?;
            if state.job.identity() != job.identity() {
                return Err(TrainError::OtherJob { out_dir: out_dir.clone() });
            }
            (Decoder::load(&path, &device)?, checkpoint::read_moments(&path)?, state)
        }
        None => (Decoder::load(&job.base_dir, &device)?, Moments::default(), State::new(job)),
    };
    let model = model.with_recomputation(recompute);
    let mut stream = data.stream(job, &tokenizer);
    for _ in 0..state.steps.len() * job.accumulation.unwrap_or(1) {
        stream.skip(job)?;
    }
    let mut session = Session::open(job, model, moments, state, validation)?;
    session.measure_if_due()?;
    for step in session.state.steps.len() as u64..job.num_steps {
        if stop.load(Ordering::Relaxed) {
            session.save()?;
            return Err(TrainError::Stopped { step });
        }
        let loss = session.update(step, &mut stream)?;
        session.measure_if_due()?;
        progress(&session.progress(loss));
        session.save_if_due()?;
    }
    session.finish(data.num_left_out())
}

/// A job under way.
struct Session<'a> {
    job: &'a TrainJob,
    /// Taken out for the moment of an update.
    model: Option<Decoder>,
    moments: Moments,
    state: State,
    validation: Vec<Work>,
    metrics: fs::File,
    measurements: fs::File,
    clock: Clock,
    last_checkpoint: Instant,
}

impl<'a> Session<'a> {
    fn open(
        job: &'a TrainJob,
        model: Decoder,
        moments: Moments,
        state: State,
        validation: Vec<Work>,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            metrics: metrics::reopen(&job.out_dir.join(METRICS_FILE), &state.steps)?,
            measurements: metrics::reopen(&job.out_dir.join(VALIDATION_FILE), &state.validation)?,
            clock: Clock::start(&state),
            model: Some(model),
            last_checkpoint: Instant::now(),
            job,
            moments,
            state,
            validation,
        })
    }

    fn model(&self) -> &Decoder {
        self.model.as_ref().expect("only an update takes it, and puts another back")
    }

    /// One update; its loss.
    fn update(&mut self, step: u64, stream: &mut Stream<'_>) -> Result<f64, TrainError> {
        let (began, cpu_before, job) = (Instant::now(), cpu_seconds(), self.job);
        let parts = (0..job.accumulation.unwrap_or(1)).map(|_| stream.next(job));
        let parts = parts.collect::<Result<Vec<Work>, _>>()?;
        let (loss, margins, mut gradients) = gradients(self.model(), &parts)?;
        let grad_norm = optimizer::gradient_norm(self.model(), &gradients);
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.save()?;
            let what = if loss.is_finite() { "the gradient" } else { "the loss" };
            return Err(TrainError::Diverged { what, step: step + 1, checkpoint: checkpoint::place(&job.out_dir) });
        }
        let schedule = job.schedule.unwrap_or_default();
        let rate = schedule.learning_rate(step, job.num_steps, job.warmup_steps, job.learning_rate);
        #[expect(clippy::cast_possible_truncation, reason = "settings as the arithmetic has them")]
        let update = Update {
            step: u32::try_from(step + 1).unwrap_or(u32::MAX),
            learning_rate: rate as f32,
            weight_decay: job.weight_decay as f32,
            clip_norm: job.clip_norm,
            adamw: job.adamw.unwrap_or_default(),
        };
        let model = self.model.take().expect("an update takes it, and puts another back");
        self.model = Some(optimizer::update(model, &mut gradients, grad_norm, &mut self.moments, &update));
        let metrics = StepMetrics {
            step: step + 1,
            loss,
            learning_rate: rate,
            grad_norm,
            tokens: parts.iter().map(|part| part.num_tokens() as u64).sum(),
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - cpu_before,
            margin: margins.map(|margins| margins.margin),
            accuracy: margins.map(|margins| margins.accuracy),
        };
        let written = metrics::append(&mut self.metrics, &metrics);
        written.map_err(TrainError::io("write", &job.out_dir.join(METRICS_FILE)))?;
        self.state.steps.push(metrics);
        Ok(loss)
    }

    /// Measures where the job asks for it now and it was not done.
    fn measure_if_due(&mut self) -> Result<(), TrainError> {
        let Some(settings) = &self.job.validation else { return Ok(()) };
        let step = self.state.steps.len() as u64;
        let is_due = step.is_multiple_of(settings.every) || step == self.job.num_steps;
        if !is_due || self.state.validation.last().is_some_and(|last| last.step == step) {
            return Ok(());
        }
        let model = optimizer::without_gradients(self.model().clone());
        let (mut loss, mut margins, mut weight) = (0.0, None::<Margins>, 0.0);
        for work in &self.validation {
            let (part, found) = work.loss(&model)?;
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
            let share = work.weight() as f64;
            loss += f64::from(part.into_scalar::<f32>()) * share;
            margins = Margins::added(margins, found, share);
            weight += share;
        }
        let margins = margins.map(|margins| margins.scaled(1.0 / weight));
        let measured = ValidationMetrics {
            step,
            loss: loss / weight,
            margin: margins.map(|margins| margins.margin),
            accuracy: margins.map(|margins| margins.accuracy),
        };
        let written = metrics::append(&mut self.measurements, &measured);
        written.map_err(TrainError::io("write", &self.job.out_dir.join(VALIDATION_FILE)))?;
        self.state.validation.push(measured);
        Ok(())
    }

    fn save_if_due(&mut self) -> Result<(), TrainError> {
        let step = self.state.steps.len() as u64;
        let is_due = match self.job.checkpoint_every {
            Some(every) => step.is_multiple_of(every),
            None => self.last_checkpoint.elapsed() >= CHECKPOINT_EVERY,
        };
        if is_due && step < self.job.num_steps { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.clock.note(&mut self.state);
        let model = self.model.as_ref().expect("only an update takes it, and puts another back");
        checkpoint::save(&self.job.out_dir, &self.job.base_dir, model, &self.moments, &self.state)?;
        self.last_checkpoint = Instant::now();
        self.draw()
    }

    fn draw(&self) -> Result<(), TrainError> {
        let (title, unit) = match self.job.stage()? {
            Stage::Cpt => ("Continued pre-training", "loss, nats per token"),
            Stage::Sft => ("Instruction tuning", "loss of answers, nats per token"),
            Stage::Preference => ("Alignment", "loss per preference"),
        };
        let measured: Vec<(u64, f64)> = self.state.validation.iter().map(|one| (one.step, one.loss)).collect();
        let path = self.job.out_dir.join(CHART_FILE);
        write_synced(&path, chart::svg(title, unit, &self.state.steps, &measured).as_bytes())
    }

    fn progress(&self, loss: f64) -> TrainProgress {
        self.clock.progress(self.job, &self.state, loss)
    }

    fn finish(mut self, num_left_out: u64) -> Result<TrainReport, TrainError> {
        self.moments = Moments::default();
        self.draw()?;
        self.model().save(&self.job.base_dir, &self.job.out_dir)?;
        self.clock.note(&mut self.state);
        let report = report(self.state, num_left_out);
        let done = Done { job: self.job.clone(), report: report.clone() };
        write_json(&self.job.out_dir.join("done.json"), &done)?;
        checkpoint::remove(&self.job.out_dir);
        Ok(report)
    }
}

/// Loss, margins and gradients of an update, its parts weighted by what counts in each.
fn gradients(model: &Decoder, parts: &[Work]) -> Result<(f64, Option<Margins>, Gradients), TrainError> {
    let total: usize = parts.iter().map(Work::weight).sum();
    let (mut loss, mut margins, mut sum) = (0.0, None, None);
    for part in parts {
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let share = part.weight() as f64 / total.max(1) as f64;
        let (part_loss, found) = part.loss(model)?;
        loss += f64::from(part_loss.clone().into_scalar::<f32>()) * share;
        margins = Margins::added(margins, found, share);
        #[expect(clippy::cast_possible_truncation, reason = "a factor from 0 to 1")]
        let weighted = if parts.len() == 1 { part_loss } else { part_loss.mul_scalar(share as f32) };
        let gradients = weighted.backward();
        sum = Some(match sum {
            None => gradients,
            Some(sum) => optimizer::add_gradients(model, sum, &gradients),
        });
    }
    Ok((loss, margins, sum.expect("an update has a part")))
}

/// The report of a job that is done.
fn finished(job: &TrainJob) -> Result<Option<TrainReport>, TrainError> {
    let path = job.out_dir.join("done.json");
    let Ok(text) = fs::read(&path) else { return Ok(None) };
    let other = || TrainError::OtherJob { out_dir: job.out_dir.clone() };
    let done: Done = serde_json::from_slice(&text).map_err(|_| other())?;
    if done.job.identity() == job.identity() { Ok(Some(done.report)) } else { Err(other()) }
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| TrainError::io("write", path)(error.into()))?;
    write_synced(path, &text)
}

/// Writes a file that is there whole or not at all.
fn write_synced(path: &Path, content: &[u8]) -> Result<(), TrainError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        fs::write(&temporary, content)?;
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
    fn progress(&self, job: &TrainJob, state: &State, loss: f64) -> TrainProgress {
        let step = state.steps.len() as u64;
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-9);
        let per_second = (step - self.steps_before as u64) as f64 / elapsed;
        let tokens_of_step = state.steps.last().map_or(0, |step| step.tokens);
        TrainProgress {
            step,
            num_steps: job.num_steps,
            tokens_done: step * tokens_of_step,
            tokens_total: job.num_steps * tokens_of_step,
            loss,
            tokens_per_second: per_second * tokens_of_step as f64,
            seconds_left: (job.num_steps - step) as f64 / per_second.max(1e-9),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn report(state: State, num_left_out: u64) -> TrainReport {
    let losses: Vec<f64> = state.steps.iter().map(|step| step.loss).collect();
    let last = &losses[losses.len() - losses.len().div_ceil(4)..];
    TrainReport {
        num_tokens: state.steps.iter().map(|step| step.tokens).sum(),
        num_steps: losses.len() as u64,
        first_loss: losses.first().copied().unwrap_or_default(),
        last_loss: last.iter().sum::<f64>() / last.len().max(1) as f64,
        wall_seconds: state.wall_seconds,
        cpu_seconds: state.cpu_seconds,
        peak_memory_bytes: state.peak_memory_bytes,
        num_left_out,
        validation: state.validation,
    }
}
