//! `tapestry train`.

use crate::files;
use crate::progress::{Form, Reporter, when_parent_is_gone};
use anyhow::Result;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_train::{Stage, TrainError, TrainJob, TrainReport, run_job};

/// Set by SIGINT and SIGTERM, and by the end of the node that started this: the job writes a checkpoint and ends.
static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) fn run(job_path: &Path, stage: Stage, is_child: bool) -> Result<()> {
    let job: TrainJob = serde_json::from_str(&files::read_text(job_path)?)
        .map_err(|error| TrainError::Job { path: job_path.to_path_buf(), reason: error.to_string() })?;
    job.check_stage(stage)?;
    std::thread::spawn(|| {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            let _ = runtime.block_on(crate::coordinator::stop_signal());
            STOP.store(true, Ordering::Relaxed);
        }
    });
    if is_child {
        when_parent_is_gone(|| STOP.store(true, Ordering::Relaxed));
        run_job(&job, &mut |_| {}, &STOP)?;
        return Ok(());
    }
    let mut working = Reporter::new(Form::People).start("train", job.out_dir.display().to_string(), "tokens");
    let mut progress = |p: &tapestry_train::TrainProgress| working.update(p.tokens_done, p.tokens_total);
    let report = run_job(&job, &mut progress, &STOP)?;
    working.end();
    println!("{}", summary(&report, &job));
    Ok(())
}

fn summary(report: &TrainReport, job: &TrainJob) -> String {
    let mut lines = vec![format!(
        "{} tokens in {} steps, loss {:.4} -> {:.4}; the model is in {}",
        report.num_tokens,
        report.num_steps,
        report.first_loss,
        report.last_loss,
        job.out_dir.display()
    )];
    if let (Some(first), Some(last)) = (report.validation.first(), report.validation.last()) {
        let right = match (first.accuracy, last.accuracy) {
            (Some(before), Some(after)) => format!(", {:.0}% -> {:.0}% right", 100.0 * before, 100.0 * after),
            _ => String::new(),
        };
        lines.push(format!("on what was set aside: loss {:.4} -> {:.4}{right}", first.loss, last.loss));
    }
    if report.num_left_out > 0 {
        lines.push(format!("{} samples are longer than a window and were left out", report.num_left_out));
    }
    lines.push(format!("the curves are in {}", job.out_dir.join("loss.svg").display()));
    lines.join("\n")
}
