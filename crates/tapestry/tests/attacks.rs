//! Attacks on the running coordinator, over real sockets. Each must fail, and the coordinator must go on serving its members.
//! `attacks/README.md` says where each is stopped.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "../../tapestry-net/tests/transport/raw.rs"]
mod raw;

use axum::Router;
use common::{Process, Workshop, free_port};
use raw::{Shown, raw_tls, raw_tls_by, tls12_hello};
use serde_json::Value;
use std::collections::BTreeSet;
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
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A coordinator of two members at work, and what an attacker knows: its address and its public key.
struct Target {
    workshop: Workshop,
    coordinator: Process,
    address: String,
    key: PublicKey,
}

impl Target {
    fn start(extra: &str) -> Self {
        Self::start_with(extra, "", "")
    }

    /// The same with settings in `coordinator.toml`, and more for the command. Its messages are JSON.
    fn start_with(extra: &str, settings: &str, arguments: &str) -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&["france", "china"]);
        workshop.shell(&format!(
            "tapestry charter draft --home coordinator --consortium Two --witnesses 0 --member france=$(cat france.key) \
             --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 300 {extra}
             tapestry charter sign charter.json --home france-node --yes
             tapestry charter sign charter.json --home china-node --yes
             tapestry charter publish charter.json --home coordinator"
        ));
        fs::write(workshop.path("coordinator/coordinator.toml"), settings).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let run = format!("tapestry coordinator run --home coordinator --listen {address} {arguments}");
        let coordinator = workshop.start_with(&run, &[("TAPESTRY_LOG_FORMAT", "json")]);
        workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
        let key = fs::read_to_string(workshop.path("coordinator/key.pub")).unwrap().trim().parse().unwrap();
        Self { workshop, coordinator, address, key }
    }

    fn dialer(&self, member: &str) -> Dialer {
        self.dialer_at(member, &self.address)
    }

    fn dialer_at(&self, member: &str, address: &str) -> Dialer {
        Dialer::new(address, self.key, &self.key_of(member)).unwrap()
    }

    fn key_of(&self, member: &str) -> SecretKey {
        let pem = fs::read_to_string(self.workshop.path(&format!("{member}-node/key.pem"))).unwrap();
        SecretKey::from_pem(&pem).unwrap()
    }

    /// The lines of the log about one that was refused: the rule, from where, and the words.
    fn refused(&self) -> Vec<[String; 3]> {
        let messages = self.coordinator.messages();
        let lines = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let word = |line: &Value, name: &str| line[name].as_str().map(str::to_owned);
        lines
            .filter(|line| line["level"] == "WARN")
            .filter_map(|line| Some([word(&line, "rule")?, word(&line, "from")?, word(&line, "message")?]))
            .collect()
    }

    /// Waits for the line that says why.
    fn expect_line(&self, rule: &str, expected: &str) {
        let is_said = || self.refused().iter().any(|[name, _, said]| name == rule && said.contains(expected));
        self.workshop.wait_for(&format!("the log says {rule}: {expected}"), is_said);
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
    target.expect_line("request", "GET /v1/blobs/../key.pem was answered with 404");
    target.expect_unharmed().await;
}

#[tokio::test]
async fn too_much_is_refused() {
    let target = Target::start("");
    let dialer = target.dialer("china");
    // Two megabytes where one is the most.
    for route in ["contribution", "decline", "attendance", "activity"] {
        let error = dialer.post_json::<_, ()>(&format!("/v1/{route}"), &"x".repeat(2 << 20)).await.unwrap_err();
        assert_eq!(status_of(&error), Some(413), "{route}: {error}");
    }
    target.expect_line("body_size", "POST /v1/contribution was answered with 413");
    // Nesting that would use up a stack.
    let deep = format!("/v1/news?after={}", "[".repeat(10_000));
    assert_eq!(status_of(&dialer.get_json::<News>(&deep).await.unwrap_err()), Some(400));
    // A head without end.
    let mut stream = raw_tls(target.address.parse().unwrap(), Shown::own(target.key_of("china"))).await.unwrap();
    let _ = stream.write_all(format!("GET /v1/news?after={} HTTP/1.1\r\n\r\n", "1".repeat(200_000)).as_bytes()).await;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    target.expect_line("head_size", "");
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
    let charter: Value = dialer.get_json("/v1/charter").await.unwrap();
    let mut state = 4_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let hostile = [
        Value::Null,
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
    // Two hundred cases of one rule are one line in the minute.
    target.expect_line("request", "POST /v1/contribution was answered with 4");
    assert_eq!(target.refused().len(), 1, "{:?}", target.refused());
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
    target.expect_line("permission", "66 different chunks");
    target.expect_unharmed().await;
}

/// Connections without end from another network, each of which stands still in its handshake.
async fn flood(address: SocketAddr) {
    let mut held = tokio::task::JoinSet::new();
    loop {
        while held.len() < 100 {
            held.spawn(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                if let Ok(mut stream) = socket.connect(address).await {
                    let _ = stream.read(&mut [0; 8]).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            });
        }
        held.join_next().await;
    }
}

/// Sends `head` on a connection of a member, and then a little now and then, until the coordinator ends it.
async fn trickle(address: SocketAddr, key: SecretKey, head: &str, little: &str) -> String {
    let stream = raw_tls(address, Shown::own(key)).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    writing.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![];
    let sending = async {
        while writing.write_all(little.as_bytes()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = reading.read_to_end(&mut answer) => {}
        () = sending => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attack_on_the_wire_is_in_the_log_and_a_round_is_done_beside_them() {
    let metrics = format!("127.0.0.1:{}", free_port());
    let bounds = "--rounds 1 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10";
    let target = Target::start_with(bounds, "[transfer]\nidle_timeout_seconds = 5\n", &format!("--metrics {metrics}"));
    let (workshop, address) = (&target.workshop, target.address.parse().unwrap());
    let url = format!("https://{address}#{}", target.key);
    for member in ["france", "china"] {
        workshop.shorten_training(&format!("{member}-node"));
        workshop.shell(&format!("tapestry node join '{url}' --home {member}-node"));
    }
    let china = || target.key_of("china");
    let stranger = || SecretKey::from_seed(&zeroize::Zeroizing::new([9; 32]));

    let flooding = tokio::spawn(flood(address));
    tokio::task::block_in_place(|| target.expect_line("handshakes_of_network", "one handshake more"));
    let nodes = ["france", "china"].map(|member| workshop.start(&format!("tapestry node run --home {member}-node")));

    // What comes before a key was proved.
    for hello in [&b"GET /v1/charter HTTP/1.1\r\nhost: x\r\n\r\n"[..], &tls12_hello()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream.read_to_end(&mut vec![]).await.unwrap();
    }
    // A member's own key, without the hybrid key exchange: an older version, or somebody in between who struck it out.
    let older = rustls::crypto::ring::default_provider();
    let error = raw_tls_by(address, Shown::own(china()), older).await.unwrap_err();
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
    let shown = [Shown(None), Shown(Some((china().public(), stranger()))), Shown::own(stranger())];
    for shown in shown {
        let mut answer = vec![];
        if let Ok(mut stream) = raw_tls(address, shown).await {
            let _ = stream.write_all(b"GET /v1/charter HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let _ = stream.read_to_end(&mut answer).await;
        }
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    // What a member can do that is broken, or was broken into.
    let post = |length: usize| {
        format!(
            "POST /v1/activity HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let (head, body, large) = ("GET /v1/charter HTTP/1.1\r\nhost: x\r\n", post(1000), post(2 << 20));
    let (pieces, long) = (" ".repeat(1 << 19), format!("x: {}\r\n", "y".repeat(100_000)));
    let (of_head, of_body, of_large, huge) = tokio::join!(
        trickle(address, china(), head, "x: y\r\n"),
        trickle(address, china(), &body, " "),
        trickle(address, china(), &large, &pieces),
        trickle(address, china(), head, &long),
    );
    assert!(!of_head.contains("200 OK") && !of_body.contains("200 OK"), "{of_head}{of_body}");
    assert!(of_large.starts_with("HTTP/1.1 413"), "{of_large}");
    assert!(huge.is_empty() || huge.starts_with("HTTP/1.1 431"), "{huge}");
    // More connections than one key may have.
    let mut held = vec![];
    for _ in 0..40 {
        let mut stream = raw_tls(address, Shown::own(china())).await.unwrap();
        let _ = stream.write_all(b"GET /v1/news?after=1000000&wait_ms=30000 HTTP/1.1\r\nhost: x\r\n\r\n").await;
        held.push(stream);
    }
    tokio::task::block_in_place(|| target.expect_line("connections", "this key has too many connections"));
    drop(held);

    tokio::task::block_in_place(|| {
        for mut node in nodes {
            node.wait_for_success(Duration::from_secs(240));
        }
    });
    let expected = [
        ("tls", "only TLS 1.3"),
        ("tls_version", "no older TLS"),
        ("key_exchange", "X25519MLKEM768"),
        ("key_shown", "shows a key"),
        ("key_proved", "proves that it is its own"),
        ("key_listed", "of the charter in force"),
        ("handshake_time", "the handshake did not end in time"),
        ("handshakes_of_network", "one handshake more"),
        ("connections", "too many connections"),
        ("head_time", "in time"),
        ("head_size", "bounded length"),
        ("body_pace", "POST /v1/activity was answered with"),
        ("body_size", "POST /v1/activity was answered with 413"),
    ];
    for (rule, said) in expected {
        tokio::task::block_in_place(|| target.expect_line(rule, said));
    }
    assert!(!flooding.is_finished());
    flooding.abort();
    let lines = target.refused();
    let rules: BTreeSet<_> = lines.iter().map(|[rule, ..]| rule.as_str()).collect();
    assert_eq!(rules, expected.iter().map(|(rule, _)| *rule).collect(), "and nothing honest was refused");
    assert!(lines.iter().all(|[_, from, _]| from.parse::<SocketAddr>().is_ok()), "{lines:?}");
    assert!(lines.len() < 100, "a flood fills no disk: {} lines", lines.len());

    let mut stream = TcpStream::connect(&metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut shown = String::new();
    stream.read_to_string(&mut shown).await.unwrap();
    for (rule, _) in expected {
        let sample = format!("tapestry_refused_total{{rule=\"{rule}\"}} ");
        let value = shown.lines().find_map(|line| line.strip_prefix(&sample)).unwrap_or_else(|| panic!("{sample}"));
        assert!(value.parse::<u64>().unwrap() > 0, "{rule}");
    }
    let workshop = &target.workshop;
    let told = workshop.shell("tapestry log show --home coordinator");
    assert!(told.contains("published"), "{told}");
    for home in ["coordinator", "china-node"] {
        let pem = fs::read_to_string(workshop.path(home).join("key.pem")).unwrap();
        assert!(!target.coordinator.messages().contains(pem.lines().nth(1).unwrap()), "{home}");
    }
    target.expect_unharmed().await;
}
