//! Attacks on the running coordinator, over real sockets. Each must fail, and the coordinator must go on serving its members.
//! `attacks/README.md` says where each is stopped.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use axum::Router;
use common::{Process, Workshop, free_port};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tapestry_core::{Digest, PublicKey, SecretKey, Signed};
use tapestry_governance::Charter;
use tapestry_net::{Dialer, NetError, Server};
use tapestry_round::News;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A coordinator of two members at work, and what an attacker knows: its address and its public key.
struct Target {
    workshop: Workshop,
    coordinator: Process,
    address: String,
    key: PublicKey,
}

impl Target {
    fn start(extra: &str) -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&["france", "china"]);
        workshop.shell(&format!(
            "tapestry charter draft --home coordinator --consortium Two --member france=$(cat france.key) \
             --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 300 {extra}
             tapestry charter sign charter.json --home france-node --yes
             tapestry charter sign charter.json --home china-node --yes
             tapestry charter publish charter.json --home coordinator"
        ));
        let address = format!("127.0.0.1:{}", free_port());
        let coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
        workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
        let key = fs::read_to_string(workshop.path("coordinator/key.pub")).unwrap().trim().parse().unwrap();
        Self { workshop, coordinator, address, key }
    }

    fn dialer(&self, member: &str) -> Dialer {
        self.dialer_at(member, &self.address)
    }

    fn dialer_at(&self, member: &str, address: &str) -> Dialer {
        let pem = fs::read_to_string(self.workshop.path(&format!("{member}-node/key.pem"))).unwrap();
        Dialer::new(address, self.key, &SecretKey::from_pem(&pem).unwrap()).unwrap()
    }

    /// The base is measured first; until then nobody may send weights.
    async fn round_opens(&self, dialer: &Dialer) {
        let mut news: News = dialer.get_json("/v1/news?after=0&wait_ms=1000").await.unwrap();
        while news.announcement.is_none() {
            let path = format!("/v1/news?after={}&wait_ms=30000", news.version);
            news = dialer.get_json(&path).await.unwrap();
        }
    }

    /// An honest member is served as before, nothing panicked, and the log verifies.
    async fn expect_unharmed(mut self) {
        let _: Signed<Charter> = self.dialer("france").get_json("/v1/charter").await.unwrap();
        let messages = self.coordinator.messages();
        assert!(!messages.contains("panicked"), "{messages}");
        self.coordinator.stop();
        self.workshop.shell("tapestry log verify --home coordinator");
    }
}

fn status_of(error: &NetError) -> Option<u16> {
    match error {
        NetError::Refused { status, .. } => Some(*status),
        _ => None,
    }
}

#[tokio::test]
async fn names_that_lead_elsewhere_give_nothing() {
    let target = Target::start("");
    let dialer = target.dialer("china");
    let secret = fs::read(target.workshop.path("coordinator/key.pem")).unwrap();
    for name in [
        "../key.pem",
        "../../key.pem",
        "..%2fkey.pem",
        "%2e%2e%2f%2e%2e%2fkey.pem",
        "..%5ckey.pem",
        "%00",
        "b3:../../key.pem",
        "/etc/passwd",
        "",
    ] {
        let path = format!("/v1/blobs/{name}");
        let error = dialer.get_bytes(&path, 1 << 20).await.unwrap_err();
        assert!(matches!(status_of(&error), Some(400 | 404 | 405)), "{path}: {error}");
        let error = dialer.put_bytes(&path, b"mine".to_vec().into()).await.unwrap_err();
        assert!(matches!(status_of(&error), Some(400 | 404 | 405)), "{path}: {error}");
    }
    assert_eq!(fs::read(target.workshop.path("coordinator/key.pem")).unwrap(), secret);
    target.expect_unharmed().await;
}

#[tokio::test]
async fn too_much_is_refused() {
    let target = Target::start("");
    let dialer = target.dialer("china");
    // Two megabytes where one is the most.
    for route in ["contribution", "decline", "attendance", "activity"] {
        let error = dialer.post_json::<_, ()>(&format!("/v1/{route}"), &"x".repeat(2 << 20)).await.unwrap_err();
        // The coordinator stops reading, so now and then the connection breaks before the reason has come.
        assert!(matches!(status_of(&error), None | Some(413)), "{route}: {error}");
    }
    // Nesting that would use up a stack.
    let deep = format!("/v1/news?after={}", "[".repeat(10_000));
    assert_eq!(status_of(&dialer.get_json::<News>(&deep).await.unwrap_err()), Some(400));
    // A head without end.
    let error = dialer.get_json::<News>(&format!("/v1/news?after={}", "1".repeat(200_000))).await.unwrap_err();
    assert!(matches!(status_of(&error), None | Some(414 | 431)), "{error}");
    target.round_opens(&dialer).await;
    // A blob longer than any chunk, under its own digest.
    let large = vec![7; (8 << 20) + 1];
    let path = format!("/v1/blobs/{}", Digest::of(&large));
    assert_eq!(status_of(&dialer.put_bytes(&path, large.into()).await.unwrap_err()), Some(413));
    // More questions than one may ask.
    let many = vec![Digest::of(b"x").to_string(); 65_537];
    let error = dialer.post_json::<_, Vec<Digest>>("/v1/blobs/missing", &many).await.unwrap_err();
    assert!(matches!(status_of(&error), Some(400 | 413)), "{error}");
    target.expect_unharmed().await;
}

#[tokio::test]
async fn documents_that_were_damaged_on_the_way_are_refused() {
    let target = Target::start("");
    let dialer = target.dialer("china");
    let charter: serde_json::Value = dialer.get_json("/v1/charter").await.unwrap();
    let mut state = 4_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let hostile = [
        serde_json::Value::Null,
        serde_json::json!(-1),
        serde_json::json!(1e308),
        serde_json::json!({"document": {}}),
        serde_json::json!([[[[[]]]]]),
        serde_json::json!("\u{0}\u{1b}[2J"),
    ];
    // A charter where another document belongs, with something in it replaced.
    for round in 0..200 {
        let route = ["contribution", "decline", "attendance", "activity"][round % 4];
        let mut value = charter.clone();
        let document = value["document"].as_object_mut().unwrap();
        let field = document.keys().nth(random(document.len())).unwrap().clone();
        document.insert(field, hostile[random(hostile.len())].clone());
        let error = dialer.post_json::<_, ()>(&format!("/v1/{route}"), &value).await.unwrap_err();
        assert!(matches!(status_of(&error), Some(400 | 422)), "{route}: {error}");
    }
    target.expect_unharmed().await;
}

#[tokio::test]
async fn who_does_not_speak_the_protocol_gets_no_answer() {
    let target = Target::start("");
    for hello in [&b"GET /v1/charter HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"SSH-2.0-x\r\n", &[0; 600]] {
        let mut stream = TcpStream::connect(&target.address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        let mut answer = vec![];
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the coordinator ends it");
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    }
    // Handshakes that stand still, as many as one network may have and more; a member gets in when they are cut off.
    let mut held = vec![];
    for _ in 0..100 {
        held.push(TcpStream::connect(&target.address).await.unwrap());
    }
    let cut_off = async {
        let mut first = held.remove(0);
        let _ = first.read(&mut [0; 8]).await;
    };
    tokio::time::timeout(Duration::from_secs(60), cut_off).await.expect("a handshake that stands still is cut off");
    target.expect_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_in_between_learns_nothing() {
    let target = Target::start("");
    let heard = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&heard);
    // It would answer anything, and lets everybody in; only the coordinator's secret key is not its own.
    let router = Router::new().fallback(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready("null")
    });
    let mallory = SecretKey::from_seed(&zeroize::Zeroizing::new([9; 32]));
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Server::bind(anywhere, &mallory, Arc::new(|_: &PublicKey| true), router).await.unwrap();
    let between = server.local_addr();
    let serving = tokio::spawn(server.serve(std::future::pending()));
    let (workshop, key) = (&target.workshop, target.key);
    tokio::task::block_in_place(|| {
        workshop.refused(&format!("tapestry node join https://{between}#{key} --home france-node"), "key");
    });
    assert_eq!(heard.load(Ordering::SeqCst), 0);
    serving.abort();
    target.expect_unharmed().await;
}

#[tokio::test]
async fn an_expired_charter_opens_nothing_and_says_so() {
    let mut target = Target::start("--valid-for 15s");
    let dialer = target.dialer("china");
    let signed: Signed<Charter> = dialer.get_json("/v1/charter").await.unwrap();
    let valid_until = signed.document.valid_until.as_ms();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    target.workshop.wait_for("the charter has expired", || now() > u128::from(valid_until));
    target.coordinator.kill();
    let (address, key) = (&target.address, target.key);
    target.coordinator =
        target.workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    let join = format!("tapestry node join https://{address}#{key} --home france-node");
    target.workshop.wait_for("the coordinator listens", || std::net::TcpStream::connect(address).is_ok());
    target.workshop.refused(&join, "Members must sign a new one");
    assert!(!target.coordinator.messages().contains("panicked"));
    target.workshop.shell("tapestry log verify --home coordinator");
}

/// A link on which a connection breaks when `num_bytes` have gone through; its address.
async fn breaking_link(to: String, num_bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (from, _) = listener.accept().await.unwrap();
            let to = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move {
                let (from_read, mut from_write) = from.into_split();
                let (mut to_read, mut to_write) = to.into_split();
                let back = tokio::spawn(async move { tokio::io::copy(&mut to_read, &mut from_write).await });
                let _ = tokio::io::copy(&mut from_read.take(num_bytes), &mut to_write).await;
                back.abort();
            });
        }
    });
    address
}

#[tokio::test]
async fn chunks_are_bounded_for_a_flood_and_not_for_a_bad_link() {
    let target = Target::start("");
    let china = target.dialer("china");
    target.round_opens(&china).await;
    let content = vec![7_u8; 1 << 20];
    let path = format!("/v1/blobs/{}", Digest::of(&content));
    // The base is one chunk, so 66 are the most. On this link no attempt succeeds; that is no fault of the member.
    let link = breaking_link(target.address.clone(), 200_000).await;
    let broken = target.dialer_at("china", &link);
    for _ in 0..70 {
        let error = broken.put_bytes(&path, content.clone().into()).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
    china.put_bytes(&path, content.into()).await.unwrap();
    // Garbage, each piece under its true name, until there is no more room for it.
    let mut refused = None;
    for n in 0..70_u8 {
        let content = vec![n; 100];
        let path = format!("/v1/blobs/{}", Digest::of(&content));
        if let Err(error) = china.put_bytes(&path, content.into()).await {
            refused.get_or_insert((n, error));
        }
    }
    let (num_taken, error) = refused.expect("a flood ends");
    assert_eq!((num_taken, status_of(&error)), (65, Some(403)), "{error}");
    assert!(error.to_string().contains("66 different chunks"), "{error}");
    target.expect_unharmed().await;
}
