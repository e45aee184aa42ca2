//! One member behind a long, narrow link, and one that is killed while it sends: what the link carries, and what goes over it twice.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::consortium::Consortium;
use super::log::Transfer;
use super::report::Row;
use crate::run::{cargo, step};

/// The emulated link: round trip, and rate in each direction.
const ROUND_TRIP_MS: u32 = 100;
const MBIT_PER_SECOND: u32 = 200;
/// Connections of a member, where its settings say nothing else.
const NUM_STREAMS: u64 = 4;
/// A chunk.
const CHUNK_BYTES: u64 = 8 << 20;
/// Bytes of TLS records and HTTP beside a model's own, at most, as a share.
const FRAMING: f64 = 0.004;

/// What went through a [`Counter`].
#[derive(Debug, Default)]
struct Counts {
    to_server: AtomicU64,
    to_client: AtomicU64,
}

/// A relay between members and the coordinator that counts bytes.
struct Counter {
    address: SocketAddr,
    counts: Arc<Counts>,
}

impl Counter {
    /// Relays to `target` as long as this process lives.
    fn before(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, counts) = (listener.local_addr()?, Arc::<Counts>::default());
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Whoever finds nobody there tries again, as with any link.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let ends = [(&client, &server), (&server, &client)]
                    .map(|(from, to)| Some((from.try_clone().ok()?, to.try_clone().ok()?)));
                for (is_up, ends) in [true, false].into_iter().zip(ends) {
                    let (Some((from, to)), counts) = (ends, Arc::clone(&shared)) else { continue };
                    std::thread::spawn(move || {
                        relay(from, to, if is_up { &counts.to_server } else { &counts.to_client })
                    });
                }
            }
        });
        Ok(Self { address, counts })
    }

    fn to_server(&self) -> u64 {
        self.counts.to_server.load(Ordering::Relaxed)
    }

    fn to_client(&self) -> u64 {
        self.counts.to_client.load(Ordering::Relaxed)
    }
}

/// Until either end is gone; then both are.
fn relay(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
    let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
}

/// The emulator in a process of its own.
struct Emulator {
    child: Child,
    address: SocketAddr,
}

impl Emulator {
    fn before(target: SocketAddr) -> Result<Self> {
        step(cargo().args(["build", "--release", "--quiet", "-p", "tapestry-link"]))?;
        let program = crate::bench::target_folder()?.join("release/tapestry-link");
        let mut command = Command::new(program);
        command.args(["127.0.0.1:0", &target.to_string(), &ROUND_TRIP_MS.to_string(), &MBIT_PER_SECOND.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start tapestry-link")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let address = line.split(' ').next().and_then(|word| word.parse().ok());
        Ok(Self { child, address: address.with_context(|| format!("tapestry-link said {line:?}"))? })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A consortium of one member whose coordinator listens.
fn consortium(bench: &Bench<'_>) -> Result<Consortium> {
    let mut consortium = Consortium::make(&bench.plan(1, 2))?;
    nix::unistd::sync();
    consortium.start_coordinator()?;
    Ok(consortium)
}

fn has(consortium: &Consortium, home: &str, kind: &str) -> Result<bool> {
    Ok(consortium.log(home)?.iter().any(|entry| entry.is(kind)))
}

/// One member pulls and pushes a model over the emulated link.
pub(super) fn narrow_link(bench: &Bench<'_>) -> Result<Vec<Row>> {
    eprintln!("link: 1 member, {ROUND_TRIP_MS} ms, {MBIT_PER_SECOND} Mbit/s ...");
    let mut consortium = consortium(bench)?;
    let emulator = Emulator::before(consortium.address())?;
    let counter = Counter::before(emulator.address)?;
    consortium.join(Some(counter.address))?;
    let before = (counter.to_client(), counter.to_server());
    consortium.start_nodes()?;
    let member = consortium.members()[0].clone();
    consortium.wait("the base to arrive", |consortium| has(consortium, &member, "base_held"))?;
    let came = counter.to_client() - before.0;
    consortium.wait("the contribution to arrive", |consortium| has(consortium, &member, "contribution_sent"))?;
    let went = counter.to_server() - before.1;
    let log = consortium.log(&member)?;
    let transfers: Vec<Transfer> = log.iter().filter_map(Transfer::of).collect();
    bench.end(consortium)?;
    let link = f64::from(MBIT_PER_SECOND) / 8.0;
    let mut rows = vec![];
    let kinds = [
        ("base_held", "pull_mb_s", "pull_on_the_wire_mb_s", came),
        ("contribution_sent", "push_mb_s", "push_on_the_wire_mb_s", went),
    ];
    for (kind, metric, on_the_wire, bytes) in kinds {
        let transfer = transfers.iter().find(|transfer| transfer.kind == kind).with_context(|| format!("no {kind}"))?;
        let why = "the emulated link; more is what compression saves";
        rows.push(Row::more("link", metric, transfer.mb_per_second()).target(0.9 * link).limit(link, why));
        let wire = Transfer { size_bytes: bytes, ..*transfer };
        rows.push(Row::more("link", on_the_wire, wire.mb_per_second()).limit(link, "the emulated link"));
    }
    Ok(rows)
}

/// A member is killed when half of its contribution is on its way, and started again.
pub(super) fn killed(bench: &Bench<'_>) -> Result<Vec<Row>> {
    eprintln!("resent: 1 member, killed in the middle of its upload ...");
    let mut consortium = consortium(bench)?;
    let counter = Counter::before(consortium.address())?;
    consortium.join(Some(counter.address))?;
    consortium.start_nodes()?;
    let member = consortium.members()[0].clone();
    let size = bench.shape.size_bytes();
    consortium.wait_closely("half of the contribution", |_| Ok(counter.to_server() > size / 2))?;
    consortium.kill_node(0);
    ensure!(!has(&consortium, "coordinator", "contribution_received")?, "the upload ended before the kill");
    eprintln!("  killed after {:.0} MB", megabytes(counter.to_server()));
    consortium.start_node(0)?;
    consortium.wait("the contribution to arrive", |consortium| has(consortium, &member, "contribution_sent"))?;
    let sent = counter.to_server();
    bench.end(consortium)?;
    let resent = megabytes(sent) - megabytes(size) * (1.0 + FRAMING);
    let most = megabytes(NUM_STREAMS * CHUNK_BYTES);
    Ok(vec![
        Row::new("resent", "sent_mb", megabytes(sent)).limit(megabytes(size), "the model"),
        Row::new("resent", "sent_twice_mb", resent.max(0.0)).target(most),
        Row::new("resent", "chunks_per_stream", resent.max(0.0) / most).target(1.0),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "a number for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_is_counted_in_each_direction() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let counter = Counter::before(server.local_addr().expect("bound")).expect("a port");
        let mut client = TcpStream::connect(counter.address).expect("connects");
        let (mut end, _) = server.accept().expect("relayed");
        client.write_all(&[1; 1000]).expect("sent");
        end.read_exact(&mut [0; 1000]).expect("received");
        end.write_all(&[2; 70]).expect("sent");
        drop(end);
        let mut all = vec![];
        client.read_to_end(&mut all).expect("received, and the end of it");
        assert_eq!((all.len(), counter.to_server(), counter.to_client()), (70, 1000, 70));
    }
}
