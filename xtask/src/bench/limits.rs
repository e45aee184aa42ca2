//! What this machine can do at most, measured in the same run: the figures that no program can beat.
//!
//! Each rate is measured in a process of its own (`bench-child limit`), several times, and the best counts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::machine::{gigabytes, num_threads};
use crate::run::output;

/// Every rate: its name and what it is.
pub(super) const RATES: [(&str, &str); 10] = [
    ("read-one", "page cache into a small buffer, one thread"),
    ("read-all", "page cache into small buffers, all threads"),
    ("memory", "a[i] = b[i] + s c[i] over 1.6 GB, all threads, 3 x bytes"),
    ("write-cache", "into the page cache, all threads"),
    ("write-sync", "into the page cache, then synced to disk"),
    ("write-direct", "past the page cache to disk"),
    ("read-direct", "from disk past the page cache"),
    ("blake3-one", "BLAKE3, one thread"),
    ("blake3-all", "BLAKE3, all threads"),
    ("tcp-loopback", "one TCP stream over loopback, from the page cache into memory, without TLS"),
];

/// Times each rate is measured.
const NUM_TRIES: usize = 3;
/// Bytes a thread moves at a time where the buffer is to stay in the processor's own cache.
const SMALL: usize = 256 << 10;
/// Bytes a thread moves at a time where a device is to be kept busy.
const LARGE: usize = 4 << 20;
/// What memory, file offset and length are multiples of for direct access.
const ALIGNMENT: usize = 4096;

/// The rates of this machine in bytes a second, by name.
pub(super) struct Limits(BTreeMap<&'static str, f64>);

impl Limits {
    /// Measures all rates, with a file of `size` bytes in `folder` where one is needed.
    ///
    /// # Errors
    /// When a file cannot be written or read.
    pub(super) fn measure(folder: &Path, size: usize) -> Result<Self> {
        let mut rates = BTreeMap::new();
        for (name, what) in RATES {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(["bench-child", "limit", name]).arg(folder).arg(size.to_string());
            let rate = match output(&mut command).and_then(|text| Ok(text.trim().parse::<f64>()?)) {
                Ok(rate) => rate,
                // Some filesystems have no direct access; everything else must work.
                Err(error) if name.ends_with("-direct") => {
                    eprintln!("  {name:<13} not measured: {error:#}");
                    continue;
                }
                Err(error) => return Err(error.context(format!("cannot measure the rate `{name}`"))),
            };
            eprintln!("  {name:<13} {:>7.2} GB/s  {what}", rate / 1e9);
            rates.insert(name, rate);
        }
        Ok(Self(rates))
    }

    /// Names and bytes a second.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().map(|(name, rate)| (*name, *rate))
    }

    /// Bytes a second; nothing where it could not be measured.
    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Seconds for `bytes`; endless where the rate could not be measured.
    fn seconds(&self, bytes: u64, name: &str) -> f64 {
        let rate = self.0.get(name).copied().unwrap_or(0.0);
        if bytes == 0 { 0.0 } else { gigabytes(bytes) * 1e9 / rate }
    }

    /// The least time in which this can be done here; nothing where that is not known.
    pub(super) fn least(&self, moved: &Moved) -> Option<Least> {
        if moved.repeats {
            return None;
        }
        let cores = self.seconds(moved.read, "read-all") + self.seconds(moved.hashed, "blake3-all");
        let from_disk = if moved.from_disk { moved.read } else { 0 };
        let disk = self.seconds(from_disk, "read-direct");
        let cached = Least::of(
            cores + self.seconds(moved.written, "write-cache"),
            disk + self.seconds(moved.synced, "write-sync"),
        );
        let direct = Least::of(cores, disk + self.seconds(moved.written, "write-direct"));
        Some(if cached.seconds <= direct.seconds { cached } else { direct })
    }

    #[cfg(test)]
    pub(super) fn of(rates: &[(&'static str, f64)]) -> Self {
        Self(rates.iter().copied().collect())
    }
}

/// Bytes that a piece of work moves, however it is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Out of the inputs, each once.
    pub(super) read: u64,
    /// Whether the same bytes are read again under other names: they then come from the processor's own cache, which is faster
    /// than any rate that is measured.
    pub(super) repeats: bool,
    /// Whether the inputs do not fit in the page cache.
    pub(super) from_disk: bool,
    /// Into the output.
    pub(super) written: u64,
    /// Of the output, known to be on disk at the end.
    pub(super) synced: u64,
    /// Of the output, hashed.
    pub(super) hashed: u64,
}

/// The least time for a piece of work. The cores must copy the inputs out of the page cache and hash; the output is either
/// copied into the page cache by the cores and written out from there, or goes to disk past it, whichever is faster here.
/// Cores and disk can work at the same time, so the slower of them counts. The arithmetic of the merge is not counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Least {
    pub(super) seconds: f64,
    /// What sets it.
    pub(super) by: &'static str,
}

impl Least {
    fn of(cores: f64, disk: f64) -> Self {
        if disk > cores { Self { seconds: disk, by: "disk" } } else { Self { seconds: cores, by: "cores" } }
    }
}

/// The process that measures one rate and prints it.
///
/// # Errors
/// When there is no such rate, or a file cannot be written or read.
pub(super) fn child(name: &str, folder: &Path, size: usize) -> Result<()> {
    let file = Scratch(folder.join(format!("limit-{}", std::process::id())));
    let size = size.next_multiple_of(LARGE);
    let (bytes, task): (usize, Box<dyn Fn() -> Result<()>>) = match name {
        "read-one" | "read-all" => {
            write(&file.0, size, 1, false)?;
            let threads = if name == "read-one" { 1 } else { num_threads() };
            (size, Box::new(move || read(&file.0, size, threads, SMALL, false)))
        }
        "memory" => triad(size)?,
        "tcp-loopback" => {
            write(&file.0, size, 1, false)?;
            (size, Box::new(move || tcp(&file.0)))
        }
        "write-cache" => (size, Box::new(move || write(&file.0, size, num_threads(), false).map(drop))),
        "write-sync" => (size, Box::new(move || Ok(write(&file.0, size, num_threads(), false)?.sync_all()?))),
        "write-direct" => (size, Box::new(move || Ok(write(&file.0, size, num_threads(), true)?.sync_all()?))),
        "read-direct" => {
            write(&file.0, size, 1, true)?.sync_all()?;
            (size, Box::new(move || read(&file.0, size, num_threads(), LARGE, true)))
        }
        "blake3-one" | "blake3-all" => {
            let (buffer, all) = (vec![1_u8; size.min(64 << 20)], name == "blake3-all");
            let task = move || {
                let mut hasher = blake3::Hasher::new();
                if all {
                    hasher.update_rayon(&buffer)
                } else {
                    hasher.update(&buffer)
                };
                black_box(hasher.finalize());
                Ok(())
            };
            (size.min(64 << 20), Box::new(task))
        }
        _ => bail!("there is no rate `{name}`"),
    };
    let mut best = f64::INFINITY;
    for _ in 0..NUM_TRIES {
        let start = Instant::now();
        task()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{}", gigabytes(bytes as u64) * 1e9 / best);
    Ok(())
}

/// A file that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs `task` for each of `num` parts of `size` bytes at once: with where the part begins and ends.
fn in_parts(size: usize, num: usize, step: usize, task: impl Fn(usize, usize) -> Result<()> + Sync) -> Result<()> {
    let part = (size / num).next_multiple_of(step);
    std::thread::scope(|scope| {
        let task = &task;
        let start = |index: usize| scope.spawn(move || task((index * part).min(size), ((index + 1) * part).min(size)));
        let handles: Vec<_> = (0..num).map(start).collect();
        handles.into_iter().try_for_each(|handle| handle.join().expect("a measuring thread does not panic"))
    })
}

/// A new file of `size` bytes, written in large steps. The one before is removed first, so that nothing old is written back.
fn write(path: &Path, size: usize, num_threads: usize, direct: bool) -> Result<File> {
    let _ = std::fs::remove_file(path);
    let file = open(OpenOptions::new().read(true).write(true).create_new(true), path, direct)?;
    in_parts(size, num_threads, LARGE, |start, end| {
        let mut buffer = Aligned::new(LARGE);
        buffer.bytes().fill(7);
        for at in (start..end).step_by(LARGE) {
            file.write_all_at(buffer.bytes(), at as u64)?;
        }
        Ok(())
    })?;
    Ok(file)
}

fn read(path: &Path, size: usize, num_threads: usize, step: usize, direct: bool) -> Result<()> {
    let file = open(OpenOptions::new().read(true), path, direct)?;
    in_parts(size, num_threads, step, |start, end| {
        let mut buffer = Aligned::new(step);
        for at in (start..end).step_by(step) {
            let len = step.min(end - at);
            file.read_exact_at(&mut buffer.bytes()[..len], at as u64)?;
            black_box(buffer.bytes());
        }
        Ok(())
    })
}

/// Sends a file over loopback, without copying it in this process, to a thread that reads it into memory.
fn tcp(path: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            std::io::copy(&mut File::open(path)?, &mut stream)?;
            Ok(())
        });
        let (mut stream, mut buffer) = (TcpStream::connect(address)?, vec![0; LARGE]);
        while stream.read(&mut buffer)? > 0 {
            black_box(&buffer);
        }
        sending.join().expect("a measuring thread does not panic")
    })
}

fn open(options: &mut OpenOptions, path: &Path, direct: bool) -> Result<File> {
    if direct {
        #[cfg(target_os = "linux")]
        options.custom_flags(nix::libc::O_DIRECT);
        ensure!(cfg!(target_os = "linux"), "there is no direct access on this system");
    }
    options.open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Memory as direct access asks for it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

type Task = Box<dyn Fn() -> Result<()>>;

/// The triad of the STREAM benchmark, with its way of counting: three vectors' bytes, though the written one may be read too.
fn triad(size: usize) -> Result<(usize, Task)> {
    let len = size / 2 / size_of::<f64>();
    let vectors = std::sync::Mutex::new((vec![0.0_f64; len], vec![1.0_f64; len], vec![2.0_f64; len]));
    let task = move || {
        let mut vectors = vectors.lock().expect("one thread at a time, and none panics");
        let (a, b, c) = &mut *vectors;
        let part = len.div_ceil(num_threads());
        std::thread::scope(|scope| {
            for ((a, b), c) in a.chunks_mut(part).zip(b.chunks(part)).zip(c.chunks(part)) {
                scope.spawn(move || {
                    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                        *a = b + 3.0 * c;
                    }
                });
            }
        });
        black_box(&a[0]);
        Ok(())
    };
    Ok((3 * len * size_of::<f64>(), Box::new(task)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_time_is_that_of_the_faster_way_to_write_and_there_of_the_slower_of_cores_and_disk() {
        let rates = [("read-all", 10.0), ("write-cache", 5.0), ("blake3-all", 2.0), ("write-sync", 1.0)];
        let check = |more: &[(&'static str, f64)], moved: Moved, seconds: f64, by| {
            let limits = Limits::of(&[&rates[..], more].concat());
            assert_eq!(limits.least(&moved), Some(Least { seconds, by }), "{more:?} {moved:?}");
        };
        let memory = Moved { read: 100, hashed: 20, ..Moved::default() };
        let cached = Moved { written: 20, ..memory };
        let synced = Moved { synced: 20, ..cached };
        check(&[], memory, 20.0, "cores");
        check(&[], cached, 24.0, "cores");
        check(&[], synced, 24.0, "cores");
        check(&[], Moved { written: 200, synced: 200, ..memory }, 200.0, "disk");
        check(&[("write-direct", 0.9)], synced, 20.0 / 0.9, "disk");
        check(&[("write-direct", 100.0)], synced, 20.0, "cores");
        check(&[("read-direct", 2.0)], Moved { from_disk: true, ..memory }, 50.0, "disk");
        check(&[], Moved::default(), 0.0, "cores");
        assert_eq!(Limits::of(&rates).least(&Moved { repeats: true, ..memory }), None);
    }

    #[test]
    fn parts_cover_every_byte_once() {
        for (size, num) in [(64, 1), (64, 3), (64, 16), (8, 3)] {
            let seen = std::sync::Mutex::new(vec![0; size]);
            let count = |start, end| {
                seen.lock().expect("no panic")[start..end].iter_mut().for_each(|byte| *byte += 1);
                Ok(())
            };
            in_parts(size, num, 8, count).expect("nothing fails");
            assert_eq!(*seen.lock().expect("no panic"), vec![1; size], "{size} in {num}");
        }
    }
}
