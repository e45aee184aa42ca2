//! `tapestry train`.

use crate::files;
use crate::progress::{Form, Reporter};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_train::{CptJob, run_cpt};

/// Set by SIGINT and SIGTERM: the job writes a checkpoint and ends.
static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) fn cpt(job_path: &Path, form: Form) -> Result<()> {
    let job: CptJob = serde_json::from_str(&files::read_text(job_path)?)
        .with_context(|| format!("{} is not a job", job_path.display()))?;
    std::thread::spawn(|| {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            let _ = runtime.block_on(crate::coordinator::stop_signal());
            STOP.store(true, Ordering::Relaxed);
        }
    });
    let mut working = Reporter::new(form).start("train", job.out_dir.display().to_string(), "tokens");
    let mut progress = |p: &tapestry_train::TrainProgress| working.update(p.tokens_done, p.tokens_total);
    let report = run_cpt(&job, &mut progress, &STOP)?;
    working.end();
    files::write_atomic(&job.out_dir.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
    if form == Form::People {
        println!(
            "{} tokens in {} steps, loss {:.4} -> {:.4}; the model is in {}",
            report.num_tokens,
            report.num_steps,
            report.first_loss,
            report.last_loss,
            job.out_dir.display()
        );
    }
    Ok(())
}
