//! The demo's processes: started, watched, measured, stopped.

use crate::clock::now;
use crate::progress::Step;
use anyhow::{Context as _, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// What one process used, its own children included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// When it was first seen, in milliseconds since 1970.
    pub(crate) started_at_ms: u64,
    /// When it was last seen, in milliseconds since 1970.
    pub(crate) last_seen_at_ms: u64,
    /// The largest resident memory of the process and its children together, in bytes.
    pub(crate) peak_bytes: u64,
    /// Processor time of the process and of the children that it waited for, in seconds.
    pub(crate) cpu_seconds: f64,
}

/// What all processes used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usages {
    pub(crate) by_role: BTreeMap<String, Usage>,
    /// The largest resident memory of all of them at one moment, in bytes.
    pub(crate) peak_bytes_together: u64,
}

/// A step of one role's work.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) role: String,
    pub(crate) step: Step,
}

/// The processes of one demo.
pub(crate) struct Processes {
    children: BTreeMap<String, Running>,
    reports: mpsc::UnboundedReceiver<Report>,
    sender: mpsc::UnboundedSender<Report>,
    bars: MultiProgress,
    usages: Arc<Mutex<Usages>>,
    pids: Arc<Mutex<BTreeMap<String, u32>>>,
    stop_sampling: Arc<AtomicBool>,
}

struct Running {
    child: Child,
    bar: ProgressBar,
    messages: PathBuf,
}

impl Processes {
    pub(crate) fn new() -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let (usages, pids, stop_sampling) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let sampler = Sampler { usages: Arc::clone(&usages), pids: Arc::clone(&pids) };
        let stop = Arc::clone(&stop_sampling);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                sampler.sample();
                std::thread::sleep(SAMPLE_EVERY);
            }
        });
        Self { children: BTreeMap::new(), reports, sender, bars: MultiProgress::new(), usages, pids, stop_sampling }
    }

    /// Starts a role: this program with `arguments`; its messages go to `HOME/messages.txt`.
    pub(crate) fn start(&mut self, role: &str, home: &Path, arguments: &[&str]) -> Result<()> {
        let messages = home.join("messages.txt");
        let file = File::options().create(true).append(true).open(&messages);
        let file = file.with_context(|| format!("cannot write {}", messages.display()))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .arg("--home")
            .arg(home)
            .arg("--json-progress")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the process of {role}"))?;
        let pid = child.id().context("the process ended at once")?;
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(role.to_owned(), pid);
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, name) = (self.sender.clone(), role.to_owned());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(step) = serde_json::from_str(&line) {
                    let _ = sender.send(Report { role: name.clone(), step });
                }
            }
        });
        let bar = self.bars.add(ProgressBar::new(0));
        bar.set_style(style(false));
        bar.set_prefix(format!("{role:<12}"));
        bar.enable_steady_tick(Duration::from_millis(150));
        self.children.insert(role.to_owned(), Running { child, bar, messages });
        Ok(())
    }

    /// Shows what happens until `is_enough` says so, or a process ends that should not, or all of `awaited` have ended.
    pub(crate) async fn watch(&mut self, awaited: &[String], is_enough: impl Fn() -> bool) -> Result<()> {
        while !is_enough() {
            tokio::select! {
                report = self.reports.recv() => {
                    let Some(report) = report else { bail!("nothing reports any more") };
                    self.show(&report);
                }
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            let mut open = false;
            for (role, running) in &mut self.children {
                let is_awaited = awaited.contains(role);
                match running.child.try_wait()? {
                    None => open |= is_awaited,
                    Some(status) if status.success() && is_awaited => {
                        if !running.bar.is_finished() {
                            running.bar.set_style(style(false));
                            running.bar.finish_with_message("done");
                        }
                    }
                    Some(status) => {
                        let text = fs::read_to_string(&running.messages).unwrap_or_default();
                        let last: Vec<_> = text.lines().rev().take(12).collect();
                        let last: Vec<_> = last.into_iter().rev().collect();
                        bail!(
                            "the process of {role} ended with {status}. Its last messages ({}):\n{}",
                            running.messages.display(),
                            last.join("\n")
                        );
                    }
                }
            }
            if !awaited.is_empty() && !open {
                return Ok(());
            }
        }
        Ok(())
    }

    fn show(&self, report: &Report) {
        let Some(running) = self.children.get(&report.role) else { return };
        let (bar, step) = (&running.bar, &report.step);
        if step.what == "note" {
            // Without a terminal there are no bars, and lines are what a log wants.
            let line = format!("{:<12} {}", report.role, step.detail);
            if self.bars.is_hidden() {
                eprintln!("{line}")
            } else {
                bar.println(line)
            }
            return;
        }
        bar.set_style(style(step.total > 0 && !step.is_end));
        bar.set_length(step.total);
        bar.set_position(step.done);
        bar.set_message(if step.is_end { String::new() } else { format!("{} {}", step.what, step.detail) });
    }

    /// Asks a role to stop, and waits for it.
    pub(crate) async fn stop(&mut self, role: &str) -> Result<()> {
        let Some(mut running) = self.children.remove(role) else { return Ok(()) };
        if let Some(pid) =
            running.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        if tokio::time::timeout(Duration::from_secs(10), running.child.wait()).await.is_err() {
            running.child.kill().await?;
        }
        running.bar.finish_and_clear();
        Ok(())
    }

    /// What the processes used so far.
    pub(crate) fn usages(&self) -> Usages {
        self.usages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop_sampling.store(true, Ordering::Relaxed);
    }
}

fn style(has_length: bool) -> ProgressStyle {
    let template = if has_length { "{prefix} [{bar:28}] {percent:>3} % {msg}" } else { "{prefix} {spinner} {msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Looks at memory and processor time, where the system tells (Linux: /proc).
struct Sampler {
    usages: Arc<Mutex<Usages>>,
    pids: Arc<Mutex<BTreeMap<String, u32>>>,
}

/// A process as /proc/PID/stat shows it.
struct ProcessStat {
    parent: u32,
    resident_bytes: u64,
    cpu_seconds: f64,
}

impl Sampler {
    fn sample(&self) {
        let all = processes();
        let roots = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut usages = self.usages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut together = 0;
        for (role, root) in roots {
            let Some(stat) = all.get(&root) else { continue };
            let resident: u64 =
                all.iter().filter(|(pid, _)| descends(**pid, root, &all)).map(|(_, s)| s.resident_bytes).sum();
            together += resident;
            let usage = usages.by_role.entry(role).or_default();
            let now_ms = now().as_ms();
            if usage.started_at_ms == 0 {
                usage.started_at_ms = now_ms;
            }
            usage.last_seen_at_ms = now_ms;
            usage.peak_bytes = usage.peak_bytes.max(resident);
            usage.cpu_seconds = usage.cpu_seconds.max(stat.cpu_seconds);
        }
        usages.peak_bytes_together = usages.peak_bytes_together.max(together);
    }
}

fn descends(pid: u32, root: u32, all: &BTreeMap<u32, ProcessStat>) -> bool {
    let mut at = pid;
    for _ in 0..16 {
        if at == root {
            return true;
        }
        match all.get(&at) {
            Some(stat) => at = stat.parent,
            None => return false,
        }
    }
    false
}

fn processes() -> BTreeMap<u32, ProcessStat> {
    let Ok(folder) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Parses /proc/PID/stat. Times are in clock ticks, of which Linux shows 100 a second on every architecture.
fn stat(text: &str) -> Option<ProcessStat> {
    // The name in parentheses may itself hold spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    let pages = number(21)?;
    #[expect(clippy::cast_precision_loss, reason = "seconds of processor time")]
    let cpu_seconds = ticks as f64 / 100.0;
    let resident_bytes = pages * rustix::param::page_size() as u64;
    Some(ProcessStat { parent: u32::try_from(number(1)?).ok()?, resident_bytes, cpu_seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read() {
        let line = "42 (a) b) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 20 30 20 0 4 0 1000 9999 25 184467";
        let stat = stat(line).expect("parses");
        assert_eq!((stat.parent, stat.resident_bytes), (7, 25 * rustix::param::page_size() as u64));
        assert!((stat.cpu_seconds - 2.5).abs() < 1e-9);
    }
}
