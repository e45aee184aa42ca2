//! Contributed and Private CPT: a job in a process of its own, so that its memory goes back when it is done.

use super::Driver;
use crate::home::Home;
use crate::progress::Step;
use crate::settings::{NodeSettings, Training};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tapestry_core::{Digest, ModelManifest};
use tapestry_round::TrainingMetrics;
use tapestry_round::node::{ContributedCpt, SovereignModel};
use tapestry_train::{CptJob, CptReport};
use tokio::io::{AsyncBufReadExt as _, BufReader};

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
        let name = format!("round-{round}");
        let (out, report) = self.train(&name, &texts, &training, base, &format!("round {round}")).await?;
        let (weights, manifest) = self.blobs.import_weights(&out.join("model.safetensors")).await?;
        let base: ModelManifest = self.blobs.get_json(base).await?;
        manifest.check_matches(&base.weights).context("the trainer gave back other tensors than it was given")?;
        self.remove_work(&name);
        Ok(ContributedCpt::from_training(weights, metrics(&report)))
    }

    /// Trains on the private texts. What comes out stays on this node.
    pub(super) async fn private_cpt(&self, base: Digest) -> Result<(SovereignModel, TrainingMetrics)> {
        let texts = self.settings.texts.private.clone();
        let (out, report) = self.train("sovereign", &texts, &self.settings.private_cpt, base, "Private CPT").await?;
        let (model, _) = self.blobs.import_model(&out).await?;
        self.remove_work("sovereign");
        Ok((SovereignModel::new(base, model), metrics(&report)))
    }

    fn remove_work(&self, name: &str) {
        // Only space is lost when this fails.
        let _ = fs::remove_dir_all(self.home.work_dir().join(name));
    }

    /// Runs one job to its end. A job that was interrupted goes on from its last checkpoint.
    async fn train(
        &self,
        name: &str,
        texts: &[PathBuf],
        training: &Training,
        base: Digest,
        what: &str,
    ) -> Result<(PathBuf, CptReport)> {
        let work = absolute(&self.home.work_dir())?.join(name);
        let base_dir = work.join("base");
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        if !base_dir.join("model.safetensors").exists() {
            let manifest: ModelManifest = self.blobs.get_json(base).await?;
            self.blobs.export_model(&manifest, &base_dir).await?;
        }
        let job = CptJob {
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
        };
        let job_path = work.join("job.json");
        crate::files::write_atomic(&job_path, &serde_json::to_vec_pretty(&job)?)?;
        let _slot = self.slot().await?;
        self.run_trainer(&job_path, what).await?;
        let report_path = job.out_dir.join("report.json");
        let report = crate::files::read_text(&report_path)?;
        let report = serde_json::from_str(&report).with_context(|| format!("in {}", report_path.display()))?;
        Ok((job.out_dir, report))
    }

    async fn run_trainer(&self, job: &Path, what: &str) -> Result<()> {
        let mut command = match self.settings.machine.trainer.as_deref() {
            Some([program, arguments @ ..]) => {
                let mut command = tokio::process::Command::new(program);
                command.args(arguments).arg(job);
                command
            }
            Some([]) => bail!("machine.trainer in node.toml is empty; name a program or leave the line out"),
            None => {
                let mut command = tokio::process::Command::new(std::env::current_exe()?);
                command.args(["train", "cpt", "--json-progress"]).arg(job);
                // Training asks for the same large buffers at each step: keeping them saves a fifth of the time. The memory
                // goes back with the process.
                command.env("MIMALLOC_PURGE_DELAY", "-1");
                command
            }
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the trainer")?;
        let mut working = self.reporter.start("train", what, "tokens");
        let stdout = child.stdout.take().context("the trainer has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            if let Ok(step) = serde_json::from_str::<Step>(&line) {
                working.update(step.done, step.total);
            }
        }
        let status = child.wait().await?;
        working.end();
        if !status.success() {
            bail!("the trainer ended with {status}; its messages are above. The job: {}", job.display());
        }
        Ok(())
    }
}

fn metrics(report: &CptReport) -> TrainingMetrics {
    TrainingMetrics {
        num_tokens: report.num_tokens,
        num_steps: report.num_steps,
        first_loss: report.first_loss,
        last_loss: report.last_loss,
        wall_seconds: report.wall_seconds,
        cpu_seconds: report.cpu_seconds,
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}
