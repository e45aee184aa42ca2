//! The emulator is what it says: not faster, not nearer, and broken on demand.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tapestry_link::{Link, Terms};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            });
        }
    });
    address
}

async fn round_trip(stream: &mut TcpStream, content: &[u8]) -> Vec<u8> {
    let mut back = vec![0; content.len()];
    let (mut reads, mut writes) = stream.split();
    let (written, read) = tokio::join!(writes.write_all(content), reads.read_exact(&mut back));
    written.unwrap();
    read.unwrap();
    back
}

fn content(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

#[tokio::test]
async fn a_link_without_terms_changes_nothing() {
    let link = Link::to(echo().await, Terms::default()).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    let content = content(3 << 20);
    assert_eq!(round_trip(&mut stream, &content).await, content);
    assert_eq!(link.bytes_moved(), (3 << 20, 3 << 20));
}

#[tokio::test]
async fn delay_is_kept_and_does_not_add_up() {
    let delay = Duration::from_millis(30);
    let link = Link::to(echo().await, Terms { delay, ..Terms::default() }).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    // The first one waits for the connection to be made as well.
    round_trip(&mut stream, b"hello").await;
    let start = Instant::now();
    round_trip(&mut stream, b"hello").await;
    assert!(start.elapsed() >= 2 * delay);
    // A hundred pieces on their way at once: in turn they would take a hundred times as long.
    let start = Instant::now();
    round_trip(&mut stream, &content(100 * (16 << 10))).await;
    assert!((2 * delay..100 * delay).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_rate_is_shared_by_all_connections() {
    let rate = 4_000_000;
    let terms = Terms { bytes_per_second: Some(rate), ..Terms::default() };
    let link = Link::to(echo().await, terms).await.unwrap();
    let start = Instant::now();
    let one = async || {
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        round_trip(&mut stream, &content(1_000_000)).await;
    };
    tokio::join!(one(), one());
    // Two million bytes, at four million a second: never faster. How much slower depends on the machine.
    assert!(start.elapsed() >= Duration::from_millis(499), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_stall_ends_and_nothing_is_lost() {
    let link = Link::to(echo().await, Terms::default()).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    link.stall(true);
    let content = content(1 << 20);
    let mut moving = Box::pin(round_trip(&mut stream, &content));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut moving).await.is_err(), "it moves in a stall");
    link.stall(false);
    assert_eq!(moving.await, content);
}

#[tokio::test]
async fn a_reset_ends_old_connections_and_lets_new_ones_live() {
    let link = Link::to(echo().await, Terms::default()).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    round_trip(&mut stream, b"hello").await;
    link.reset();
    let mut rest = vec![];
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await;
    assert_eq!(ended.unwrap().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    round_trip(&mut stream, b"hello").await;
}

#[tokio::test]
async fn a_half_open_connection_takes_everything_and_says_nothing() {
    let link = Link::to(echo().await, Terms::default()).await.unwrap();
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    round_trip(&mut stream, b"hello").await;
    link.half_open();
    stream.write_all(b"anybody?").await.unwrap();
    let mut byte = [0];
    let silence = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
    assert!(silence.is_err(), "{silence:?}");
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    round_trip(&mut stream, b"hello").await;
}
