//! Small files: read with a bound, written whole or not at all.

use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

/// The longest configuration file or document that is read.
const MAX_SMALL_FILE_BYTES: u64 = 16 << 20;

/// Reads a small UTF-8 file.
///
/// # Errors
/// Naming the file: not there, too long, not UTF-8 (with the place of the first wrong byte).
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    let size = file.take(MAX_SMALL_FILE_BYTES + 1).read_to_end(&mut bytes);
    let size = size.with_context(|| format!("cannot read {}", path.display()))? as u64;
    if size > MAX_SMALL_FILE_BYTES {
        bail!("{} is longer than the {MAX_SMALL_FILE_BYTES} bytes that are accepted here", path.display());
    }
    into_utf8(path, bytes)
}

/// Writes a small file whole: temporary file, sync, rename, sync of the folder.
///
/// # Errors
/// Naming the file; the old content is still there.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    write_with_mode(path, content, 0o644)
}

/// As [`write_atomic`], readable by the owner alone.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<()> {
    write_with_mode(path, content, 0o600)
}

fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = folder.join(name);
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let mut file = options.open(&temporary)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The longest text that is read whole.
const MAX_TEXT_BYTES: u64 = 4 << 30;

/// Reads a member's text.
///
/// # Errors
/// Naming the file: not there, empty, too long, not UTF-8 (with the place of the first wrong byte).
pub(crate) fn read_long_text(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?.len();
    if size > MAX_TEXT_BYTES {
        bail!("{} has {size} bytes; a text may have at most {MAX_TEXT_BYTES}: split it", path.display());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = into_utf8(path, bytes)?;
    if text.trim().is_empty() {
        bail!("{} is empty; give a text", path.display());
    }
    Ok(text)
}

fn into_utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "{} is not UTF-8: the first wrong byte is at offset {at}; convert the file to UTF-8",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let check = |name: &str, content: &[u8], expected: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).expect("writes");
            let message = format!("{:#}", read_long_text(&path).expect_err("refused"));
            assert!(message.contains(expected) && message.contains(name), "{message}");
        };
        check("empty.txt", b" \n", "is empty");
        check("latin1.txt", b"libert\xe9", "first wrong byte is at offset 6");
        let message = format!("{:#}", read_long_text(&dir.path().join("none.txt")).expect_err("refused"));
        assert!(message.contains("cannot open") && message.contains("none.txt"), "{message}");
    }

    #[test]
    fn writing_leaves_one_whole_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b.txt");
        write_atomic(&path, b"one").expect("writes");
        write_atomic(&path, b"two").expect("writes");
        assert_eq!(read_text(&path).expect("reads"), "two");
        assert_eq!(fs::read_dir(dir.path().join("a")).expect("lists").count(), 1);
    }
}
