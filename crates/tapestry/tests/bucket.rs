//! A coordinator whose log and blobs are in a bucket of a real S3-compatible server: killed, replaced by a standby, verified.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use std::time::Duration;
use tapestry_bucket::{ACCESS_KEY, BucketServer, SECRET_KEY};

const MEMBERS: [&str; 2] = ["france", "china"];

struct Consortium {
    workshop: Workshop,
    addresses: [String; 2],
    _server: BucketServer,
}

impl Consortium {
    fn ready() -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&MEMBERS);
        for name in MEMBERS {
            workshop.shorten_training(&format!("{name}-node"));
        }
        workshop.gate_training("china");
        std::fs::create_dir_all(workshop.path("server/consortium")).unwrap();
        let server = BucketServer::start(&workshop.path("server")).unwrap();
        workshop.shell("tapestry coordinator init --home standby > standby.key; mkdir coordinator");
        let settings = format!(
            "[store]\nurl = \"s3://consortium/first\"\nendpoint = \"{}\"\nmax_copies_bytes = 1000000\n\
             [transfer]\nidle_timeout_seconds = 5\n",
            server.endpoint()
        );
        for home in ["coordinator", "standby"] {
            std::fs::write(workshop.path(home).join("coordinator.toml"), &settings).unwrap();
        }
        let consortium =
            Self { workshop, addresses: [(); 2].map(|()| format!("127.0.0.1:{}", free_port())), _server: server };
        consortium.shell(
            "tapestry charter draft --home coordinator --consortium Two --rounds 2 --window 1h --standby $(cat standby.key) \
             --member france=$(cat france.key) --member china=$(cat china.key) --base base --open-text open.txt \
             --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
             for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator",
        );
        consortium
    }

    /// Runs a script that may use the bucket.
    fn shell(&self, script: &str) -> String {
        let key = format!("export AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}\n");
        self.workshop.shell(&(key + script))
    }

    fn start(&self, home: &str, address: usize, options: &str) -> Process {
        let command = format!("tapestry coordinator run --home {home} --listen {} {options}", self.addresses[address]);
        let credentials = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        self.workshop.start_with(&command, &credentials)
    }

    fn wait_for_log(&self, text: &str) {
        self.workshop.wait_for(text, || self.shell("tapestry log show --home coordinator").contains(text));
    }
}

#[test]
fn rounds_go_on_in_a_bucket_whoever_dies() {
    let consortium = Consortium::ready();
    let workshop = &consortium.workshop;
    workshop.refused("tapestry log show --home coordinator", "AWS_ACCESS_KEY_ID is not in the environment");
    let mut coordinator = consortium.start("coordinator", 0, "");
    workshop.wait_for("it listens", || workshop.path("coordinator/address").exists());
    let urls = [("coordinator/key.pub", 0), ("standby.key", 1)]
        .map(|(key, address)| format!("\"https://{}#$(cat {key})\"", consortium.addresses[address]));
    let mut nodes: Vec<_> = MEMBERS
        .iter()
        .map(|name| {
            consortium.shell(&format!("tapestry node join {} --standby {} --home {name}-node", urls[0], urls[1]));
            workshop.start(&format!("tapestry node run --home {name}-node"))
        })
        .collect();
    consortium.wait_for_log("round 1: contribution of france has arrived");
    coordinator.kill();
    // Everything that is not in the bucket is lost.
    std::fs::remove_dir_all(workshop.path("coordinator/copies")).unwrap();
    let mut coordinator = consortium.start("coordinator", 0, "");
    workshop.open_gate("china", "round-1");
    consortium.wait_for_log("round 1: Shared Base");
    // The machine is gone for good, and a standby that never saw a byte goes on.
    coordinator.kill();
    let mut standby = consortium.start("standby", 1, "--standby");
    for work in ["round-2", "sovereign"] {
        workshop.open_gate("china", work);
    }
    for node in &mut nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    standby.stop();
    for round in 1..=2 {
        let verified = consortium.shell(&format!("tapestry verify round {round} --home standby"));
        assert!(verified.contains(&format!("Round {round} holds")), "{verified}");
    }
    let log = consortium.shell("tapestry log verify --home coordinator; tapestry log show --home coordinator");
    assert!(log.contains("(tenure 2)") && !log.contains("refused"), "{log}");
    for name in MEMBERS {
        let log = workshop.shell(&format!("tapestry log show --home {name}-node"));
        assert_eq!(log.matches(": weights sent").count(), 2, "{name} sends once a round:\n{log}");
    }
    assert!(!workshop.path("coordinator/blobs").exists() && !workshop.path("coordinator/log").exists());
    for process in [&coordinator, &standby] {
        assert!(!process.messages().contains(SECRET_KEY), "{}", process.messages());
    }
}
