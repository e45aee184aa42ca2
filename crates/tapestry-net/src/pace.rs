//! How slow the other side of a connection may be, and how much it moves.
//!
//! Nothing here bounds the total time of a transfer: a slow link may take as long as it needs. What is bounded is the time
//! in which nothing moves, and, on the listening side, a rate so low that only somebody who wants to keep a connection
//! busy would have it.

use crate::throttle::{STEP_BYTES, Throttle};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What is asked of the other side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The longest time in which nothing moves.
    pub(crate) idle: Duration,
    /// Below this rate, in the mean, time runs out; each second of it buys a second.
    pub(crate) min_bytes_per_second: u64,
}

/// The waiting time that one transfer has left.
///
/// Waiting spends it, bytes buy it back, and there is never more of it than [`Pace::idle`]. So a transfer at the least rate
/// never runs out, one that stands still does after `idle`, and one that sends a byte now and then does soon after.
#[derive(Debug)]
struct Patience {
    pace: Pace,
    left: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patience {
    fn new(pace: Pace) -> Self {
        Self { pace, left: pace.idle, waiting: None }
    }

    fn account(&mut self, waited: Duration, num_bytes: usize) {
        let bought_ms = (num_bytes as u64).saturating_mul(1000) / self.pace.min_bytes_per_second.max(1);
        self.left =
            self.left.saturating_sub(waited).saturating_add(Duration::from_millis(bought_ms)).min(self.pace.idle);
    }

    /// After something moved.
    fn moved(&mut self, num_bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.account(waited, num_bytes);
    }

    /// While nothing moves: ready when the time is over. Wakes the task then.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, sleep) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
        sleep.as_mut().poll(cx)
    }
}

/// The other side is slower than it may be.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("too slow: less than {} bytes a second for {} s", .0.min_bytes_per_second, .0.idle.as_secs_f64())]
pub(crate) struct TooSlow(Pace);

/// Why a body did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It came too slowly.
    #[error(transparent)]
    TooSlow(#[from] TooSlow),
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// The body of a request, which has to keep moving.
pub(crate) struct PacedBody {
    body: Option<hyper::body::Incoming>,
    patience: Patience,
    activity: Arc<Activity>,
    unread: Unread,
}

/// Where a body that keeps moving is put back when nobody reads it to its end.
pub(crate) type Unread = Arc<Mutex<Option<hyper::body::Incoming>>>;

impl PacedBody {
    /// `activity`: of the connection that it comes on.
    pub(crate) fn new(body: hyper::body::Incoming, pace: Pace, activity: Arc<Activity>, unread: &Unread) -> Self {
        Self { body: Some(body), patience: Patience::new(pace), activity, unread: Arc::clone(unread) }
    }

    fn too_slow(&mut self) -> BodyError {
        // It is not waited for once more.
        self.body = None;
        self.activity.is_body_too_slow.store(true, Ordering::Relaxed);
        TooSlow(self.patience.pace).into()
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// Reads what is left of a body of at most `limit` bytes. Closing a socket with something unread in it resets the connection, and the
/// other side would never read why it was refused.
pub(crate) async fn discard(unread: &Unread, limit: u64, pace: Pace, activity: &Arc<Activity>) {
    let Some(body) = unread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    if body.size_hint().lower() > limit {
        return;
    }
    let mut body = PacedBody::new(body, pace, Arc::clone(activity), &Unread::default());
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, Bytes::len) as u64;
        if size > limit {
            return;
        }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
                let size = data.map_or(0, Bytes::len);
                self.patience.moved(size);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.patience.poll_over(cx));
                while self.activity.is_held_back.load(Ordering::Relaxed) {
                    // It is this side that lets nothing in.
                    self.patience = Patience::new(self.patience.pace);
                    ready!(self.patience.poll_over(cx));
                }
                Poll::Ready(Some(Err(self.too_slow())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Bytes on the wire in both directions, everything included.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// When something last moved on one connection, and how much.
#[derive(Debug)]
pub(crate) struct Activity {
    totals: Arc<Totals>,
    start: Instant,
    last_ms: AtomicU64,
    /// This side's own limit of bytes a second is what keeps the connection from moving.
    is_held_back: AtomicBool,
    /// The body of a request came too slowly.
    pub(crate) is_body_too_slow: AtomicBool,
}

impl Activity {
    pub(crate) fn new(totals: Arc<Totals>) -> Arc<Self> {
        Arc::new(Self {
            totals,
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
            is_held_back: AtomicBool::new(false),
            is_body_too_slow: AtomicBool::new(false),
        })
    }

    /// As though something had moved just now.
    pub(crate) fn touch(&self) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// How long nothing has moved that could have.
    pub(crate) fn stillness(&self) -> Duration {
        if self.is_held_back.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }

    /// Bytes that have come so far.
    pub(crate) fn received(&self) -> u64 {
        self.totals.received.load(Ordering::Relaxed)
    }

    fn count(&self, counter: &AtomicU64, num_bytes: usize) {
        if num_bytes > 0 {
            counter.fetch_add(num_bytes as u64, Ordering::Relaxed);
            self.touch();
        }
    }
}

/// A connection whose bytes are counted, and whose other side has to take what it is sent.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    writing: Option<Patience>,
    /// What was read from the system and not yet asked for: TLS asks for little at a time.
    ahead: Vec<u8>,
    /// Where in it the bytes lie.
    unread: Range<usize>,
    throttle: Option<Throttle>,
    /// Until when the limits let nothing through: sending, receiving.
    held_back: [Option<Pin<Box<Sleep>>>; 2],
}

/// How much is read from the system at a time.
const READ_BYTES: usize = 256 << 10;

impl<S> Watched<S> {
    /// `pace`: what is asked of the other side's reading, if anything. `throttle`: how much may move.
    pub(crate) fn new(stream: S, activity: Arc<Activity>, pace: Option<Pace>, throttle: Option<Throttle>) -> Self {
        let writing = pace.map(Patience::new);
        Self { stream, activity, writing, ahead: vec![], unread: 0..0, throttle, held_back: [None, None] }
    }

    /// How much may move now in one direction, once anything may.
    fn poll_allowed(&mut self, cx: &mut Context<'_>, is_receiving: bool) -> Poll<usize> {
        let Some(throttle) = &self.throttle else { return Poll::Ready(usize::MAX) };
        let bucket = if is_receiving { &throttle.receiving } else { &throttle.sending };
        let held_back = &mut self.held_back[usize::from(is_receiving)];
        loop {
            if let Some(sleep) = held_back {
                if sleep.as_mut().poll(cx).is_pending() {
                    self.activity.is_held_back.store(true, Ordering::Relaxed);
                    return Poll::Pending;
                }
                *held_back = None;
            }
            let wait = bucket.wait();
            if wait.is_zero() {
                self.activity.touch();
                self.activity.is_held_back.store(false, Ordering::Relaxed);
                return Poll::Ready(STEP_BYTES);
            }
            *held_back = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    fn written(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match (&result, &mut self.writing) {
            (Poll::Ready(Ok(size)), writing) => {
                if let Some(patience) = writing {
                    patience.moved(*size);
                }
                self.activity.count(&self.activity.totals.sent, *size);
                if let Some(throttle) = &self.throttle {
                    throttle.sending.spend(*size);
                }
                result
            }
            (Poll::Pending, Some(patience)) => {
                ready!(patience.poll_over(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, TooSlow(patience.pace))))
            }
            _ => result,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.unread.is_empty() {
            let allowed = ready!(this.poll_allowed(cx, true));
            this.ahead.resize(READ_BYTES, 0);
            let mut room = ReadBuf::new(&mut this.ahead[..allowed.min(READ_BYTES)]);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut room))?;
            this.unread = 0..room.filled().len();
            this.activity.count(&this.activity.totals.received, this.unread.len());
            if let Some(throttle) = &this.throttle {
                throttle.receiving.spend(this.unread.len());
            }
        }
        let len = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.ahead[this.unread.start..this.unread.start + len]);
        this.unread.start += len;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let allowed = ready!(self.poll_allowed(cx, false));
        let result = Pin::new(&mut self.stream).poll_write(cx, &data[..data.len().min(allowed)]);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.throttle.is_some() {
            // One record after the other is fast enough for a limit.
            let first = data.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
            return self.poll_write(cx, first);
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_after(steps: &[(u64, usize)]) -> u128 {
        let pace = Pace { idle: Duration::from_secs(10), min_bytes_per_second: 1000 };
        let mut patience = Patience::new(pace);
        for (waited, num_bytes) in steps {
            patience.account(Duration::from_secs(*waited), *num_bytes);
        }
        patience.left.as_millis()
    }

    #[test]
    fn the_least_rate_never_runs_out_and_a_trickle_does() {
        assert_eq!(left_after(&[(1, 1000); 1000]), 10_000);
        assert_eq!(left_after(&[(1, 500); 10]), 5000);
        assert_eq!(left_after(&[(1, 1); 11]), 1, "only what the last byte bought");
        assert_eq!(left_after(&[(9, 100_000_000)]), 10_000, "what was fast before buys no more than the idle time");
        assert_eq!(left_after(&[(11, 0)]), 0);
    }
}
