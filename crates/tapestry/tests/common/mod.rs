//! A folder with inputs, and the program run in it as a user would.
#![expect(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tapestry_demo::demo_members;
use tempfile::TempDir;

/// The longest that anything in a test is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder in which a test runs the program.
pub(crate) struct Workshop {
    dir: TempDir,
}

/// A process of the program, killed when dropped.
pub(crate) struct Process {
    child: Child,
    messages: PathBuf,
}

/// A port that nothing listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Workshop {
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A tiny base, an open text, and three texts for each member.
    pub(crate) fn write_inputs(&self, members: &[&str]) {
        let texts = self.path("generated");
        let known = demo_members(3, false).unwrap();
        let corpora = tapestry_demo::generate_quick_texts(&texts, &known, 7).unwrap();
        for (member, known) in members.iter().zip(known.iter().cycle()) {
            let dir = self.path(member);
            fs::create_dir_all(&dir).unwrap();
            let from = &corpora.members[&known.name];
            fs::copy(&from.contributed, dir.join("contributed.txt")).unwrap();
            fs::copy(&from.private, dir.join("private.txt")).unwrap();
            fs::copy(&from.held_out, dir.join("held-out.txt")).unwrap();
        }
        fs::copy(&corpora.open_held_out, self.path("open.txt")).unwrap();
        let quick = corpora.quick_base.as_ref().unwrap();
        let config = tapestry_model::DecoderConfig::tiny(quick.vocab_size);
        tapestry_model::init_model(&self.path("base"), &config, &quick.tokenizer, 1).unwrap();
    }

    /// The inputs, and a node for each member in `NAME-node` with its public key in `NAME.key`.
    pub(crate) fn make_nodes(&self, members: &[&str]) {
        self.write_inputs(members);
        for name in members {
            self.shell(&format!(
                "tapestry node init --home {name}-node --contributed {name}/contributed.txt --private {name}/private.txt \
                 --held-out {name}/held-out.txt > {name}.key"
            ));
        }
    }

    /// Training in a test is a few steps; what is tested is the loop.
    pub(crate) fn shorten_training(&self, home: &str) {
        let path = self.path(home).join("node.toml");
        let text = fs::read_to_string(&path).unwrap();
        let short = text
            .replace("num_steps = 400", "num_steps = 3")
            .replace("batch_windows = 8", "batch_windows = 2")
            .replace("max_tokens = 20000", "max_tokens = 1000")
            .replace("warmup_steps = 20", "warmup_steps = 1");
        assert_ne!(text, short, "node.toml has other defaults");
        fs::write(&path, short).unwrap();
    }

    /// The member's node trains for a piece of work, such as `round-1`, only once [`Self::open_gate`] lets it.
    pub(crate) fn gate_training(&self, member: &str) {
        let settings = self.path(&format!("{member}-node")).join("node.toml");
        let gate = self.path(&format!("go/{member}"));
        fs::create_dir_all(&gate).unwrap();
        // The job is WORK/round-N/job.json.
        let wait = format!(
            "while [ ! -e '{}'/$(basename $(dirname $0)) ]; do sleep 0.1; done; exec tapestry train cpt $0",
            gate.display()
        );
        let text = fs::read_to_string(&settings).unwrap();
        assert!(text.contains("[machine]\n"), "{text}");
        let machine = text.replace("[machine]\n", &format!("[machine]\ntrainer = [\"sh\", \"-c\", {wait:?}]\n"));
        fs::write(&settings, machine).unwrap();
    }

    /// Lets a gated member train for a piece of work.
    pub(crate) fn open_gate(&self, member: &str, work: &str) {
        fs::write(self.path(&format!("go/{member}/{work}")), "").unwrap();
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let binary = Path::new(env!("CARGO_BIN_EXE_tapestry"));
        let path = std::env::var("PATH").unwrap();
        command.current_dir(self.dir.path()).env("PATH", format!("{}:{path}", binary.parent().unwrap().display()));
        command
    }

    /// Runs a script; returns what it printed.
    pub(crate) fn shell(&self, script: &str) -> String {
        let (is_success, told) = self.try_shell(script);
        assert!(is_success, "{script}\n{told}");
        told
    }

    /// Runs a script; returns whether it succeeded, and all that it printed.
    pub(crate) fn try_shell(&self, script: &str) -> (bool, String) {
        let output = self.command("bash").args(["-euc", script]).output().unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.success(), told.concat())
    }

    /// Runs a script that must fail, with a message that says `expected`.
    pub(crate) fn refused(&self, script: &str, expected: &str) {
        let (is_success, told) = self.try_shell(script);
        assert!(!is_success, "{script} succeeded:\n{told}");
        assert!(told.contains(expected), "{script}\nexpected {expected:?} in:\n{told}");
        assert!(!told.contains("panicked"), "{told}");
    }

    /// Starts a command that runs on its own.
    pub(crate) fn start(&self, command: &str) -> Process {
        self.start_with(command, &[])
    }

    /// Starts a command with these environment variables, and without what the environment of the tests says to OpenTelemetry.
    pub(crate) fn start_with(&self, command: &str, environment: &[(&str, &str)]) -> Process {
        let messages = self.path(&format!("messages-{}.txt", free_port()));
        let file = File::create(&messages).unwrap();
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), Some("tapestry"), "{command}");
        let mut start = self.command(env!("CARGO_BIN_EXE_tapestry"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            start.env_remove(name);
        }
        start.envs(environment.iter().copied());
        start.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Process { child: start.spawn().unwrap(), messages }
    }

    /// Waits until something is so.
    pub(crate) fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Process {
    /// The system's number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn messages(&self) -> String {
        fs::read_to_string(&self.messages).unwrap_or_default()
    }

    pub(crate) fn wait_for_success(&mut self, patience: Duration) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}:\n{}", self.messages());
                return;
            }
            assert!(start.elapsed() < patience, "still running:\n{}", self.messages());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it is no longer running.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends it a signal, such as `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits until it ends by itself, and expects that it says it failed.
    pub(crate) fn wait_for_failure(&mut self, expected: &str) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let messages = self.messages();
                assert!(
                    !status.success() && messages.contains(expected),
                    "{status}, expected {expected:?}:\n{messages}"
                );
                return;
            }
            assert!(start.elapsed() < PATIENCE, "still running:\n{}", self.messages());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and expects it to.
    pub(crate) fn stop(&mut self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        self.wait_for_success(Duration::from_secs(30));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
