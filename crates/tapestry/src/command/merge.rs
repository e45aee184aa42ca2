//! `tapestry merge`.

use crate::cli::{ExplainArgs, MergeArgs, MergeCommand};
use crate::command::log;
use crate::files;
use crate::home::Home;
use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use tapestry_core::format_duration;
use tapestry_engine::{
    ContributionReport, FolderReport, Plan, Progress, Recipe, Running, Stage, merge_folders, on_threads, plan,
};
use tapestry_merge::weights::explain as explain_weights;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};

/// Bytes between two places from which an interrupted merge goes on.
const SYNC_EVERY: u64 = 256 << 20;

pub(crate) fn run(args: &MergeArgs) -> Result<()> {
    let path = args.recipe.as_deref().context("name a recipe: tapestry merge RECIPE")?;
    let recipe = Recipe::read(path)?;
    if args.dry_run {
        let plan = on_threads(args.threads, || plan(&recipe))??;
        if args.json {
            println!("{}", serde_json::to_string(&plan)?);
        } else {
            print!("{}", describe_plan(&recipe, &plan));
        }
        return Ok(());
    }
    let bar = Bar::new();
    let running = Running {
        stop: stop_on_interrupt()?,
        sync_every: SYNC_EVERY,
        progress: &|stage, progress| bar.show(stage, progress),
    };
    let report = on_threads(args.threads, || merge_folders(&recipe, &running))?;
    bar.finish();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", describe_report(&recipe, &report));
    }
    Ok(())
}

/// The flag that an interrupt from the keyboard sets: the merge then stops at the next safe place. A second one ends it at once.
fn stop_on_interrupt() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("stopping at the next safe place; once more ends at once");
                STOP.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    });
    Ok(&STOP)
}

/// A bar with bytes a second, on a terminal; nothing elsewhere.
struct Bar {
    bar: ProgressBar,
    stage: Mutex<Option<Stage>>,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template(
            "{msg:>9} [{bar:40}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        );
        bar.set_style(style.expect("the template is right").progress_chars("=> "));
        Self { bar, stage: Mutex::new(None) }
    }

    fn show(&self, stage: Stage, progress: Progress) {
        let mut shown = self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *shown != Some(stage) {
            *shown = Some(stage);
            self.bar.reset();
            self.bar.set_length(progress.total);
            self.bar.set_message(match stage {
                Stage::Surveying => "surveying",
                Stage::Merging => "merging",
                Stage::Keeping => "state",
            });
        }
        self.bar.set_position(progress.done);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes for people: in GB, MB or kB (powers of ten).
#[expect(clippy::cast_precision_loss, reason = "a number for people")]
fn in_bytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} kB", bytes as f64 / 1e3),
    }
}

fn describe_contributions(contributions: &[ContributionReport]) -> String {
    let width = contributions.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).max(12);
    let mut text = format!("  {:<width$}  share   from\n", "contribution");
    for c in contributions {
        text.push_str(&format!("  {:<width$}  {:.4}  {}\n", c.name, c.share, c.path.display()));
    }
    text
}

fn describe_plan(recipe: &Recipe, plan: &Plan) -> String {
    let base = recipe.base.as_ref().map_or("none".into(), |base| base.display().to_string());
    format!(
        "{} of {} contributions; base: {base}\n{}  tensors  {} with {} elements\n  reads    {}\n  writes   {} to {}\n  memory   at most {}, \
         with {} threads\n  time     about {} (a sample was merged)\nNothing was written. Every header was checked; values only in the sample.\n",
        recipe.method.name(),
        plan.contributions.len(),
        describe_contributions(&plan.contributions),
        plan.num_tensors,
        plan.num_elements,
        in_bytes(plan.input_bytes),
        in_bytes(plan.output_bytes),
        recipe.output.display(),
        in_bytes(plan.memory_bytes),
        plan.num_threads,
        format_duration(plan.estimate),
    )
}

fn describe_report(recipe: &Recipe, report: &FolderReport) -> String {
    let resumed = match report.weights.resumed_bytes {
        0 => String::new(),
        bytes => format!(" ({} of it from the run before)", in_bytes(bytes)),
    };
    format!(
        "{}merged by {} into {}: {}{resumed}\nmodel.safetensors has BLAKE3 {}\n",
        describe_contributions(&report.contributions),
        report.method.name(),
        recipe.output.display(),
        in_bytes(report.weights.size_bytes),
        report.weights.blake3,
    )
}

pub(crate) async fn explain(args: MergeArgs) -> Result<()> {
    let Some(MergeCommand::Explain(args)) = args.command else { bail!("name a recipe: tapestry merge RECIPE") };
    match (&args.file, &args.home) {
        (Some(file), _) => explain_file(file, args.json),
        (None, Some(home)) => explain_rounds(&Home::at(home), &args).await,
        (None, None) => bail!("name a recipe, a merge.json, or a coordinator's --home"),
    }
}

/// The shares in a recipe or in the record of a merge.
fn explain_file(file: &Path, json: bool) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Record {
        contributions: Vec<ContributionReport>,
    }
    let contributions = if file.extension().is_some_and(|extension| extension == "json") {
        let text = files::read_text(file)?;
        let record: Record =
            serde_json::from_str(&text).with_context(|| format!("{} is no record of a merge", file.display()))?;
        record.contributions
    } else {
        Recipe::read(file)?.shares()
    };
    if json {
        for contribution in &contributions {
            println!("{}", serde_json::to_string(contribution)?);
        }
    } else {
        print!("{}", describe_contributions(&contributions));
        println!(
            "The shares are the weights divided by their sum. Those of a consortium's rounds follow from its charter: --home."
        );
    }
    Ok(())
}

/// The weights of published rounds, from the log.
async fn explain_rounds(home: &Home, args: &ExplainArgs) -> Result<()> {
    let key = args.key.map_or_else(|| home.public_key(), Ok)?;
    let (_, entries) = log::read::<Coordinator>(home, key).await?;
    let mut found = false;
    for entry in entries {
        let CoordinatorEvent::MergeStarted { round, weights } = entry.event else { continue };
        if args.round.is_some_and(|asked| asked != round) {
            continue;
        }
        found = true;
        if args.json {
            for weight in &weights {
                println!("{}", serde_json::json!({ "round": round, "weight": weight }));
            }
        } else {
            println!("Round {round}, merged at {}", entry.at);
            print!("{}", explain_weights(&weights));
        }
    }
    if !found {
        let which = args.round.map_or("no round".into(), |round| format!("not round {round}"));
        bail!("{which} has been merged by this coordinator", which = which);
    }
    Ok(())
}
