//! Contributed and Private CPT: a job in a process of its own, so that its memory goes back when it is done.

use super::Driver;
use crate::home::Home;
use crate::settings::{NodeSettings, Training};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tapestry_core::{Digest, ModelManifest, format_duration};
use tapestry_round::TrainingMetrics;
use tapestry_round::node::{ContributedCpt, NodeEffect, SovereignModel};
use tapestry_train::{EXIT_INTERRUPTED, EXIT_UNUSABLE, TRAINER_CONTRACT, TrainJob, TrainingRecord, read_metrics};

/// How often the node looks how far its trainer is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The wait before a trainer that was interrupted is started again; doubled each time, up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// The folder of the Sovereign Model's training, in `work/`.
const SOVEREIGN_WORK: &str = "sovereign";

/// The folder of a round's training, in `work/`.
fn work_of(round: u32) -> String {
    format!("round-{round}")
}

/// Checks that the texts are there and readable before anything long begins.
pub(super) fn check_texts(home: &Home, settings: &NodeSettings) -> Result<()> {
    let texts = &settings.texts;
    let all = texts.contributed.iter().chain(&texts.private).chain([&texts.held_out]);
    for path in all {
        let path = NodeSettings::resolve(home, path);
        crate::files::read_long_text(&path).context("a text of node.toml")?;
    }
    Ok(())
}

impl Driver {
    /// Trains on the contributed texts, from `base`. The only maker of [`ContributedCpt`].
    pub(super) async fn contributed_cpt(&self, round: u32, base: Digest) -> Result<ContributedCpt> {
        let texts = self.settings.texts.contributed.clone();
        let mut training = self.settings.contributed_cpt.clone();
        // Another round sees other windows.
        training.seed = training.seed.wrapping_add(u64::from(round));
        let name = work_of(round);
        let (out, record) = self.train(&name, &texts, &training, base, &format!("round {round}")).await?;
        let (weights, manifest) = self.blobs.adopt_weights(&out).await?;
        let base: ModelManifest = self.blobs.get_json(base).await?;
        manifest.check_matches(&base.weights).context("the trainer gave back other tensors than it was given")?;
        Ok(ContributedCpt::from_training(weights, metrics(&record)))
    }

    /// Trains on the private texts. What comes out stays on this node.
    pub(super) async fn private_cpt(&self, base: Digest) -> Result<(SovereignModel, TrainingMetrics)> {
        let texts = self.settings.texts.private.clone();
        let (out, record) = self.train(SOVEREIGN_WORK, &texts, &self.settings.private_cpt, base, "Private CPT").await?;
        let (model, _) = self.blobs.adopt_model(&out).await?;
        Ok((SovereignModel::new(base, model), metrics(&record)))
    }

    /// Removes the folders of training that nothing waits for any more. Only after the log says that their results are durable: a node that
    /// dies while it removes one must not find half of it and take that for a job.
    pub(super) fn clean_work(&self) {
        let pending = self.role.state().pending();
        let is_needed = |name: &str| {
            pending.iter().any(|effect| match effect {
                NodeEffect::Train { round, .. } => name == work_of(*round),
                NodeEffect::BuildSovereign { .. } => name == SOVEREIGN_WORK,
                _ => false,
            })
        };
        let Ok(entries) = fs::read_dir(self.home.work_dir()) else { return };
        for entry in entries.flatten() {
            if !entry.file_name().to_str().is_some_and(is_needed) {
                // What follows need not wait for gigabytes to be removed; only space is lost when this fails.
                tokio::task::spawn_blocking(move || fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Runs one job to its end. A job that was interrupted goes on from its last checkpoint.
    async fn train(
        &self,
        name: &str,
        texts: &[PathBuf],
        training: &Training,
        base: Digest,
        what: &str,
    ) -> Result<(PathBuf, TrainingRecord)> {
        let work = absolute(&self.home.work_dir())?.join(name);
        let base_dir = work.join("base");
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        // Not synced, so whatever an earlier process left there is not trusted: it is written again.
        let manifest: ModelManifest = self.blobs.get_json(base).await?;
        if let Err(error) = self.blobs.export_model_for_now(&manifest, &base_dir).await {
            // A disk forgets, and a trainer may have written into the base that it was lent.
            self.reporter.say(format!("the base cannot be read, and is fetched again: {error}"));
            self.pull_base(base).await?;
            self.blobs.export_model_for_now(&manifest, &base_dir).await?;
        }
        let job = TrainJob {
            contract: TRAINER_CONTRACT,
            base_dir,
            out_dir: work.join("out"),
            texts: texts.iter().map(|t| absolute(&NodeSettings::resolve(&self.home, t))).collect::<Result<_>>()?,
            num_steps: training.num_steps,
            batch_windows: training.batch_windows,
            window: training.window,
            learning_rate: training.learning_rate,
            warmup_steps: training.warmup_steps,
            weight_decay: training.weight_decay,
            clip_norm: training.clip_norm,
            seed: training.seed,
            num_threads: self.settings.machine.num_threads,
            checkpoint_every: None,
            ..TrainJob::default()
        };
        let job_path = work.join("job.json");
        crate::files::write_atomic(&job_path, &serde_json::to_vec_pretty(&job)?)?;
        let _slot = self.slot().await?;
        self.run_trainer(&job_path, &job, what).await?;
        let record =
            read_metrics(&job.out_dir).context("the trainer ended well and left no metrics that can be used")?;
        Ok((job.out_dir, record))
    }

    /// Runs the trainer by its contract, as often as it ends with "interrupted".
    async fn run_trainer(&self, job_path: &Path, job: &TrainJob, what: &str) -> Result<()> {
        let mut working = self.reporter.start("train", what, "tokens");
        let total = job.num_steps * (job.batch_windows * job.window) as u64;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut child = Trainer(self.trainer(job_path)?.spawn().context("cannot start the trainer")?);
            let mut look = tokio::time::interval(LOOK_EVERY);
            let status = loop {
                tokio::select! {
                    status = child.0.wait() => break status?,
                    _ = look.tick() => {
                        // There is no such file before the first step.
                        if let Ok(record) = read_metrics(&job.out_dir) {
                            working.update(record.num_tokens.min(total), total);
                        }
                    }
                }
            };
            match status.code() {
                Some(0) => break,
                Some(code) if code == i32::from(EXIT_INTERRUPTED) => {
                    self.reporter
                        .say(format!("{what}: the trainer was interrupted; it goes on in {}", format_duration(pause)));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                Some(code) if code == i32::from(EXIT_UNUSABLE) => bail!(
                    "the trainer cannot use this job, its texts or its base, and trying again would change nothing; its messages are above. \
                     The job: {}",
                    job_path.display()
                ),
                _ => bail!("the trainer ended with {status}; its messages are above. The job: {}", job_path.display()),
            }
        }
        working.end();
        Ok(())
    }

    /// The trainer of this node, about to be started.
    fn trainer(&self, job: &Path) -> Result<tokio::process::Command> {
        let mut command = match self.settings.machine.trainer.as_deref() {
            Some([program, arguments @ ..]) => {
                let mut command = tokio::process::Command::new(program);
                command.args(arguments);
                command
            }
            Some([]) => bail!("machine.trainer in node.toml is empty; name a program or leave the line out"),
            None => {
                let mut command = tokio::process::Command::new(std::env::current_exe()?);
                command.args(["train", "cpt", "--child"]);
                // Training asks for the same large buffers at each step: keeping them saves a fifth of the time. The memory
                // goes back with the process.
                command.env("MIMALLOC_PURGE_DELAY", "-1");
                command
            }
        };
        command.arg(job).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }
}

/// A trainer that runs. When the node stops before it, it is asked to end, and keeps what it has by its own checkpoints.
struct Trainer(tokio::process::Child);

impl Drop for Trainer {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
    }
}

fn metrics(record: &TrainingRecord) -> TrainingMetrics {
    TrainingMetrics {
        num_tokens: record.num_tokens,
        num_steps: record.num_steps,
        first_loss: record.first_loss,
        last_loss: record.last_loss,
        wall_seconds: record.wall_seconds,
        cpu_seconds: record.cpu_seconds,
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}
