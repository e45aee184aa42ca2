//! Bad input, given to the program as a user or an attacker would: each gives a clear error, and changes nothing.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::fs;
use std::net::TcpListener;
use tapestry_core::{Digest, MemberName, PublicKey, SecretKey, Signed};
use tapestry_governance::CharterHistory;
use tapestry_net::{Dialer, NetError};
use tapestry_round::{Contribution, News, TrainingMetrics};

const MEMBERS: [&str; 3] = ["france", "china", "iran"];

/// Two nodes in a charter, a third outside it, and the charter drafted but not signed.
fn drafted(extra: &str) -> Workshop {
    let workshop = Workshop::new();
    workshop.make_nodes(&MEMBERS);
    workshop.shell(&format!(
        "tapestry charter draft --home coordinator --consortium Two --member france=$(cat france.key) \
         --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 300 {extra}"
    ));
    workshop
}

fn sign(workshop: &Workshop) {
    workshop.shell(
        "tapestry charter sign charter.json --home france-node --yes; tapestry charter sign charter.json --home china-node --yes",
    );
}

#[test]
fn texts_that_cannot_be_trained_on() {
    let workshop = Workshop::new();
    fs::write(workshop.path("good.txt"), "some text").unwrap();
    fs::write(workshop.path("empty.txt"), " \n").unwrap();
    fs::write(workshop.path("latin1.txt"), b"libert\xe9, \xe9galit\xe9").unwrap();
    let init = |contributed: &str, private: &str, held_out: &str| {
        format!("tapestry node init --home node --contributed {contributed} --private {private} --held-out {held_out}")
    };
    workshop.refused(&init("empty.txt", "good.txt", "good.txt"), "empty.txt is empty");
    workshop.refused(&init("latin1.txt", "good.txt", "good.txt"), "first wrong byte is at offset 6");
    workshop.refused(&init("none.txt", "good.txt", "good.txt"), "cannot open none.txt");
    workshop.refused(&init("good.txt", "good.txt", "good.txt"), "is held out, so it must not be trained on");
    assert!(!workshop.path("node/key.pem").exists(), "a refused node has no key");
}

#[test]
fn bases_that_are_not_models() {
    let workshop = Workshop::new();
    workshop.write_inputs(&["france"]);
    let weights = workshop.path("base/model.safetensors");
    let good = fs::read(&weights).unwrap();
    let key = SecretKey::from_seed(&zeroize::Zeroizing::new([7; 32])).public();
    let draft = format!(
        "tapestry charter draft --home coordinator --consortium One --min-contributions 1 --influence-cap 1 \
         --member france={key} --base base --open-text open.txt"
    );
    let check = |content: &[u8], expected: &str| {
        fs::write(&weights, content).unwrap();
        workshop.refused(&draft, expected);
        assert!(!workshop.path("charter.json").exists());
    };
    check(&good[..good.len() - 100], "model.safetensors");
    check(&[&good[..], &[0; 8]].concat(), "model.safetensors");
    let rename = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        bad
    };
    check(&rename("model.norm.weight", "model.norn.weight"), "model.nor");
    let mut nan = good.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    check(&nan, "NaN");
    fs::write(&weights, &good).unwrap();
    fs::write(workshop.path("base/config.json"), r#"{"model_type":"llama","hidden_size":7}"#).unwrap();
    workshop.refused(&draft, "config.json");
}

#[test]
fn charters_that_do_not_bind() {
    let workshop = drafted("--valid-for 6s");
    workshop.refused("tapestry charter publish charter.json --home coordinator", "has 0 valid signatures");
    workshop.refused("tapestry charter sign charter.json --home iran-node --yes", "not a member");
    workshop.shell("tapestry charter sign charter.json --home france-node --yes");
    workshop.refused("tapestry charter publish charter.json --home coordinator", "2 are needed");
    workshop.shell("cp charter.json mine.json; tapestry charter sign charter.json --home china-node --yes");
    // One member changes the terms after both have signed.
    let text = fs::read_to_string(workshop.path("charter.json")).unwrap();
    let bent = text.replace(r#""influence_cap":0.5"#, r#""influence_cap":0.9"#);
    assert_ne!(text, bent);
    fs::write(workshop.path("bent.json"), bent).unwrap();
    workshop.refused("tapestry charter publish bent.json --home coordinator", "changed or forged");
    workshop.refused("tapestry charter publish charter.json bent.json --home coordinator", "not the same charter");
    fs::write(workshop.path("cut.json"), &text[..text.len() / 2]).unwrap();
    workshop.refused("tapestry charter publish cut.json --home coordinator", "is not a charter");
    // Another coordinator's home cannot take it.
    workshop.shell("cp -r coordinator other; rm other/key.*; cp france-node/key.* other/");
    workshop.refused("tapestry charter publish charter.json --home other", "names coordinator");
    std::thread::sleep(std::time::Duration::from_secs(6));
    workshop.refused("tapestry charter publish charter.json --home coordinator", "Members must sign a new one");
    workshop.refused("tapestry coordinator run --home coordinator --listen 127.0.0.1:0", "no charter is in force");
    workshop.refused("tapestry node run --home france-node", "has not joined a consortium");
}

#[test]
fn connections_and_homes() {
    let workshop = drafted("");
    sign(&workshop);
    workshop.shell("tapestry charter publish charter.json --home coordinator");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let run = format!("tapestry coordinator run --home coordinator --listen {address}");
    workshop.refused(&run, &address.to_string());
    let address = format!("127.0.0.1:{}", free_port());
    let mut coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    let key = fs::read_to_string(workshop.path("coordinator/key.pub")).unwrap().trim().to_owned();
    let other = fs::read_to_string(workshop.path("iran.key")).unwrap().trim().to_owned();
    workshop.refused(&run, "another tapestry process uses");
    workshop.refused(&format!("tapestry node join https://{address}#{other} --home france-node"), "key");
    workshop.refused(
        &format!("tapestry node join https://{address}#{key} --home iran-node"),
        "no charter to this node's key",
    );
    workshop.refused(&format!("tapestry node join https://{address} --home france-node"), "without the key");
    workshop.shell("chmod 644 france-node/key.pem");
    workshop
        .refused(&format!("tapestry node join https://{address}#{key} --home france-node"), "may be read by others");
    workshop.shell("chmod 600 france-node/key.pem");
    workshop.shell(&format!("tapestry node join https://{address}#{key} --home france-node"));
    coordinator.stop();
    // A log whose history was changed.
    let first = fs::read_dir(workshop.path("coordinator/log")).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    workshop.shell("tapestry log verify --home coordinator");
    let text = fs::read_to_string(&first).unwrap();
    workshop.shell(&format!("chmod u+w {}", first.display()));
    fs::write(&first, text.replacen("Two", "Too", 1)).unwrap();
    workshop.refused("tapestry log verify --home coordinator", "log entry 1");
}

/// A member's key in the hands of somebody who breaks every rule.
struct Malice {
    key: SecretKey,
    dialer: Dialer,
}

impl Malice {
    fn of(workshop: &Workshop, member: &str, address: &str, coordinator: PublicKey) -> Self {
        let pem = fs::read_to_string(workshop.path(&format!("{member}-node/key.pem"))).unwrap();
        let key = SecretKey::from_pem(&pem).unwrap();
        let dialer = Dialer::new(address, coordinator, &key).unwrap();
        Self { key, dialer }
    }

    async fn refused(&self, contribution: Signed<Contribution>, expected: &str) {
        let error: NetError = self.dialer.post_json::<_, ()>("/v1/contribution", &contribution).await.unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(expected), "{error}; expected {expected:?}");
    }
}

#[tokio::test]
async fn members_who_break_the_rules() {
    let workshop = drafted("--witnesses 0");
    sign(&workshop);
    workshop.shell("tapestry charter publish charter.json --home coordinator");
    let address = format!("127.0.0.1:{}", free_port());
    let mut coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    let coordinator_key: PublicKey =
        fs::read_to_string(workshop.path("coordinator/key.pub")).unwrap().trim().parse().unwrap();
    let mallory = Malice::of(&workshop, "china", &address, coordinator_key);
    let history: CharterHistory = mallory.dialer.get_json("/v1/governance").await.unwrap();
    let signed = history.founding;
    // The base is measured first; then the round is open.
    let mut news: News = mallory.dialer.get_json("/v1/news?after=0&wait_ms=1000").await.unwrap();
    while news.announcement.is_none() {
        let path = format!("/v1/news?after={}&wait_ms=30000", news.version);
        news = mallory.dialer.get_json(&path).await.unwrap();
    }
    let announcement = news.announcement.unwrap().document;
    let manifest = br#"{"this is":"no manifest"}"#;
    let weights = Digest::of(manifest);
    let metrics = TrainingMetrics {
        num_tokens: 1,
        num_steps: 1,
        first_loss: 1.0,
        last_loss: 1.0,
        wall_seconds: 1.0,
        cpu_seconds: 1.0,
    };
    let honest = Contribution {
        charter: signed.digest().unwrap(),
        round: announcement.round,
        base: announcement.base,
        member: "china".parse::<MemberName>().unwrap(),
        weights,
        metrics,
    };
    let by = |contribution: &Contribution, key: &SecretKey| Signed::by(contribution.clone(), key).unwrap();
    mallory.refused(by(&honest, &mallory.key), "send it first").await;
    mallory.dialer.put_bytes(&format!("/v1/blobs/{weights}"), manifest.to_vec().into()).await.unwrap();
    let stranger = SecretKey::from_seed(&zeroize::Zeroizing::new([9; 32]));
    mallory.refused(by(&honest, &stranger), "no signature").await;
    let for_other = Contribution { member: "france".parse().unwrap(), ..honest.clone() };
    mallory.refused(by(&for_other, &mallory.key), "may not speak for france").await;
    let wrong_base = Contribution { base: weights, ..honest.clone() };
    mallory.refused(by(&wrong_base, &mallory.key), "starts from base").await;
    let replayed = Contribution { round: announcement.round + 1, ..honest.clone() };
    mallory.refused(by(&replayed, &mallory.key), "replayed or late").await;
    let other_charter = Contribution { charter: weights, ..honest.clone() };
    mallory.refused(by(&other_charter, &mallory.key), "is in force").await;
    let mut forged = by(&honest, &mallory.key);
    forged.document.metrics.num_tokens = 1_000_000;
    mallory.refused(forged, "changed or forged").await;
    // Content that is not what its name says.
    let lie = mallory.dialer.put_bytes(&format!("/v1/blobs/{weights}"), b"other".to_vec().into()).await;
    assert!(lie.is_err());
    // A well-signed contribution of garbage is received, screened, and refused with its reason in the log.
    mallory.dialer.post_json::<_, ()>("/v1/contribution", &by(&honest, &mallory.key)).await.unwrap();
    workshop.wait_for("the garbage is refused", || {
        workshop.shell("tapestry log show --home coordinator").contains("china REFUSED")
    });
    mallory.refused(by(&Contribution { weights: announcement.base, ..honest }, &mallory.key), "already answered").await;
    let log = workshop.shell("tapestry log show --home coordinator");
    assert!(log.contains("may not speak for france") && log.contains("replayed or late"), "{log}");
    coordinator.stop();
    workshop.shell("tapestry log verify --home coordinator");
}
