//! `tapestry demo`: a whole consortium on one machine, by the same commands and processes as on many.
//!
//! Everything lands in one folder. Each step asks first whether it was done, so that a second run goes on where the first
//! one stopped.

mod collect;
pub(crate) mod poison;
mod processes;

use crate::cli::{DemoArgs, DraftArgs};
use crate::clock::now;
use crate::command;
use crate::files;
use crate::home::Home;
use crate::policy::PolicyArgs;
use crate::progress::{Form, Reporter};
use crate::role::Role;
use crate::settings::{CoordinatorAddress, NodeSettings, Training};
use anyhow::{Context as _, Result, bail};
use processes::Processes;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tapestry_core::Timestamp;
use tapestry_demo::results::{Mode, Phase, PhaseRecord, Results, Role as ResultRole};
use tapestry_demo::{Corpora, DemoMember, InputCache, InputProgress, MemberTexts, demo_members};
use tapestry_round::node::Node;

/// From which everything random in a demo follows.
const SEED: u64 = 1;

/// What was asked for; kept in the folder, so that a second run does not mix two demos.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    quick: bool,
    num_members: usize,
    with_faulty_member: bool,
    started_at: Timestamp,
}

impl Plan {
    fn is_same_demo(&self, other: &Self) -> bool {
        Self { started_at: other.started_at, ..self.clone() } == *other
    }
}

impl Plan {
    /// As one would type it.
    fn options(&self) -> String {
        let quick = if self.quick { "--quick " } else { "" };
        let faulty = if self.with_faulty_member { " --with-faulty-member" } else { "" };
        format!("{quick}--members {}{faulty}", self.num_members)
    }
}

/// A demo's folder.
struct Demo {
    dir: PathBuf,
    plan: Plan,
    members: Vec<DemoMember>,
    reporter: Reporter,
}

pub(crate) async fn run(args: &DemoArgs) -> Result<()> {
    let plan = Plan {
        quick: args.quick,
        num_members: args.members,
        with_faulty_member: args.with_faulty_member,
        started_at: now(),
    };
    let dir = std::path::absolute(&args.dir)?;
    let plan = prepare_folder(&dir, &plan, args.fresh)?;
    let members = demo_members(args.members, args.with_faulty_member)?;
    let demo = Demo { dir, plan, members, reporter: Reporter::new(Form::People) };
    let lock = Home::at(&demo.dir).lock()?;
    if demo.is_done() {
        demo.show_done()?;
        return Ok(());
    }
    let ran = tokio::select! {
        ran = demo.run() => ran,
        signal = crate::coordinator::stop_signal() => {
            signal?;
            // The processes got the same signal from the terminal; give them a moment to end by themselves.
            tokio::time::sleep(Duration::from_millis(300)).await;
            bail!("interrupted; the same command goes on where it stopped");
        }
    };
    drop(lock);
    ran
}

/// Makes the folder, or checks that it holds this same demo.
fn prepare_folder(dir: &Path, plan: &Plan, fresh: bool) -> Result<Plan> {
    let path = dir.join("demo.json");
    if fresh && path.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot delete {}", dir.display()))?;
    }
    if path.exists() {
        let found: Plan = serde_json::from_str(&files::read_text(&path)?)
            .with_context(|| format!("{} is not of this version; start over with --fresh", path.display()))?;
        if !found.is_same_demo(plan) {
            bail!(
                "{} holds another demo ({}); give its options again, another --dir, or start over with --fresh",
                dir.display(),
                found.options()
            );
        }
        return Ok(found);
    }
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        bail!("{} is not empty and holds no demo; give another --dir", dir.display());
    }
    files::write_atomic(&path, &serde_json::to_vec_pretty(plan)?)?;
    Ok(plan.clone())
}

impl Demo {
    fn results_path(&self) -> PathBuf {
        self.dir.join("results.json")
    }

    fn is_done(&self) -> bool {
        self.results_path().exists()
    }

    fn show_done(&self) -> Result<()> {
        let results = Results::read(&self.results_path())?;
        println!("{}", tapestry_demo::terminal_report(&results));
        println!("All of this was done before. Everything is in {}; --fresh starts over.", self.dir.display());
        Ok(())
    }

    async fn run(&self) -> Result<()> {
        let mut phases = vec![];
        let mut timed = |phase, started_at: Timestamp| {
            let seconds = now().since(started_at).as_secs_f64();
            let (role, round) = (ResultRole::Demo, None);
            phases.push(PhaseRecord { role, phase, round, started_at, seconds, bytes_received: 0, bytes_sent: 0 });
        };
        let began = now();
        let texts = self.texts()?;
        timed(Phase::Prepare, began);
        let began = now();
        let base = self.base(&texts)?;
        timed(Phase::Adopt, began);
        let nodes = self.nodes(&texts)?;
        self.charter(&texts, &base, &nodes).await?;
        let usages = self.rounds(&nodes).await?;
        self.finish(&nodes, &usages, phases).await
    }

    /// The texts of members and consortium: downloaded once, or generated.
    fn texts(&self) -> Result<Corpora> {
        let dir = self.dir.join("texts");
        if self.plan.quick {
            return Ok(tapestry_demo::generate_quick_texts(&dir, &self.members, SEED)?);
        }
        let mut working = self.reporter.start("inputs", "packages with texts and base", "bytes");
        let cache = InputCache::open_default()?;
        let mut progress = |p: InputProgress<'_>| working.update(p.bytes, p.total_bytes);
        let corpora = tapestry_demo::prepare_corpora(&cache, &dir, &self.members, &mut progress)?;
        working.end();
        Ok(corpora)
    }

    /// The adopted base in Hugging Face layout.
    fn base(&self, texts: &Corpora) -> Result<PathBuf> {
        let out = self.dir.join("base");
        if out.join("model.safetensors").exists() {
            return Ok(out);
        }
        if self.plan.quick {
            self.train_tiny_base(texts, &out)?;
            return Ok(out);
        }
        let mut fetching = self.reporter.start("inputs", "the base", "bytes");
        let mut progress = |p: InputProgress<'_>| fetching.update(p.bytes, p.total_bytes);
        let gguf = InputCache::open_default()?.base_gguf(&mut progress)?;
        fetching.end();
        let mut working = self.reporter.start("adopt", gguf.display().to_string(), "bytes");
        tapestry_weights::adopt_gguf(&gguf, &out, &mut |done, total| working.update(done, total))?;
        working.end();
        Ok(out)
    }

    /// A tiny base for the quick demo: initialised and trained here.
    fn train_tiny_base(&self, texts: &Corpora, out: &Path) -> Result<()> {
        let quick = texts.quick_base.as_ref().context("the quick demo has no text for its base")?;
        let work = self.dir.join("tiny-base");
        let start = work.join("start");
        if !start.join("model.safetensors").exists() {
            let config = tapestry_model::DecoderConfig::tiny(quick.vocab_size);
            tapestry_model::init_model(&start, &config, &quick.tokenizer, 1)?;
        }
        let job = tapestry_train::TrainJob {
            contract: tapestry_train::TRAINER_CONTRACT,
            base_dir: start,
            out_dir: work.join("out"),
            texts: vec![quick.pretraining_mix.clone()],
            num_steps: 320,
            batch_windows: 8,
            window: 128,
            learning_rate: 3e-3,
            warmup_steps: 10,
            weight_decay: 0.01,
            clip_norm: 1.0,
            seed: 1,
            num_threads: None,
            checkpoint_every: None,
            ..tapestry_train::TrainJob::default()
        };
        let mut working = self.reporter.start("train", "a tiny base", "tokens");
        let never = std::sync::atomic::AtomicBool::new(false);
        tapestry_train::run_job(&job, &mut |p| working.update(p.tokens_done, p.tokens_total), &never)?;
        working.end();
        fs::rename(&job.out_dir, out)?;
        fs::remove_dir_all(&work)?;
        Ok(())
    }

    /// Homes with keys and settings, one for each member.
    fn nodes(&self, texts: &Corpora) -> Result<Vec<(String, Home)>> {
        let mut nodes = vec![];
        for (index, member) in self.members.iter().enumerate() {
            let home = self.node_home(member);
            let program = std::env::current_exe()?.to_string_lossy().into_owned();
            let trainer = member.is_faulty.then(|| vec![program, "demo-poison".to_owned()]);
            let seed = 100 * (u64::try_from(index)? + 1);
            self.node(&home, &texts.members[&member.name], &texts.general_english_train, trainer, seed)?;
            nodes.push((member.name.to_string(), home));
        }
        Ok(nodes)
    }

    fn node(
        &self,
        home: &Home,
        texts: &MemberTexts,
        general: &Path,
        trainer: Option<Vec<String>>,
        seed: u64,
    ) -> Result<()> {
        if home.path("node.toml").exists() {
            return Ok(());
        }
        let (mut contributed, private) = (vec![texts.contributed.clone()], vec![texts.private.clone()]);
        if self.plan.quick {
            // Rehearsal: a tiny base forgets its English within a few steps. The real one does not.
            contributed.push(general.to_path_buf());
        }
        command::node::init(home, &contributed, &private, &texts.held_out)?;
        let mut settings = NodeSettings::read(home)?;
        let (training, max_tokens) = (self.training(seed), 2_048);
        // The Shared Base knows these texts' kind already: half the rate refines where the whole would stir.
        let learning_rate = training.learning_rate / 2.0;
        settings.private_cpt = Training { seed: seed + 50, learning_rate, ..training.clone() };
        settings.contributed_cpt = training;
        settings.evaluation.max_tokens = max_tokens;
        settings.machine.slot = Some(self.dir.join("slot"));
        settings.machine.trainer = trainer;
        settings.write(home)
    }

    const fn mode(&self) -> Mode {
        if self.plan.quick { Mode::Quick } else { Mode::Full }
    }

    /// CPT as the nodes' settings have it.
    const fn training(&self, seed: u64) -> Training {
        if self.plan.quick { quick_cpt(seed) } else { cpt(seed) }
    }

    /// What the run was set to, for its results.
    fn settings(&self) -> std::collections::BTreeMap<String, String> {
        let training = self.training(SEED);
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        [
            ("cores", cores.to_string()),
            ("cpt.num_steps", training.num_steps.to_string()),
            ("cpt.batch_windows", training.batch_windows.to_string()),
            ("cpt.window", training.window.to_string()),
            ("cpt.learning_rate", training.learning_rate.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn node_home(&self, member: &DemoMember) -> Home {
        Home::at(&self.dir.join("nodes").join(member.name.as_str()))
    }

    fn coordinator_home(&self) -> Home {
        Home::at(&self.dir.join("coordinator"))
    }

    /// Drafted by the coordinator's host, signed by every member, put in force.
    async fn charter(&self, texts: &Corpora, base: &Path, nodes: &[(String, Home)]) -> Result<()> {
        let path = self.dir.join("charter.json");
        let home = self.coordinator_home();
        if home.path("charter-published").exists() {
            return Ok(());
        }
        let mut members = vec![];
        for (name, node) in nodes {
            members.push((name.parse()?, node.public_key()?));
        }
        if !path.exists() {
            let draft = DraftArgs {
                standbys: vec![],
                home: home.dir().to_path_buf(),
                out: path.clone(),
                consortium: "Tapestry demo".into(),
                members,
                base: base.to_path_buf(),
                open_text: texts.open_held_out.clone(),
                open_text_max_tokens: 2_048,
                quorum: None,
                rounds: 2,
                window: Duration::from_secs(3600),
                min_contributions: 2,
                late_rounds: 0,
                influence_cap: 0.5,
                policy: PolicyArgs::default(),
                max_relative_change: if self.plan.quick { 1.0 } else { 0.25 },
                max_contribution_rise: 0.25,
                max_merged_rise: if self.plan.quick { 0.25 } else { 0.03 },
                text: None,
                witnesses: None,
                decide_by: vec![],
                min_vote: Duration::from_secs(7 * 86_400),
                leaving_withdraws: false,
                valid_for: Duration::from_secs(30 * 86_400),
            };
            command::charter::draft(&draft).await?;
        }
        for (_, node) in nodes {
            command::charter::sign(&path, node)?;
        }
        command::charter::publish(&[path], &home).await?;
        files::write_atomic(&home.path("charter-published"), b"")
    }

    /// The processes: one coordinator, one node for each member.
    async fn rounds(&self, nodes: &[(String, Home)]) -> Result<processes::Usages> {
        let coordinator = self.coordinator_home();
        let mut processes = Processes::new();
        // A file of an earlier run would name a port that is no longer ours.
        let _ = fs::remove_file(coordinator.path("address"));
        processes.start("coordinator", coordinator.dir(), &["coordinator", "run", "--listen", "127.0.0.1:0"])?;
        processes.watch(&[], || coordinator.path("address").exists()).await?;
        let address = files::read_text(&coordinator.path("address"))?.trim().to_owned();
        let key = coordinator.public_key()?;
        let mut awaited = vec![];
        for (name, home) in nodes {
            if Role::<Node>::open(home, &home.key()?).await?.state().charter().is_none() {
                command::node::join(home, &format!("https://{address}#{key}"), &[], None).await?;
            } else {
                let mut settings = NodeSettings::read(home)?;
                settings.coordinator = Some(CoordinatorAddress { address: address.clone(), key });
                settings.write(home)?;
            }
            processes.start(name, home.dir(), &["node", "run"])?;
            awaited.push(name.clone());
        }
        processes.watch(&awaited, || false).await?;
        processes.stop("coordinator").await?;
        Ok(processes.usages())
    }

    /// Models in Hugging Face layout, checked logs, table and report.
    async fn finish(
        &self,
        nodes: &[(String, Home)],
        usages: &processes::Usages,
        phases: Vec<PhaseRecord>,
    ) -> Result<()> {
        let models = self.dir.join("models");
        let shared = models.join("shared-base");
        if !shared.join("model.safetensors").exists() {
            command::model::export(&self.coordinator_home(), "shared-base", &shared).await?;
        }
        for member in self.members.iter().filter(|member| !member.is_faulty) {
            let out = models.join(member.name.as_str());
            if !out.join("model.safetensors").exists() {
                command::model::export(&self.node_home(member), "sovereign", &out).await?;
            }
        }
        let results = collect::results(self, nodes, usages, phases, now()).await?;
        tapestry_demo::write_html_report(&results, &self.dir.join("report.html"))?;
        results.write(&self.results_path())?;
        println!("{}", tapestry_demo::terminal_report(&results));
        println!("Report:  {}", self.dir.join("report.html").display());
        println!("Models:  {}", models.display());
        Ok(())
    }
}

/// CPT of the 135-million-parameter base: a few minutes for the whole demo on two cores.
const fn cpt(seed: u64) -> Training {
    Training {
        num_steps: 16,
        batch_windows: 2,
        window: 256,
        learning_rate: 2e-4,
        warmup_steps: 3,
        weight_decay: 0.01,
        clip_norm: 1.0,
        seed,
    }
}

/// CPT of the tiny base.
const fn quick_cpt(seed: u64) -> Training {
    Training {
        num_steps: 40,
        batch_windows: 8,
        window: 128,
        learning_rate: 2e-4,
        warmup_steps: 3,
        weight_decay: 0.01,
        clip_norm: 1.0,
        seed,
    }
}
