//! `tapestry train`.

use crate::files;
use crate::progress::{Form, Reporter, when_parent_is_gone};
use anyhow::Result;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_train::{CptJob, TrainError, run_cpt};

/// Set by SIGINT and SIGTERM, and by the end of the node that started this: the job writes a checkpoint and ends.
static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) fn cpt(job_path: &Path, is_child: bool) -> Result<()> {
    let job: CptJob = serde_json::from_str(&files::read_text(job_path)?)
        .map_err(|error| TrainError::Job { path: job_path.to_path_buf(), reason: error.to_string() })?;
    std::thread::spawn(|| {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            let _ = runtime.block_on(crate::coordinator::stop_signal());
            STOP.store(true, Ordering::Relaxed);
        }
    });
    if is_child {
        when_parent_is_gone(|| STOP.store(true, Ordering::Relaxed));
        run_cpt(&job, &mut |_| {}, &STOP)?;
        return Ok(());
    }
    let mut working = Reporter::new(Form::People).start("train", job.out_dir.display().to_string(), "tokens");
    let mut progress = |p: &tapestry_train::TrainProgress| working.update(p.tokens_done, p.tokens_total);
    let report = run_cpt(&job, &mut progress, &STOP)?;
    working.end();
    println!(
        "{} tokens in {} steps, loss {:.4} -> {:.4}; the model is in {}",
        report.num_tokens,
        report.num_steps,
        report.first_loss,
        report.last_loss,
        job.out_dir.display()
    );
    Ok(())
}
