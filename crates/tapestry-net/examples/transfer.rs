//! What moving blobs costs: one member pushes chunks to a server in another process, and pulls them back; beside it, one raw
//! TCP stream of the same bytes. `cargo run --release -p tapestry-net --example transfer -- DIR [MIB] [STREAMS] [RUNS]`
//!
//! Prints one JSON object a line. Everything on: TLS 1.3, digests checked on arrival, durable on confirmation. CPU seconds are those
//! of both processes; the peak of memory is that of each.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that ends where anything fails")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use tapestry_core::{CHUNK_BYTES, Digest, SecretKey};
use tapestry_net::{Dialer, Server, blob_routes, pull_blobs, push_blobs};
use tapestry_store::BlobStore;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", dir] => serve(Path::new(dir)),
        ["raw", file] => raw_sender(Path::new(file)),
        [dir, ref rest @ ..] => {
            let number = |at: usize, default: usize| rest.get(at).map_or(default, |n| n.parse().unwrap());
            measure(Path::new(dir), number(0, 512) as u64, number(1, 4), number(2, 3));
        }
        [] => panic!("give a folder to work in"),
    }
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// The receiving process: says where it listens, ends when its input does.
fn serve(dir: &Path) {
    runtime().block_on(async {
        let store = BlobStore::open_folder(dir).await.unwrap();
        let routes = blob_routes(store, Arc::new(|_, _| Ok(())));
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let server = Server::bind(any, &key(1), Arc::new(|_| true), routes).await.unwrap();
        println!("{}", server.local_addr());
        let ended = async {
            tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![])).await.unwrap().unwrap();
        };
        server.serve(ended).await.unwrap();
    });
}

struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(words: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// CPU seconds so far and the peak of memory in MiB, of a process of this machine.
fn usage(pid: u32) -> (f64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    (ticks / 100.0, peak.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10)
}

/// Chunks that look like trained weights in 32-bit floats: signs and mantissas of noise, few exponents.
fn fill(dir: &Path, mib: u64) -> Vec<Digest> {
    runtime().block_on(async {
        let store = BlobStore::open_folder(dir).await.unwrap();
        let mut state = 1u64;
        let mut digests = vec![];
        for _ in 0..mib.div_ceil(8) {
            let mut content = Vec::with_capacity(8 << 20);
            while content.len() as u64 != CHUNK_BYTES {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let noise = (state >> 32) as u32;
                let exponent = 127 - 6 - (noise & 0xffff).trailing_zeros().min(20);
                let value = (noise & 0x807f_ffff) | (exponent << 23);
                content.extend_from_slice(&value.to_le_bytes());
            }
            digests.push(store.put(content.into()).await.unwrap());
        }
        digests
    })
}

fn row(work: &str, mib: u64, start: Instant, cpu: f64, peak: [u64; 2]) {
    let seconds = start.elapsed().as_secs_f64();
    let rate = mib as f64 * 1.048_576 / seconds;
    let [here, there] = peak;
    println!(
        "{{\"work\":\"{work}\",\"mib\":{mib},\"seconds\":{seconds:.3},\"mb_per_second\":{rate:.0},\"cpu_seconds\":{cpu:.2},\
         \"peak_mib_here\":{here},\"peak_mib_there\":{there}}}"
    );
}

fn measure(dir: &Path, mib: u64, streams: usize, runs: usize) {
    let folder = |name: &str| -> PathBuf { dir.join(name) };
    let _ = fs::remove_dir_all(dir);
    let digests = fill(&folder("here"), mib);
    let moved = digests.len() as u64 * 8;
    for _ in 0..runs {
        raw(&folder("here"), moved);
        let _ = fs::remove_dir_all(folder("there"));
        let _ = fs::remove_dir_all(folder("back"));
        let there = folder("there");
        let serving = Serving::start(&["serve", there.to_str().unwrap()]);
        let (pid, me) = (serving.child.id(), std::process::id());
        let peaks = || [usage(me).1, usage(pid).1];
        let cpu = || usage(me).0 + usage(pid).0;
        runtime().block_on(async {
            let dialer = Dialer::new(&serving.address, key(1).public(), &key(2)).unwrap();
            let here = BlobStore::open_folder(&folder("here")).await.unwrap();
            let (start, before) = (Instant::now(), cpu());
            push_blobs(&dialer, &here, &digests, streams, &mut |_, _| ()).await.unwrap();
            row("push", moved, start, cpu() - before, peaks());
            let back = BlobStore::open_folder(&folder("back")).await.unwrap();
            let (start, before) = (Instant::now(), cpu());
            pull_blobs(&dialer, &back, &digests, streams, &mut |_, _| ()).await.unwrap();
            row("pull", moved, start, cpu() - before, peaks());
        });
    }
    fs::remove_dir_all(dir).unwrap();
}

/// The ceiling: one TCP stream from the page cache of one process into the memory of another.
fn raw(dir: &Path, mib: u64) {
    let sender = Serving::start(&["raw", dir.to_str().unwrap()]);
    let start = Instant::now();
    let mut stream = TcpStream::connect(&sender.address).unwrap();
    let (mut buffer, mut total) = (vec![0; 4 << 20], 0);
    while let Ok(size @ 1..) = stream.read(&mut buffer) {
        total += size as u64;
    }
    assert_eq!(total, mib << 20);
    row("raw TCP", mib, start, 0.0, [0, 0]);
}

fn raw_sender(dir: &Path) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    println!("{}", listener.local_addr().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    for folder in fs::read_dir(dir).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            std::io::copy(&mut fs::File::open(file.unwrap().path()).unwrap(), &mut stream).unwrap();
        }
    }
    stream.flush().unwrap();
}
