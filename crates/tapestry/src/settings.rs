//! A node's settings: `node.toml` in its home.

use crate::files;
use crate::home::Home;
use crate::stores::StoreSettings;
use crate::transfer::TransferSettings;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tapestry_core::{PublicKey, SecretKey};
use tapestry_net::Dialer;

/// What the operator of a node decides. Paths are relative to the file's folder, or absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSettings {
    pub(crate) coordinator: Option<CoordinatorAddress>,
    /// Where else to ask, when the coordinator does not answer: the charter's standbys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) standbys: Vec<CoordinatorAddress>,
    pub(crate) texts: Texts,
    pub(crate) contributed_cpt: Training,
    pub(crate) private_cpt: Training,
    pub(crate) evaluation: Evaluation,
    #[serde(default)]
    pub(crate) machine: Machine,
    #[serde(default)]
    pub(crate) transfer: TransferSettings,
}

/// A coordinator's settings, `coordinator.toml` in its home, which it runs without, too.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CoordinatorSettings {
    #[serde(default)]
    pub(crate) store: StoreSettings,
    #[serde(default)]
    pub(crate) transfer: TransferSettings,
}

impl CoordinatorSettings {
    /// What the home says; nothing, where there is no such file.
    pub(crate) fn read(home: &Home) -> Result<Self> {
        let path = home.path("coordinator.toml");
        if !path.exists() {
            return Ok(Self::default());
        }
        toml::from_str(&files::read_text(&path)?).with_context(|| format!("in {}", path.display()))
    }
}

/// Where the coordinator is, and the key that it must prove.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CoordinatorAddress {
    pub(crate) address: String,
    pub(crate) key: PublicKey,
}

/// A node's data by the use that it may be put to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    pub(crate) contributed: Vec<PathBuf>,
    pub(crate) private: Vec<PathBuf>,
    pub(crate) held_out: PathBuf,
}

/// How a CPT runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Training {
    pub(crate) num_steps: u64,
    pub(crate) batch_windows: usize,
    pub(crate) window: usize,
    pub(crate) learning_rate: f64,
    pub(crate) warmup_steps: u64,
    pub(crate) weight_decay: f64,
    pub(crate) clip_norm: f64,
    pub(crate) seed: u64,
}

/// How a node measures models on its own held-out text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evaluation {
    /// How many tokens of the held-out text are scored; 0: this node measures nothing, and its log says so.
    pub(crate) max_tokens: usize,
}

/// What of the machine a node uses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    /// Threads for training and measuring; without it, all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_threads: Option<usize>,
    /// A file that several nodes on one machine share: the one that has locked it computes, the others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<PathBuf>,
    /// Another training program: called with the job's file as last argument.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trainer: Option<Vec<String>>,
}

const HEADER: &str = "\
# The settings of a Tapestry node. Paths are relative to this file, or absolute.
#
# texts.contributed  trained on in each round; only the resulting weights leave this node
# texts.private      trained on once, at the end, for the member's own Sovereign Model; nothing of it leaves this node
# texts.held_out     never trained on; measures what was gained
# Documents in a text are separated by the character U+001E (record separator).
# evaluation.max_tokens = 0 turns measuring on this node off.
# machine.num_threads, machine.slot (a lock file that several nodes on one machine share), machine.trainer (another
# training program, called with the job's file as its last argument) may be set.
# docs/transfer.md explains [transfer]: limits, streams, mirrors.
# docs/take-over.md explains [[standbys]] (address, key): who is asked when the coordinator does not answer.

";

impl NodeSettings {
    pub(crate) fn read(home: &Home) -> Result<Self> {
        let path = home.path("node.toml");
        if !path.exists() {
            bail!(
                "{} is not the home of a node: there is no node.toml; make one with `tapestry node init`",
                home.dir().display()
            );
        }
        let text = files::read_text(&path)?;
        let settings: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        Ok(settings)
    }

    pub(crate) fn write(&self, home: &Home) -> Result<()> {
        let text = format!("{HEADER}{}", toml::to_string_pretty(self)?);
        files::write_atomic(&home.path("node.toml"), text.as_bytes())
    }

    /// Talks to the coordinator, and to a standby when the coordinator cannot be reached. None before the node has joined.
    pub(crate) fn dialer(&self, key: &SecretKey) -> Result<Option<Dialer>> {
        let Some(coordinator) = &self.coordinator else { return Ok(None) };
        let dialer = Dialer::new(&coordinator.address, coordinator.key, key)?;
        for standby in &self.standbys {
            dialer.add_server(&standby.address, standby.key).context("in node.toml, standbys")?;
        }
        Ok(Some(dialer.with_idle_timeout(self.transfer.idle_timeout())))
    }

    /// A path of the settings as seen from anywhere.
    pub(crate) fn resolve(home: &Home, path: &Path) -> PathBuf {
        home.dir().join(path)
    }
}

impl Training {
    /// Gentle continued pre-training: a small learning rate, one pass over a few thousand windows.
    pub(crate) const fn gentle() -> Self {
        Self {
            num_steps: 400,
            batch_windows: 8,
            window: 256,
            learning_rate: 1e-4,
            warmup_steps: 20,
            weight_decay: 0.01,
            clip_norm: 1.0,
            seed: 1,
        }
    }
}
