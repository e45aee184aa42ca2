//! The folder of one role: its key, its settings, its blobs and its log.
//!
//! ```text
//! HOME/key.pem      the secret key, readable by the owner alone
//! HOME/key.pub      the public key, to be given to whoever drafts the charter
//! HOME/node.toml    settings (node)
//! HOME/blobs/       content-addressed chunks and manifests
//! HOME/log/         the role's log, one file per commit; the state is its fold
//! HOME/work/        training jobs and their results; may be deleted while nothing runs
//! HOME/lock         held while a process uses the folder
//! ```

use crate::files;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use tapestry_core::{PublicKey, SecretKey};
use zeroize::Zeroizing;

/// A role's folder.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
}

/// While this lives, no other process uses the folder.
#[derive(Debug)]
pub(crate) struct HomeLock {
    _file: File,
}

impl Home {
    /// The folder, which need not exist yet.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.path("blobs")
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.path("log")
    }

    pub(crate) fn work_dir(&self) -> PathBuf {
        self.path("work")
    }

    /// The role's key; made on first use.
    pub(crate) fn key_or_new(&self) -> Result<SecretKey> {
        if self.path("key.pem").exists() {
            return self.key();
        }
        let key = new_key()?;
        files::write_secret(&self.path("key.pem"), key.to_pem().as_bytes())?;
        files::write_atomic(&self.path("key.pub"), format!("{}\n", key.public()).as_bytes())?;
        Ok(key)
    }

    /// The key that the role has asked to have in place of its own; made on first use.
    pub(crate) fn next_key_or_new(&self) -> Result<SecretKey> {
        let path = self.path("key-next.pem");
        if path.exists() {
            return self.read_key(&path);
        }
        let key = new_key()?;
        files::write_secret(&path, key.to_pem().as_bytes())?;
        Ok(key)
    }

    /// Changes over to the next key, where it is `expected`; whether it did. The old one is kept beside it, and is of no use any more.
    pub(crate) fn change_key(&self, expected: PublicKey) -> Result<bool> {
        let next = self.path("key-next.pem");
        if !next.exists() || self.read_key(&next)?.public() != expected {
            return Ok(false);
        }
        files::write_secret(&self.path("key-old.pem"), self.key()?.to_pem().as_bytes())?;
        // The rename is the moment; what lies beside it follows from it.
        fs::rename(&next, self.path("key.pem")).context("cannot change over to the next key")?;
        files::write_atomic(&self.path("key.pub"), format!("{expected}\n").as_bytes())?;
        Ok(true)
    }

    /// The role's key.
    ///
    /// # Errors
    /// Where there is none, or where others may read it.
    pub(crate) fn key(&self) -> Result<SecretKey> {
        let path = self.path("key.pem");
        if !path.exists() {
            bail!(
                "{} holds no key: it is not the home of a role. A node's home is made by `tapestry node init`, a \
                 coordinator's by `tapestry charter draft`; give it with --home",
                self.dir.display()
            );
        }
        self.read_key(&path)
    }

    fn read_key(&self, path: &Path) -> Result<SecretKey> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(path)?.permissions().mode();
            if mode & 0o077 != 0 {
                bail!("{0} may be read by others (mode {1:o}); run `chmod 600 {0}`", path.display(), mode & 0o777);
            }
        }
        let pem = Zeroizing::new(files::read_text(path)?);
        SecretKey::from_pem(&pem).with_context(|| format!("{} is damaged", path.display()))
    }

    /// The role's public key, which needs no access to the secret one.
    pub(crate) fn public_key(&self) -> Result<PublicKey> {
        let path = self.path("key.pub");
        if !path.exists() {
            return Ok(self.key()?.public());
        }
        files::read_text(&path)?.trim().parse::<PublicKey>().with_context(|| format!("in {}", path.display()))
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// Where another process has it.
    pub(crate) fn lock(&self) -> Result<HomeLock> {
        let path = self.path("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(HomeLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                bail!("another tapestry process uses {}; stop it, or give another --home", self.dir.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// A new key, from the system's source of randomness.
fn new_key() -> Result<SecretKey> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(|e| anyhow::anyhow!("no randomness from the system: {e}"))?;
    Ok(SecretKey::from_seed(&seed))
}
