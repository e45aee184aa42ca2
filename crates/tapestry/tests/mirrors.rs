//! Members that fetch bases from each other and from a mirror; and what neither gives away.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::fs;
use std::time::Duration;
use tapestry_core::{Digest, ModelManifest, SecretKey, WeightsManifest};
use tapestry_net::{Dialer, NetError};
use tapestry_store::{BlobStore, chunk_digests};

/// Adds to the table `[transfer]` of a node's settings, which is the last one.
fn set_transfer(workshop: &Workshop, home: &str, lines: &str) {
    let path = workshop.path(home).join("node.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("[transfer]\n", "");
    fs::write(&path, format!("{text}\n[transfer]\n{lines}\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_come_from_members_and_mirrors_which_give_away_nothing_else() {
    let workshop = Workshop::new();
    workshop.make_nodes(&["france", "china"]);
    let (coordinator_port, france_port, mirror_port) = (free_port(), free_port(), free_port());
    let key_of = |home: &str| fs::read_to_string(workshop.path(home).join("key.pub")).unwrap().trim().to_owned();
    for name in ["france", "china"] {
        workshop.shorten_training(&format!("{name}-node"));
    }
    workshop.shell(
        "tapestry charter draft --home coordinator --consortium Two --rounds 1 --member france=$(cat france.key) \
         --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 600 \
         --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
         for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
         tapestry charter publish charter.json --home coordinator",
    );
    let coordinator_toml = "[transfer]\nidle_timeout_seconds = 30\nmax_bytes_per_second = 500000000\n";
    fs::write(workshop.path("coordinator/coordinator.toml"), coordinator_toml).unwrap();
    let mut coordinator =
        workshop.start(&format!("tapestry coordinator run --home coordinator --listen 127.0.0.1:{coordinator_port}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    for name in ["france", "china"] {
        workshop.shell(&format!(
            "tapestry node join \"https://127.0.0.1:{coordinator_port}#{}\" --home {name}-node",
            key_of("coordinator")
        ));
    }
    set_transfer(&workshop, "france-node", &format!("serve_base = \"127.0.0.1:{france_port}\"\nnum_streams = 2"));
    let mirrors = [(france_port, "france-node"), (mirror_port, "coordinator")].map(|(port, home)| {
        format!("[[transfer.mirrors]]\naddress = \"127.0.0.1:{port}\"\nkey = \"{}\"", key_of(home))
    });
    set_transfer(&workshop, "china-node", &mirrors.join("\n"));

    let mirror = workshop.start(&format!("tapestry mirror --home coordinator --listen 127.0.0.1:{mirror_port}"));
    let mut france = workshop.start("tapestry node run --home france-node");
    workshop.wait_for("france serves", || france.messages().contains("published bases are served"));
    let mut china = workshop.start("tapestry node run --home china-node");
    china.wait_for_success(Duration::from_secs(120));
    france.wait_for_success(Duration::from_secs(120));
    workshop.wait_for("the mirror follows the log", || mirror.messages().matches("serving base").count() >= 2);

    // The newest base is there for china; what france contributed and its Sovereign Model are not, though they lie beside it.
    let serving = workshop.start(&format!("tapestry mirror --home france-node --listen 127.0.0.1:{france_port}"));
    workshop.wait_for("france's mirror serves", || serving.messages().contains("serving base"));
    let pem = fs::read_to_string(workshop.path("china-node/key.pem")).unwrap();
    let china_key = SecretKey::from_pem(&pem).unwrap();
    let dialer =
        Dialer::new(&format!("127.0.0.1:{france_port}"), key_of("france-node").parse().unwrap(), &china_key).unwrap();
    let blobs = BlobStore::read_folder(&workshop.path("france-node/blobs")).unwrap();
    let events: Vec<serde_json::Value> = workshop
        .shell("tapestry log show --home france-node --json")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let digest_at = |pointer: &str| -> Digest {
        let found = events.iter().rev().find_map(|entry| entry["event"].pointer(pointer));
        found.unwrap_or_else(|| panic!("no {pointer} in {events:#?}")).as_str().unwrap().parse().unwrap()
    };
    let base = digest_at("/outcome/document/base");
    let contributed = digest_at("/contributed/weights");
    let sovereign = digest_at("/model/digest");
    let base_chunks = chunk_digests(&blobs.get_json::<ModelManifest>(base).await.unwrap());
    let mut secret = vec![contributed, sovereign];
    secret.extend(blobs.get_json::<WeightsManifest>(contributed).await.unwrap().data.chunks);
    secret.extend(chunk_digests(&blobs.get_json::<ModelManifest>(sovereign).await.unwrap()));
    secret.retain(|digest| !base_chunks.contains(digest));
    assert!(secret.len() >= 4, "{secret:?}");
    for digest in base_chunks.iter().chain([&base]) {
        assert!(dialer.exists(&format!("/v1/blobs/{digest}")).await.unwrap());
    }
    for digest in &secret {
        assert!(blobs.has(*digest).await.unwrap());
        let error = dialer.get_bytes(&format!("/v1/blobs/{digest}"), 9 << 20).await.unwrap_err();
        assert!(matches!(error, NetError::Refused { status: 403, .. }), "{error:?}");
    }
    coordinator.stop();
}
