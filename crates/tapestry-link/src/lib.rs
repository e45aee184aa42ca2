//! A long, narrow, unreliable link between two machines, on one: a TCP proxy that needs no privileges.
//!
//! # The model
//! Each direction of a link has a rate, which all connections share, and a delay. Bytes that come in wait until the bytes before them are on the
//! wire (the rate), and arrive the delay later (the propagation, which does not add up: many bytes are on their way at once). What waits and
//! travels in one direction is bounded, as in a router's queue; a sender that is faster is held back. On demand everything stands still, all
//! connections are reset, or they turn half-open: one side's bytes, and its end, never reach the other, and nobody is told.
//!
//! What it does not model: loss and reordering of packets (TCP hides them but for the time), and the growth of TCP's window over a real distance.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

/// Bytes that are taken from a connection at a time.
const PIECE_BYTES: u32 = 16 << 10;

/// What a link is like, in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long a byte travels: half of the round trip.
    pub delay: Duration,
    /// Bytes a second, over all connections; none where the rate is not limited.
    pub bytes_per_second: Option<u64>,
    /// The most that waits and travels in one direction. At least rate times round trip, or the link cannot be filled.
    pub queue_bytes: usize,
}

impl Default for Terms {
    /// Neither delay nor rate, and a queue of 8 MiB.
    fn default() -> Self {
        Self { delay: Duration::ZERO, bytes_per_second: None, queue_bytes: 8 << 20 }
    }
}

/// A link that is up, until it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    terms: Terms,
    /// Whether anything moves.
    stalled: watch::Sender<bool>,
    /// A connection whose number is below the first is reset, below the second half-open.
    broken: watch::Sender<(u64, u64)>,
    num_connections: AtomicU64,
    there: Direction,
    back: Direction,
}

/// What the connections of one direction share.
#[derive(Debug)]
struct Direction {
    /// When the wire is free.
    free_at: Mutex<Instant>,
    room: Arc<Semaphore>,
    num_bytes: AtomicU64,
}

impl Direction {
    fn new(terms: &Terms) -> Self {
        let room = Arc::new(Semaphore::new(terms.queue_bytes.max(PIECE_BYTES as usize)));
        Self { free_at: Mutex::new(Instant::now()), room, num_bytes: AtomicU64::new(0) }
    }

    /// Puts bytes on the wire; when they are all on it.
    fn sent_at(&self, num_bytes: usize, rate: Option<u64>) -> Instant {
        let now = Instant::now();
        let Some(rate) = rate else { return now };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_nanos((num_bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
        *free_at = (*free_at).max(now) + takes;
        *free_at
    }
}

impl Link {
    /// A link from a new address of this machine to `target`.
    ///
    /// # Errors
    /// Where no port is to be had.
    pub async fn to(target: SocketAddr, terms: Terms) -> io::Result<Self> {
        Self::between(SocketAddr::from(([127, 0, 0, 1], 0)), target, terms).await
    }

    /// A link from `listen` to `target`.
    ///
    /// # Errors
    /// Where `listen` is in use.
    pub async fn between(listen: SocketAddr, target: SocketAddr, terms: Terms) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            terms,
            stalled: watch::channel(false).0,
            broken: watch::channel((0, 0)).0,
            num_connections: AtomicU64::new(0),
            there: Direction::new(&terms),
            back: Direction::new(&terms),
        });
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where it is entered.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets everything stand still, or move again.
    pub fn stall(&self, is_stalled: bool) {
        self.shared.stalled.send_replace(is_stalled);
    }

    /// Resets all connections; new ones are as before.
    pub fn reset(&self) {
        let next = self.shared.num_connections.load(Ordering::SeqCst);
        self.shared.broken.send_modify(|broken| broken.0 = next);
    }

    /// Makes all connections half-open: nothing that one side does reaches the other any more, its end neither. New ones are as before.
    pub fn half_open(&self) {
        let next = self.shared.num_connections.load(Ordering::SeqCst);
        self.shared.broken.send_modify(|broken| broken.1 = next);
    }

    /// Bytes that have arrived at the target, and those that have come back.
    #[must_use]
    pub fn bytes_moved(&self) -> (u64, u64) {
        let of = |direction: &Direction| direction.num_bytes.load(Ordering::Relaxed);
        (of(&self.shared.there), of(&self.shared.back))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.broken.send_modify(|broken| broken.0 = u64::MAX);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors, or the like: it passes.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let number = shared.num_connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(carry(near, target, number, Arc::clone(&shared)));
    }
}

async fn carry(near: TcpStream, target: SocketAddr, number: u64, shared: Arc<Shared>) {
    // A handshake takes a round trip.
    tokio::time::sleep(2 * shared.terms.delay).await;
    let Ok(far) = TcpStream::connect(target).await else {
        closes_with_reset(&near, true);
        return;
    };
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    let mut broken = shared.broken.subscribe();
    let (near_reads, near_writes) = near.into_split();
    let (far_reads, far_writes) = far.into_split();
    let carrying = async {
        tokio::join!(
            one_way(near_reads, far_writes, number, &shared, &shared.there),
            one_way(far_reads, near_writes, number, &shared, &shared.back)
        )
    };
    tokio::select! {
        (there, back) = carrying => {
            // Held until both ways have ended, so that an end that was not passed on is not seen by anybody.
            for (reads, writes) in [there, back] {
                closes_with_reset(reads.as_ref(), false);
                drop((reads, writes));
            }
        }
        _ = broken.wait_for(|(is_reset, _)| number < *is_reset) => {}
    }
}

/// Whether a stream closes with a reset instead of an end.
#[expect(deprecated, reason = "with a linger of zero it does not block, which is what the deprecation is about")]
fn closes_with_reset(stream: &TcpStream, is_reset: bool) {
    let _ = stream.set_linger(is_reset.then_some(Duration::ZERO));
}

/// The writing side, which says goodbye only where it is told to.
struct Writes(Option<OwnedWriteHalf>);

impl Drop for Writes {
    fn drop(&mut self) {
        if let Some(writes) = self.0.take() {
            writes.forget();
        }
    }
}

/// Carries bytes from one side to the other until the end.
async fn one_way(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    number: u64,
    shared: &Arc<Shared>,
    direction: &Direction,
) -> (OwnedReadHalf, Writes) {
    closes_with_reset(from.as_ref(), true);
    let mut to = Writes(Some(to));
    let (travel, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>, OwnedSemaphorePermit)>();
    let leaving = async {
        let mut piece = vec![0; PIECE_BYTES as usize];
        loop {
            let Ok(room) = Arc::clone(&direction.room).acquire_many_owned(PIECE_BYTES).await else { break };
            let Ok(size @ 1..) = from.read(&mut piece).await else { break };
            let arrives_at = direction.sent_at(size, shared.terms.bytes_per_second) + shared.terms.delay;
            // The room stays taken until the bytes have arrived.
            if travel.send((arrives_at, piece[..size].to_vec(), room)).is_err() {
                break;
            }
        }
        drop(travel);
    };
    let coming = async {
        let Some(to) = &mut to.0 else { return };
        let mut stalled = shared.stalled.subscribe();
        let is_half_open = || number < shared.broken.borrow().1;
        while let Some((arrives_at, piece, room)) = arriving.recv().await {
            tokio::time::sleep_until(arrives_at).await;
            let _ = stalled.wait_for(|stalled| !stalled).await;
            // What is lost is lost, and its sender is not told.
            if is_half_open() {
                continue;
            }
            if to.write_all(&piece).await.is_err() {
                break;
            }
            direction.num_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            drop(room);
        }
        if is_half_open() {
            std::future::pending::<()>().await;
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(leaving, coming);
    (from, to)
}
