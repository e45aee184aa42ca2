//! `cargo xtask bench merge`: merging models that lie in the page cache into one that is written, hashed and synced.
//!
//! Ours is `tapestry merge RECIPE`, from the start of the process to its end. The peers' start (interpreter, imports) is
//! taken off, they do not hash, and none of them syncs what it wrote; some keep the result in memory and write nothing.

mod agreement;
mod peers;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use self::peers::{Peer, Peers};
use super::limits::{Limits, Moved};
use super::measure::{Program, measure};
use super::models::{self, B1, B7, M135, SMALL, Shape, TINY};
use super::report::{Comparison, Contender, Target, limit_rows};
use super::{Options, machine};

/// A merge that is measured.
struct Work {
    name: String,
    title: String,
    method: &'static str,
    parameters: Value,
    shape: &'static Shape,
    /// Whether model 0 is the base of the others, or one of those that are merged.
    has_base: bool,
    /// How many models are merged; for a method that obeys weights, these are 10, 20, 30 and so on.
    num_members: usize,
    is_weighted: bool,
    /// How many of them are different; the others are hard links to these.
    num_different: usize,
    target: Target,
    peers: &'static [Peer],
    /// Runs only when it is named, or with `--full`.
    on_demand: bool,
    /// Runs once: only its memory is of interest, or it takes long.
    once: bool,
}

/// Everything that is measured, in the order of issue 3's table.
fn works(quick: bool) -> Vec<Work> {
    let shape = if quick { &TINY } else { &M135 };
    let plain = || Work {
        name: String::new(),
        title: String::new(),
        method: "fedavg",
        parameters: json!({}),
        shape,
        has_base: false,
        num_members: 4,
        is_weighted: true,
        num_different: usize::MAX,
        target: Target::default(),
        peers: &[],
        on_demand: false,
        once: false,
    };
    let target = |wall_s, cpu_s, rss_mb| Target { wall_s: Some(wall_s), cpu_s, rss_mb: Some(rss_mb) };
    let onto_base = |name: &str, method, parameters, wall_s, peers| Work {
        name: name.into(),
        title: format!("{method} of 3 onto a base"),
        method,
        parameters,
        has_base: true,
        num_members: 3,
        is_weighted: false,
        target: target(wall_s, None, 512.0),
        peers,
        ..plain()
    };
    let robust = |name: &str, method, parameters, peers| Work {
        name: name.into(),
        title: format!("{method} of 5"),
        method,
        parameters,
        num_members: 5,
        is_weighted: false,
        target: target(2.0, None, 256.0),
        peers,
        ..plain()
    };
    let fedavg = Work {
        name: "fedavg-4".into(),
        title: "weighted mean of 4".into(),
        target: target(0.7, Some(1.2), 256.0),
        peers: peers::FEDAVG,
        ..plain()
    };
    let mut works = vec![
        fedavg,
        onto_base("ties-3", "ties", json!({ "density": 0.5 }), 3.0, peers::TIES),
        onto_base("dare-ties-3", "dare-ties", json!({ "density": 0.5, "seed": 1 }), 2.0, peers::DARE_TIES),
        robust("median-5", "median", json!({}), peers::MEDIAN),
        robust("trimmed-mean-5", "trimmed-mean", json!({ "trim": 1 }), peers::TRIMMED_MEAN),
    ];
    let sizes: &[&Shape] = if quick { &[&TINY, &SMALL] } else { &[&M135, &B1, &B7] };
    for shape in sizes {
        for num_members in [2, 8, 32] {
            let num_different = if **shape == B7 { 1 } else { 2 };
            works.push(Work {
                name: format!("flat-{}-{num_members}", shape.name),
                title: format!("mean of {num_members}, hard links to {num_different} different: memory against size"),
                shape,
                num_members,
                num_different,
                is_weighted: false,
                target: Target { rss_mb: Some(256.0), ..Target::default() },
                on_demand: **shape == B7,
                once: true,
                ..plain()
            });
        }
    }
    if !quick {
        works.push(Work {
            name: "7b".into(),
            title: "mean of 3 with the shape of Llama-2-7B".into(),
            shape: &B7,
            num_members: 3,
            is_weighted: false,
            target: Target { rss_mb: Some(512.0), ..Target::default() },
            on_demand: true,
            once: true,
            ..plain()
        });
    }
    works
}

impl Work {
    /// Models that must be made.
    fn num_models(&self) -> usize {
        self.num_members.min(self.num_different) + usize::from(self.has_base)
    }

    /// What ours must move.
    fn moved(&self) -> Moved {
        let written = self.shape.size_bytes();
        let read = self.num_models() as u64 * written;
        let from_disk = machine::memory_bytes().is_some_and(|memory| read > memory / 10 * 8);
        let read = (self.num_members + usize::from(self.has_base)) as u64 * written;
        Moved {
            read,
            from_disk,
            repeats: self.num_members > self.num_different,
            written,
            synced: written,
            hashed: written,
        }
    }

    /// What a peer must move: it neither hashes nor syncs.
    fn moved_by(&self, peer: &Peer) -> Moved {
        let written = if peer.writes { self.shape.size_bytes() } else { 0 };
        Moved { written, synced: 0, hashed: 0, ..self.moved() }
    }

    fn weight(&self, member: usize) -> usize {
        if self.is_weighted { 10 * (member + 1) } else { 1 }
    }

    /// The recipe; JSON is YAML.
    fn recipe(&self, models: &Models, output: &Path) -> Value {
        let contribution = |(index, path): (usize, &PathBuf)| {
            let mut entry = json!({ "path": path, "name": format!("member-{index:02}") });
            if self.is_weighted {
                entry["weight"] = self.weight(index).into();
            }
            entry
        };
        let contributions: Vec<Value> = models.members.iter().enumerate().map(contribution).collect();
        let mut recipe = json!({
            "method": self.method, "parameters": self.parameters, "contributions": contributions,
            "dtype": self.shape.dtype.recipe_name(), "output": output,
        });
        if let Some(base) = &models.base {
            recipe["base"] = json!(base);
        }
        recipe
    }

    /// The same for the peers' scripts.
    fn job(&self, models: &Models, output: &Path) -> Value {
        let weights: Vec<usize> = (0..self.num_members).map(|index| self.weight(index)).collect();
        json!({
            "base": models.base, "models": models.members, "weights": weights, "output": output,
            "parameters": self.parameters, "dtype": self.shape.dtype.config_name(),
        })
    }
}

/// Where a work's models lie.
struct Models {
    base: Option<PathBuf>,
    members: Vec<PathBuf>,
}

/// Runs all works that are asked for.
///
/// # Errors
/// When the bench itself cannot run, or ours fails at any work.
pub(super) fn run(options: &Options) -> Result<()> {
    let folder = match &options.dir {
        Some(folder) => folder.clone(),
        None => super::target_folder()?.join("bench-merge"),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let binary = super::our_binary(options)?;
    for fact in machine::facts(&folder) {
        eprintln!("{fact}");
    }
    let peers = Peers::find(options.peers.as_deref());
    match &peers {
        Some(peers) => eprintln!("peers: {}", peers.versions().unwrap_or_else(|error| format!("{error:#}"))),
        None => eprintln!("peers: absent, so nothing is compared. {}", peers::HOW_TO_GET),
    }
    eprintln!("limits of this machine:");
    let limits = Limits::measure(&folder, if options.quick { 32 << 20 } else { 1 << 30 })?;
    let bench = Bench { options, folder, binary, peers };
    if options.json {
        limit_rows(&limits).iter().for_each(|row| println!("{row}"));
    }
    let mut done = vec![];
    for work in works(options.quick).iter().filter(|work| options.wants(&work.name, work.on_demand)) {
        if let Some(reason) = bench.no_room(work) {
            eprintln!("{}: skipped: {reason}", work.name);
            continue;
        }
        let comparison = bench.compare(work).with_context(|| format!("bench of {}", work.name))?;
        if options.json {
            comparison.rows(&limits).iter().for_each(|row| println!("{row}"));
        } else {
            print!("\n{}", comparison.table(&limits));
        }
        done.push(comparison);
    }
    let flat = flatness(&done);
    if options.json {
        flat.iter().for_each(|flat| println!("{}", flat.row()));
    } else {
        println!("\n{LEGEND}");
        flat.iter().for_each(|flat| println!("{}", flat.line()));
    }
    let failed: Vec<&str> = done.iter().filter(|c| c.ours.failure.is_some()).map(|c| c.work.as_str()).collect();
    match (done.is_empty(), failed.is_empty()) {
        (true, _) => bail!("nothing was measured: no work with such a name, or no room for it"),
        (_, false) => bail!("ours failed at {}", failed.join(", ")),
        _ => Ok(()),
    }
}

const LEGEND: &str = "\
Medians. MB and GB are 10^6 and 10^9 bytes. limit: the least time for the same bytes on this machine, set by the cores
(copying out of and into the page cache, hashing) or by the disk; reached: that limit as a part of the wall time.
differs by: the largest difference between an element of the peer's output and of ours, and the share of elements where it
is more than rounding. Two that choose by magnitude or sign may choose differently where both are equal but for rounding.
Ours is timed from process start and hashes and syncs its output; peers do neither, and
their start (interpreter, imports) is not in their wall and CPU time.";

/// Peak memory over all sizes and numbers of members: the least and the most, with the works that took them.
struct Flatness<'a> {
    least: (&'a str, f64),
    most: (&'a str, f64),
}

fn flatness(done: &[Comparison]) -> Option<Flatness<'_>> {
    let flat = done.iter().filter(|comparison| comparison.work.starts_with("flat-"));
    let rss = flat.filter_map(|c| Some((c.work.as_str(), c.ours.samples.median()?.rss_mb)));
    let rss: Vec<(&str, f64)> = rss.collect();
    let by_rss = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
    Some(Flatness { least: rss.iter().copied().min_by(by_rss)?, most: rss.iter().copied().max_by(by_rss)? })
}

impl Flatness<'_> {
    fn row(&self) -> Value {
        let ours = self.most.1 / self.least.1;
        json!({ "work": "flat", "metric": "most_over_least_peak_rss", "ours": ours, "peer": null, "ratio": null })
    }

    fn line(&self) -> String {
        let Self { least, most } = self;
        let ratio = most.1 / least.1;
        format!("Peak memory from {:.0} MB ({}) to {:.0} MB ({}): {ratio:.2}x.", least.1, least.0, most.1, most.0)
    }
}

struct Bench<'a> {
    options: &'a Options,
    folder: PathBuf,
    binary: PathBuf,
    peers: Option<Peers>,
}

impl Bench<'_> {
    /// Why the disk is too small for a work; a tenth is left free.
    fn no_room(&self, work: &Work) -> Option<String> {
        let size = work.shape.size_bytes();
        let paths = (0..work.num_models()).map(|model| models::path(&self.folder, work.shape, model));
        let missing = paths.filter(|path| !path.join(models::WEIGHTS).is_file()).count() as u64;
        let num_outputs = if work.peers.is_empty() { 1 } else { 2 };
        let needed = (missing + num_outputs) * size / 10 * 11;
        let free = machine::free_bytes(&self.folder);
        (free < needed).then(|| {
            let [needed, free] = [needed, free].map(machine::gigabytes);
            format!("needs {needed:.0} GB of disk, and {free:.0} GB are free at {}", self.folder.display())
        })
    }

    fn models(&self, work: &Work) -> Result<Models> {
        let mut made = models::make(&self.folder, work.shape, work.num_models())?;
        let base = work.has_base.then(|| made.remove(0));
        let members = if work.num_members <= made.len() {
            made
        } else {
            let links = self.folder.join("links");
            (0..work.num_members).map(|index| link(&links, &made[index % made.len()], index)).collect::<Result<_>>()?
        };
        Ok(Models { base, members })
    }

    fn compare(&self, work: &Work) -> Result<Comparison> {
        let models = self.models(work)?;
        let outputs = self.folder.join("out");
        let _ = std::fs::remove_dir_all(&outputs);
        std::fs::create_dir_all(&outputs)?;
        let (recipe, log) = (self.folder.join("recipe.yaml"), self.folder.join("log.txt"));
        let out = outputs.join("ours");
        std::fs::write(&recipe, work.recipe(&models, &out).to_string())?;
        let words = vec![self.binary.clone(), "merge".into(), recipe];
        let ours = Program { words, log: log.clone(), env: vec![] };
        let mut contenders = vec![(Contender::new("tapestry", work.moved()), ours, out, None)];
        for peer in work.peers {
            let Some(peers) = &self.peers else { break };
            let (out, job) = (outputs.join(peer.mode), self.folder.join(format!("{}.json", peer.mode)));
            std::fs::write(&job, work.job(&models, &out).to_string())?;
            let contender = Contender::new(peer.title(), work.moved_by(peer));
            contenders.push((contender, peers.program(peer, &job, &log), out, Some(peer)));
        }
        let num_runs = if work.once { 1 } else { self.options.repeat.unwrap_or(3) };
        for run in 0..num_runs {
            for index in 0..contenders.len() {
                let ours = contenders[0].2.clone();
                let (contender, program, out, peer) = &mut contenders[index];
                if contender.failure.is_some() {
                    continue;
                }
                let _ = std::fs::remove_dir_all(&*out);
                settle(work, &models)?;
                match measure(program) {
                    Ok(usage) => {
                        eprintln!(
                            "{}, run {} of {num_runs}: {}: {:.2} s",
                            work.name,
                            run + 1,
                            contender.name,
                            usage.wall_s
                        );
                        contender.samples.push(usage);
                    }
                    Err(error) => {
                        eprintln!("{}: {} failed: {error:#}", work.name, contender.name);
                        contender.failure = Some(format!("{error:#}"));
                    }
                }
                if peer.is_none() || contender.failure.is_some() {
                    continue;
                }
                if run == 0 && peer.is_some_and(|peer| peer.writes && peer.agrees) && ours.is_dir() {
                    match agreement::difference(&ours, out) {
                        Ok(difference) => contender.difference = Some(difference),
                        Err(error) => eprintln!("{}: {}: not comparable: {error:#}", work.name, contender.name),
                    }
                }
                let _ = std::fs::remove_dir_all(&*out);
            }
        }
        let _ = std::fs::remove_dir_all(&outputs);
        let mut contenders = contenders.into_iter().map(|(contender, ..)| contender);
        let ours = contenders.next().expect("ours is the first");
        let title = format!("{}, {:.0} MB each", work.title, 1e3 * machine::gigabytes(work.shape.size_bytes()));
        Ok(Comparison { work: work.name.clone(), title, target: work.target, ours, peers: contenders.collect() })
    }
}

/// The same start for everybody: nothing left to be written to disk, as much memory at hand as the hungriest peer needs (nine
/// times a model), and all inputs in the page cache, where they fit.
fn settle(work: &Work, models: &Models) -> Result<()> {
    nix::unistd::sync();
    let num_copies = if work.peers.is_empty() { 0 } else { 10 };
    machine::touch_memory((1 << 30) + num_copies * work.shape.size_bytes())?;
    if work.moved().from_disk {
        return Ok(());
    }
    let mut buffer = vec![0; 1 << 20];
    for folder in models.base.iter().chain(&models.members).take(work.num_models()) {
        let mut file = File::open(folder.join(models::WEIGHTS))?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

/// A folder with a model that is on disk only once.
fn link(links: &Path, model: &Path, index: usize) -> Result<PathBuf> {
    let name = model.file_name().context("a model has a name")?.to_string_lossy();
    let folder = links.join(format!("{name}-{index:02}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    for file in [models::WEIGHTS, models::CONFIG] {
        std::fs::hard_link(model.join(file), folder.join(file))
            .with_context(|| format!("cannot link {} into {}", model.join(file).display(), folder.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_has_a_name_of_its_own_and_only_seven_billion_wait_to_be_asked_for() {
        for quick in [false, true] {
            let works = works(quick);
            let names: std::collections::BTreeSet<&str> = works.iter().map(|work| work.name.as_str()).collect();
            assert_eq!(names.len(), works.len());
            assert!(works.iter().all(|work| work.on_demand == (*work.shape == B7)));
            assert!(works.iter().filter(|work| work.on_demand).all(|work| work.name.contains("7b")));
            let largest = works.iter().map(|work| work.shape.size_bytes()).max();
            assert!(!quick || largest < Some(10_000_000), "quick is quick");
        }
    }

    #[test]
    fn the_recipe_and_the_peers_job_ask_for_the_same_merge() {
        let all = works(false);
        let find = |name: &str| all.iter().find(|work| work.name == name).expect("there");
        let models = |base: bool, num: usize| Models {
            base: base.then(|| "base".into()),
            members: (0..num).map(|index| format!("m{index}").into()).collect(),
        };
        let work = find("fedavg-4");
        let recipe = work.recipe(&models(false, 4), Path::new("out"));
        let job = work.job(&models(false, 4), Path::new("out"));
        let of_recipe = |field: &str| -> Vec<Value> {
            recipe["contributions"].as_array().expect("a list").iter().map(|c| c[field].clone()).collect()
        };
        assert_eq!(Value::Array(of_recipe("weight")), job["weights"]);
        assert_eq!(Value::Array(of_recipe("path")), job["models"]);
        assert!(recipe.get("base").is_none());
        let work = find("ties-3");
        let (recipe, job) = (work.recipe(&models(true, 3), Path::new("o")), work.job(&models(true, 3), Path::new("o")));
        assert_eq!((&recipe["base"], &recipe["parameters"]), (&job["base"], &job["parameters"]));
        assert!(recipe["contributions"][0].get("weight").is_none(), "no weight where all count the same");
    }

    #[test]
    fn flatness_is_that_of_the_largest_over_the_smallest_among_the_works_that_ask_for_it() {
        let done = [("flat-a", 50.0), ("flat-b", 40.0), ("ties-3", 500.0), ("flat-c", 60.0)].map(|(work, rss_mb)| {
            let mut ours = Contender::new("tapestry", Moved::default());
            ours.samples.push(crate::bench::measure::Usage { wall_s: 1.0, cpu_s: 1.0, rss_mb, start_s: 0.0 });
            let (work, title, target) = (work.to_string(), String::new(), Target::default());
            Comparison { work, title, target, ours, peers: vec![] }
        });
        let flat = flatness(&done).expect("three works");
        assert_eq!(flat.row()["ours"], json!(1.5));
        assert_eq!(flat.line(), "Peak memory from 40 MB (flat-b) to 60 MB (flat-c): 1.50x.");
        assert!(flatness(&done[2..3]).is_none());
    }

    #[test]
    fn bytes_moved_are_those_of_all_inputs_and_the_output() {
        let works = works(false);
        let moved = |name: &str| works.iter().find(|work| work.name == name).expect("there").moved();
        let size = M135.size_bytes();
        assert_eq!(size, 538_060_032);
        assert_eq!((moved("fedavg-4").read, moved("fedavg-4").written), (4 * size, size));
        assert_eq!(moved("ties-3").read, 4 * size);
        assert_eq!(moved("flat-135m-32").read, 32 * size);
        let in_memory = peers::FEDAVG.iter().find(|peer| !peer.writes).expect("one");
        let fedavg = &works[0];
        assert_eq!(fedavg.moved_by(in_memory).written, 0);
    }
}
