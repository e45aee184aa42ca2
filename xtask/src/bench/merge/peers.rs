//! Who else merges: Flower, mergekit, and what people write with PyTorch and NumPy. Their scripts are in `bench/peers`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::bench::measure::Program;
use crate::run::{output, root};

/// For those who do not have them.
pub(super) const HOW_TO_GET: &str =
    "`bench/peers/setup.sh DIR` sets them up (Python and 3 GB of disk); then name DIR by --peers or $PEERS_HOME";

/// A way of doing a work with other software.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    name: &'static str,
    script: &'static str,
    /// What the script is to do.
    pub(super) mode: &'static str,
    /// Whether the result is written to a file or stays in memory.
    pub(super) writes: bool,
    /// Whether the result should be ours but for rounding.
    pub(super) agrees: bool,
}

const fn peer(name: &'static str, script: &'static str, mode: &'static str, writes: bool) -> Peer {
    Peer { name, script, mode, writes, agrees: writes }
}

pub(super) const FEDAVG: &[Peer] = &[
    peer("Flower aggregate", "mean.py", "flower_aggregate", false),
    peer("Flower aggregate_arrayrecords", "mean.py", "flower_arrayrecords", false),
    peer("numpy, tensor by tensor", "mean.py", "numpy_stream", false),
    peer("torch, state dicts", "mean.py", "torch_state_dicts", false),
    peer("torch, state dicts, save_file", "mean.py", "torch_state_dicts_saved", true),
    peer("mergekit linear", "mergekit_merge.py", "linear", true),
];
pub(super) const TIES: &[Peer] = &[peer("mergekit ties", "mergekit_merge.py", "ties", true)];
/// Its masks are drawn differently.
pub(super) const DARE_TIES: &[Peer] =
    &[Peer { agrees: false, ..peer("mergekit dare_ties", "mergekit_merge.py", "dare_ties", true) }];
pub(super) const MEDIAN: &[Peer] = &[
    peer("numpy median, tensor by tensor", "robust.py", "numpy_median", true),
    peer("torch median, tensor by tensor", "robust.py", "torch_median", true),
];
pub(super) const TRIMMED_MEAN: &[Peer] = &[
    peer("numpy sort, tensor by tensor", "robust.py", "numpy_trimmed_mean", true),
    peer("torch sort, tensor by tensor", "robust.py", "torch_trimmed_mean", true),
];

impl Peer {
    /// Its name, and that it writes nothing where that is so.
    pub(super) fn title(&self) -> String {
        if self.writes { self.name.into() } else { format!("{} (in memory)", self.name) }
    }
}

/// The peers' Python.
pub(super) struct Peers {
    python: PathBuf,
}

impl Peers {
    /// The environment under `folder` or else $PEERS_HOME; nothing where there is none.
    pub(super) fn find(folder: Option<&Path>) -> Option<Self> {
        let named = std::env::var_os("PEERS_HOME").map(PathBuf::from);
        let python = folder.map(Path::to_path_buf).or(named)?.join("a/bin/python");
        python.is_file().then(|| Self { python: std::path::absolute(&python).unwrap_or(python) })
    }

    /// Names and versions, on one line.
    ///
    /// # Errors
    /// When Python does not run.
    pub(super) fn versions(&self) -> Result<String> {
        let script = "import importlib.metadata as m, platform; print('python', platform.python_version(), *(f', {p} {m.version(p)}' for p in ('flwr', 'mergekit', 'torch', 'numpy', 'safetensors')), sep=' ')";
        Ok(output(Command::new(&self.python).args(["-c", script]))?.trim().replace(" ,", ","))
    }

    /// The program that does a peer's part of a work.
    pub(super) fn program(&self, peer: &Peer, job: &Path, log: &Path) -> Program {
        let script = root().join("bench/peers").join(peer.script);
        let env = ["PYTHONDONTWRITEBYTECODE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].map(|name| (name, "1".into()));
        let quiet = [("FLWR_TELEMETRY_ENABLED", "0".into())];
        Program {
            words: vec![self.python.clone(), script, peer.mode.into(), job.to_path_buf()],
            log: log.to_path_buf(),
            env: env.into_iter().chain(quiet).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_its_script_which_knows_its_mode() {
        for peer in [FEDAVG, TIES, DARE_TIES, MEDIAN, TRIMMED_MEAN].concat() {
            let script = root().join("bench/peers").join(peer.script);
            let text = std::fs::read_to_string(&script).expect(peer.script);
            assert!(text.contains(&format!("\"{}\"", peer.mode)), "{} does not know {}", peer.script, peer.mode);
        }
    }

    #[test]
    fn without_an_environment_there_are_no_peers() {
        assert!(Peers::find(Some(Path::new("no/such/folder"))).is_none());
    }
}
