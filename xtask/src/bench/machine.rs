//! What a figure depends on besides the program: machine, filesystem, date, and what else was running.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;

use crate::run::{output, root};

/// One line each, `name: value`. What the system does not tell is "unknown".
pub(super) fn facts(folder: &Path) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let unknown = || "unknown".to_string();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let cpu = after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown);
    let vectors = ["avx512f", "avx2", "asimd"].into_iter().find(|name| read("/proc/cpuinfo").contains(name));
    let load = read("/proc/loadavg").split(' ').next().map_or_else(unknown, str::to_string);
    let mut git = std::process::Command::new("git");
    let commit = output(git.current_dir(root()).args(["rev-parse", "--short", "HEAD"]));
    let filesystem = filesystem(&read("/proc/mounts"), folder).unwrap_or_else(unknown);
    vec![
        format!("date: {}", date(SystemTime::now())),
        format!("commit: {}", commit.map_or_else(|_| unknown(), |hash| hash.trim().to_string())),
        format!("processor: {cpu}, {} cores, {}", num_threads(), vectors.unwrap_or("unknown vectors")),
        format!("memory: {:.1} GB", gigabytes(memory_bytes().unwrap_or(0))),
        format!("filesystem: {filesystem}, {:.0} GB free", gigabytes(free_bytes(folder))),
        format!("load before: {load} (figures count only where this is near 0)"),
    ]
}

/// Threads that can run at once.
pub(super) fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of memory, where the system says so.
pub(super) fn memory_bytes() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// A line of /proc/meminfo, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes of memory that a program could still get, where the system says so.
fn available_bytes() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Writes to `bytes` of memory, at most half of what is available, in a process of its own that then ends.
///
/// A virtual machine gets much of its memory only when it first touches it, and its host takes back what has long been free. A
/// program that is measured just then pays for that: we saw the same merge by PyTorch take 0.8 s and 8 s. This pays before.
///
/// # Errors
/// When this program cannot be started again.
pub(super) fn touch_memory(bytes: u64) -> Result<()> {
    let bytes = bytes.min(available_bytes().unwrap_or(0) / 2);
    let exe = std::env::current_exe().context("cannot find this program")?;
    output(std::process::Command::new(exe).args(["bench-child", "touch", &bytes.to_string()])).map(drop)
}

/// A machine's memory as it is after hours of work: what no program uses is full of files that were read.
///
/// What is free on a virtual machine, its host has taken back, and each page costs 5 to 7 microseconds when it is touched again:
/// seconds for a round, which writes and reads gigabytes through the page cache. With this the cache takes a page from here instead.
/// It works until the kernel gives idle pages back, so it is made just before what is measured. It is a file of holes, and costs no disk.
pub(super) struct UsedMemory(PathBuf);

impl UsedMemory {
    /// Reads holes until hardly any memory is free.
    ///
    /// # Errors
    /// When the file cannot be made or read.
    pub(super) fn fill(folder: &Path) -> Result<Self> {
        let used = Self(folder.join("holes"));
        let total = memory_bytes().context("this bench needs Linux")?;
        File::create(&used.0)?.set_len(total)?;
        let next = AtomicU64::new(0);
        let read = || -> std::io::Result<()> {
            let (file, mut block) = (File::open(&used.0)?, vec![0; 1 << 20]);
            while free_memory().is_none_or(|free| free > LEAST_FREE) {
                for _ in 0..32 {
                    let at = next.fetch_add(block.len() as u64, Ordering::Relaxed);
                    if at >= total || file.read_at(&mut block, at)? == 0 {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..num_threads()).map(|_| scope.spawn(read)).collect();
            for thread in threads {
                thread.join().expect("reading does not panic")?;
            }
            Ok(())
        })?;
        Ok(used)
    }
}

impl Drop for UsedMemory {
    fn drop(&mut self) {
        // Only a name is left over when this fails; the file has no content on the disk.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The kernel keeps a little free by itself.
const LEAST_FREE: u64 = 400 << 20;

/// Bytes of memory that nothing uses, not even as a cache.
fn free_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemFree:")
}

/// The process that touches memory.
pub(super) fn child(bytes: usize) {
    let num = num_threads();
    std::thread::scope(|scope| {
        // Kept until all are done, so that no thread gets what another has given back.
        let parts: Vec<_> = (0..num).map(|_| scope.spawn(move || vec![1_u8; bytes / num])).collect();
        let parts: Vec<_> = parts.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        std::hint::black_box(parts.len());
    });
}

/// Bytes that can still be written where `folder` is; 0 where the system does not say.
pub(super) fn free_bytes(folder: &Path) -> u64 {
    statvfs(folder).map_or(0, |fs| fs.blocks_available() * fs.fragment_size())
}

/// For people.
#[expect(clippy::cast_precision_loss, reason = "a number for people")]
pub(super) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// The kind of filesystem that `folder` lies on: the mount with the longest path above it.
fn filesystem(mounts: &str, folder: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let above = mounts.filter(|(at, _)| folder.starts_with(at));
    above.max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind.to_string())
}

/// Date and minute, UTC. The calendar by Howard Hinnant's `civil_from_days`: years begin in March, eras have 400 years.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, minutes) = (seconds / 86_400 + 719_468, seconds % 86_400 / 60);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds, expected| assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        check(0, "1970-01-01 00:00 UTC");
        check(951_782_400, "2000-02-29 00:00 UTC");
        check(1_709_251_199, "2024-02-29 23:59 UTC");
        check(1_798_761_600, "2027-01-01 00:00 UTC");
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24684000 kB\nMemAvailable:   22400 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable:"), Some(22_937_600));
        assert_eq!(kilobytes(text, "MemFree:"), None);
    }

    #[test]
    fn the_mount_with_the_longest_path_above_tells_the_filesystem() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /nowhere tmpfs rw 0 0\n/dev/b /nowhere/deep xfs rw 0 0\n";
        let check = |path: &str, expected| assert_eq!(filesystem(mounts, Path::new(path)).as_deref(), Some(expected));
        check("/nowhere/deep/er", "xfs");
        check("/nowhere/deeper", "tmpfs");
        check("/elsewhere", "ext4");
    }
}
