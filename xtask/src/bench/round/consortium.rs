//! A consortium of real processes on this machine: one coordinator, some nodes, TLS between them, and a trainer that does
//! next to nothing.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::log::Entry;
use crate::bench::models::Shape;
use crate::run::output;

/// The longest wait for anything that has no rate: that a process listens, that a round ends.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the bench looks at the logs, which tell their times themselves: reading them takes the processors from what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often where looking costs nothing and the moment matters.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(5);

/// What a consortium is made for.
pub(super) struct Plan<'a> {
    pub(super) binary: &'a Path,
    /// Where it lives; emptied first.
    pub(super) folder: PathBuf,
    /// Where the base is made and kept.
    pub(super) models: &'a Path,
    pub(super) shape: &'a Shape,
    pub(super) num_members: usize,
    pub(super) num_rounds: u32,
}

/// A consortium whose charter is in force.
pub(super) struct Consortium {
    binary: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    members: Vec<String>,
    coordinator: Option<Process>,
    nodes: Vec<Option<Process>>,
}

/// A process of our program, killed when dropped.
pub(super) struct Process(Child);

/// What a process has taken so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Taken {
    /// User and system time, waited-for children included, in seconds.
    pub(super) cpu_s: f64,
    /// Peak resident memory, 10^6 bytes.
    pub(super) rss_mb: f64,
}

impl Consortium {
    /// Makes homes, keys and charter, and puts it in force. Nothing runs yet.
    ///
    /// # Errors
    /// When a step fails: with what it said.
    pub(super) fn make(plan: &Plan<'_>) -> Result<Self> {
        let base = super::make_base(plan.models, plan.shape)?;
        let _ = fs::remove_dir_all(&plan.folder);
        fs::create_dir_all(&plan.folder)?;
        let members: Vec<String> = (1..=plan.num_members).map(|number| format!("member-{number}")).collect();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let nodes = members.iter().map(|_| None).collect();
        let (binary, folder) = (plan.binary.to_path_buf(), plan.folder.clone());
        let made = Self { binary, folder, address, members, coordinator: None, nodes };
        made.write_texts()?;
        let mut draft =
            ["charter", "draft", "--home", "coordinator", "--consortium", "Bench"].map(String::from).to_vec();
        for (number, member) in (1_u8..).zip(&made.members) {
            draft.extend(["--member".into(), format!("{member}={}", made.init_node(number, member)?)]);
        }
        let num_members = plan.num_members.to_string();
        let cap = (1.0 / u16::try_from(plan.num_members).map_or(1.0, f64::from)).to_string();
        let rounds = plan.num_rounds.to_string();
        let base = base.to_str().context("the folder's name is not UTF-8")?;
        let terms = [
            ["--base", base],
            ["--open-text", "open.txt"],
            ["--open-text-max-tokens", "64"],
            ["--rounds", &rounds],
            ["--min-contributions", &num_members],
            ["--influence-cap", &cap],
            ["--max-relative-change", "10"],
            ["--max-contribution-rise", "10"],
            ["--max-merged-rise", "10"],
        ];
        draft.extend(terms.concat().into_iter().map(String::from));
        made.tapestry(&draft)?;
        for member in &made.members {
            made.tapestry(&["charter", "sign", "charter.json", "--home", member, "--yes"])?;
        }
        made.tapestry(&["charter", "publish", "charter.json", "--home", "coordinator"])?;
        Ok(made)
    }

    /// Short texts: what is measured is the round, and the measures of quality run in full on little text.
    fn write_texts(&self) -> Result<()> {
        let text = "All human beings are born free and equal in dignity and rights.\n";
        for name in ["open.txt", "contributed.txt", "private.txt", "held-out.txt"] {
            fs::write(self.folder.join(name), text)?;
        }
        Ok(())
    }

    /// Makes a node that calls our trainer; its key.
    fn init_node(&self, number: u8, member: &str) -> Result<String> {
        let texts =
            [["--contributed", "contributed.txt"], ["--private", "private.txt"], ["--held-out", "held-out.txt"]];
        let key = self.tapestry(&[&["node", "init", "--home", member], &texts.concat()[..]].concat())?;
        let path = self.folder.join(member).join("node.toml");
        let mut settings: toml::Table = fs::read_to_string(&path)?.parse().context("node.toml")?;
        let exe = std::env::current_exe()?.to_string_lossy().into_owned();
        let trainer = [exe, "bench-child".into(), "train".into(), number.to_string()];
        let machine = toml::Table::from_iter([("trainer".to_string(), toml::Value::from(trainer.to_vec()))]);
        settings.insert("machine".into(), machine.into());
        // Flower's nodes do not evaluate either; what the charter measures is measured by the coordinator.
        let evaluation = toml::Table::from_iter([("max_tokens".to_string(), toml::Value::from(0))]);
        settings.insert("evaluation".into(), evaluation.into());
        fs::write(path, settings.to_string())?;
        Ok(key.trim().to_string())
    }

    fn command<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(&self.folder).args(words);
        command
    }

    fn tapestry<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Result<String> {
        output(&mut self.command(words))
    }

    /// Starts a role, whose steps go to `HOME.steps` as JSON lines, and its messages to `HOME.messages`.
    fn start(&self, home: &str, words: &[&str]) -> Result<Process> {
        let file =
            |kind: &str| File::options().create(true).append(true).open(self.folder.join(format!("{home}.{kind}")));
        let mut command = self.command(&[words, &["--home", home, "--json-progress"]].concat());
        command.stdin(Stdio::null()).stdout(file("steps")?).stderr(file("messages")?);
        Ok(Process(command.spawn().context("cannot start our program")?))
    }

    /// Starts the coordinator and waits until it listens.
    pub(super) fn start_coordinator(&mut self) -> Result<()> {
        let listening = self.folder.join("coordinator/address");
        let _ = fs::remove_file(&listening);
        let address = self.address.to_string();
        self.coordinator = Some(self.start("coordinator", &["coordinator", "run", "--listen", &address])?);
        self.wait("the coordinator to listen", |_| Ok(listening.exists()))
    }

    /// Has all nodes join, through `address` where it is not the coordinator's own.
    pub(super) fn join(&self, address: Option<SocketAddr>) -> Result<()> {
        let key = fs::read_to_string(self.folder.join("coordinator/key.pub"))?;
        let url = format!("https://{}#{}", address.unwrap_or(self.address), key.trim());
        for member in &self.members {
            self.tapestry(&["node", "join", &url, "--home", member])?;
        }
        Ok(())
    }

    pub(super) fn start_node(&mut self, index: usize) -> Result<()> {
        self.nodes[index] = Some(self.start(&self.members[index], &["node", "run"])?);
        Ok(())
    }

    pub(super) fn start_nodes(&mut self) -> Result<()> {
        (0..self.members.len()).try_for_each(|index| self.start_node(index))
    }

    /// `kill -9`.
    pub(super) fn kill_node(&mut self, index: usize) {
        self.nodes[index] = None;
    }

    /// Where the coordinator listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn members(&self) -> &[String] {
        &self.members
    }

    /// What a role has logged.
    pub(super) fn log(&self, home: &str) -> Result<Vec<Entry>> {
        Entry::read_all(&self.folder.join(home).join("log"))
    }

    /// Waits until something is so. Every process that was started must go on running meanwhile.
    pub(super) fn wait(&mut self, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        self.wait_looking(LOOK_EVERY, what, is_so)
    }

    /// As [`Self::wait`], for something that is cheap to find out and soon over.
    pub(super) fn wait_closely(&mut self, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        self.wait_looking(LOOK_CLOSELY_EVERY, what, is_so)
    }

    fn wait_looking(&mut self, every: Duration, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_so(self)? {
            ensure!(start.elapsed() < PATIENCE, "waited too long for {what}; see {}", self.folder.display());
            let names = std::iter::once("coordinator").chain(self.members.iter().map(String::as_str));
            for (name, process) in names.zip(std::iter::once(&mut self.coordinator).chain(&mut self.nodes)) {
                let Some(process) = process else { continue };
                if let Some(status) = process.0.try_wait()? {
                    let messages = fs::read_to_string(self.folder.join(format!("{name}.messages"))).unwrap_or_default();
                    bail!("{name} ended with {status} while the bench waited for {what}\n{messages}");
                }
            }
            sleep(every);
        }
        Ok(())
    }

    /// What the coordinator has taken, and what all nodes have together (the largest peak of one of them).
    pub(super) fn taken(&self) -> Result<(Taken, Taken)> {
        let coordinator = self.coordinator.as_ref().context("no coordinator runs")?.taken()?;
        let mut nodes = Taken::default();
        for node in self.nodes.iter().flatten() {
            let taken = node.taken()?;
            nodes = Taken { cpu_s: nodes.cpu_s + taken.cpu_s, rss_mb: nodes.rss_mb.max(taken.rss_mb) };
        }
        Ok((coordinator, nodes))
    }

    /// Ends all processes and removes everything.
    pub(super) fn remove(self) -> Result<()> {
        let folder = self.folder.clone();
        drop(self);
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }
}

impl Process {
    fn taken(&self) -> Result<Taken> {
        let read = |name: &str| {
            let path = format!("/proc/{}/{name}", self.0.id());
            fs::read_to_string(&path).with_context(|| format!("{path}: this bench needs Linux"))
        };
        Taken::parse(&read("status")?, &read("stat")?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Taken {
    /// From `/proc/PID/status` and `/proc/PID/stat`. The kernel counts hundredths of a second.
    #[expect(clippy::cast_precision_loss, reason = "seconds and megabytes of one process are far below 2^53 units")]
    fn parse(status: &str, stat: &str) -> Result<Self> {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
        // After the name in brackets, which may hold anything, come the state and the other fields.
        let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let ticks = fields.get(11..15).context("too few fields")?.iter().map(|field| field.parse::<u64>());
        let ticks: u64 = ticks.sum::<Result<u64, _>>().context("times")?;
        Ok(Self { cpu_s: ticks as f64 / 100.0, rss_mb: (peak_kib * 1024) as f64 / 1e6 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_taken_is_read_from_the_kernels_files() {
        let status = "Name:\ttapestry\nVmPeak:\t  999 kB\nVmHWM:\t   250000 kB\n";
        let stat = "7 (a ) name) S 1 2 3 4 5 6 7 8 9 10 150 50 20 5 17 18";
        let found = Taken::parse(status, stat).expect("good");
        assert_eq!(found, Taken { cpu_s: 2.25, rss_mb: 256.0 });
        assert!(Taken::parse("", stat).is_err() && Taken::parse(status, "7 (x) S").is_err());
    }
}
