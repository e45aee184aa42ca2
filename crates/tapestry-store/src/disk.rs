//! The calls by which contents and names of a folder become durable, in one place, so that tests see their order and can let them fail.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes the content of a file durable.
pub(crate) fn sync_content(file: &File, path: &Path) -> io::Result<()> {
    watched(|| file.sync_data(), || Step::Content(path.to_path_buf()))
}

/// Gives a file its name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    watched(|| fs::rename(from, to), || Step::Name { from: from.to_path_buf(), to: to.to_path_buf() })
}

/// Makes the entries of a folder durable. Windows has no such call; there the file system's journal must do.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let sync = || if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) };
    watched(sync, || Step::Folder(folder.to_path_buf()))
}

/// One of these calls, over.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Content(std::path::PathBuf),
    Name { from: std::path::PathBuf, to: std::path::PathBuf },
    Folder(std::path::PathBuf),
}

#[cfg(not(test))]
fn watched(call: impl FnOnce() -> io::Result<()>, _: impl FnOnce() -> Step) -> io::Result<()> {
    call()
}

#[cfg(test)]
fn watched(call: impl FnOnce() -> io::Result<()>, step: impl FnOnce() -> Step) -> io::Result<()> {
    tests::watched(call, step())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlobStore;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;
    use std::sync::{Mutex, PoisonError};
    use tapestry_core::Digest;

    /// What all tests of this process did, in order; each looks at its own folder alone.
    static STEPS: Mutex<Vec<Step>> = Mutex::new(vec![]);
    /// Folders whose disk does not take a sync.
    static BROKEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

    fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watched(call: impl FnOnce() -> io::Result<()>, step: Step) -> io::Result<()> {
        if let Step::Folder(folder) = &step
            && locked(&BROKEN).contains(folder)
        {
            return Err(io::Error::other("the disk is broken"));
        }
        // A name can be seen while it is being made, so it is noted before; what is durable, when it is.
        let is_name = matches!(step, Step::Name { .. });
        if is_name {
            locked(&STEPS).push(step.clone());
        }
        call()?;
        if !is_name {
            locked(&STEPS).push(step);
        }
        Ok(())
    }

    /// What a power loss may leave of a folder, at worst.
    #[derive(Debug, Default)]
    struct Disk {
        synced: BTreeSet<PathBuf>,
        /// Names whose folder was not synced since: each may be there afterwards, or not.
        loose: BTreeSet<PathBuf>,
        durable: BTreeSet<PathBuf>,
    }

    impl Disk {
        /// After the steps so far below a folder. No name may ever show a content that is not durable.
        fn now(root: &Path) -> Self {
            let (mut disk, steps) = (Self::default(), locked(&STEPS).clone());
            for step in steps {
                match step {
                    Step::Content(path) if path.starts_with(root) => _ = disk.synced.insert(path),
                    Step::Name { from, to } if to.starts_with(root) => {
                        assert!(disk.synced.contains(&from), "{to:?} shows what a power loss would take");
                        disk.loose.insert(to);
                    }
                    Step::Folder(folder) => {
                        let held: Vec<_> =
                            disk.loose.iter().filter(|name| name.parent() == Some(&folder)).cloned().collect();
                        disk.durable.extend(held);
                        disk.loose.retain(|name| name.parent() != Some(&folder));
                    }
                    _ => {}
                }
            }
            disk
        }
    }

    fn name_of(root: &Path, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        root.join(&name[..2]).join(&name)
    }

    #[test]
    fn what_is_confirmed_survives_a_power_loss_whoever_commits_beside_it() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let root = dir.path().canonicalize().expect("there");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let store = runtime.block_on(BlobStore::open_folder(&root)).expect("opens");
        std::thread::scope(|scope| {
            for thread in 0..8_u32 {
                let (store, root, handle) = (&store, &root, runtime.handle());
                scope.spawn(move || {
                    for n in 0..25_u32 {
                        let content = [thread.to_le_bytes(), n.to_le_bytes()].concat();
                        let digest = handle.block_on(store.put(content.into())).expect("stored");
                        let name = name_of(root, digest);
                        // The power goes away here: nothing that is synced later counts.
                        assert!(Disk::now(root).durable.contains(&name), "{name:?} was confirmed and may be lost");
                    }
                });
            }
        });
        let disk = Disk::now(&root);
        assert_eq!((disk.durable.len(), disk.loose.len()), (200, 0));
    }

    #[test]
    fn what_may_be_lost_is_not_confirmed() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let root = dir.path().canonicalize().expect("there");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = BlobStore::open_folder(&root).await.expect("opens");
            let mut by_folder: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
            for n in 0..600_u32 {
                let name = name_of(&root, Digest::of(&n.to_le_bytes()));
                by_folder.entry(name.parent().expect("a folder").to_path_buf()).or_default().push(n);
            }
            let (folder, numbers) = by_folder.into_iter().find(|(_, ns)| ns.len() > 2).expect("600 in 256 folders");
            store.put(numbers[0].to_le_bytes().to_vec().into()).await.expect("a good disk");
            locked(&BROKEN).insert(folder.clone());
            let content = numbers[1].to_le_bytes().to_vec();
            store.put(content.clone().into()).await.expect_err("its folder cannot be synced");
            assert_eq!(
                Disk::now(&root).loose.len(),
                1,
                "a name that may be lost, and nobody was told that it is there"
            );
            locked(&BROKEN).remove(&folder);
            // The next process finds a name that no sync confirmed, and believes it only after one.
            let again = BlobStore::open_folder(&root).await.expect("opens");
            assert_eq!(Disk::now(&root).loose.len(), 0, "names in sub-folders are durable before they are believed");
            assert!(again.has(Digest::of(&content)).await.expect("a good disk"));
        });
    }

    #[test]
    fn a_store_that_cannot_make_its_names_durable_does_not_open() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let root = dir.path().canonicalize().expect("there");
        let sub = root.join("ab");
        fs::create_dir(&sub).expect("made");
        locked(&BROKEN).insert(sub);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let error = runtime.block_on(BlobStore::open_folder(&root)).expect_err("a broken sub-folder");
        assert!(error.to_string().contains("sync"), "{error}");
    }
}
