//! Processes that are killed at any moment and started again with the same command: nothing is lost, nobody trains twice
//! for a round, and the result is the same to the bit.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use std::time::{Duration, Instant};

const MEMBERS: [&str; 2] = ["france", "china"];

struct Consortium {
    workshop: Workshop,
    address: String,
}

impl Consortium {
    /// Two members in two rounds, joined and ready to run.
    fn ready() -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&MEMBERS);
        for name in MEMBERS {
            workshop.shorten_training(&format!("{name}-node"));
        }
        workshop.shell(
            "tapestry charter draft --home coordinator --consortium Two --rounds 2 --member france=$(cat france.key) \
             --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 600 \
             --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
             for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator",
        );
        let address = format!("127.0.0.1:{}", free_port());
        Self { workshop, address }
    }

    fn start_coordinator(&self) -> Process {
        let _ = std::fs::remove_file(self.workshop.path("coordinator/address"));
        let process =
            self.workshop.start(&format!("tapestry coordinator run --home coordinator --listen {}", self.address));
        self.workshop.wait_for("the coordinator listens", || self.workshop.path("coordinator/address").exists());
        process
    }

    fn join(&self) {
        for name in MEMBERS {
            self.workshop.shell(&format!(
                "tapestry node join \"https://{}#$(cat coordinator/key.pub)\" --home {name}-node",
                self.address
            ));
        }
    }

    fn start_node(&self, name: &str) -> Process {
        self.workshop.start(&format!("tapestry node run --home {name}-node"))
    }

    fn log(&self, home: &str) -> String {
        self.workshop.shell(&format!("tapestry log show --home {home}"))
    }

    /// The digests of Shared Base and Sovereign Models.
    fn models(&self) -> String {
        self.workshop.shell("for home in coordinator france-node china-node; do tapestry model list --home $home; done")
    }
}

#[test]
fn killed_at_every_turn() {
    let consortium = Consortium::ready();
    let mut coordinator = consortium.start_coordinator();
    consortium.join();
    let mut nodes: Vec<_> = MEMBERS.iter().map(|name| consortium.start_node(name)).collect();
    let patience = Duration::from_secs(200);
    // Each in its turn dies as soon as its log has grown, until the loop is over.
    let (mut num_kills, mut seen) = (0, [0; 3]);
    let homes = ["coordinator", "france-node", "china-node"];
    let start = Instant::now();
    while num_kills < 12 {
        if start.elapsed() > patience {
            let logs = homes.map(|home| consortium.log(home));
            panic!("nothing moves any more:\n{}", logs.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(120));
        let victim = num_kills % 3;
        let entries = std::fs::read_dir(consortium.workshop.path(homes[victim]).join("log")).unwrap().count();
        if entries <= seen[victim] {
            if nodes.iter_mut().all(Process::has_ended) {
                break;
            }
            if victim > 0 && nodes[victim - 1].has_ended() {
                num_kills += 1;
            }
            continue;
        }
        seen[victim] = entries;
        num_kills += 1;
        if victim == 0 {
            coordinator.kill();
            coordinator = consortium.start_coordinator();
        } else {
            nodes[victim - 1].kill();
            nodes[victim - 1] = consortium.start_node(MEMBERS[victim - 1]);
        }
    }
    assert!(num_kills >= 6, "only {num_kills} processes were killed");
    for node in &mut nodes {
        node.wait_for_success(patience);
    }
    for name in MEMBERS {
        let log = consortium.log(&format!("{name}-node"));
        for round in 1..=2 {
            let trained = log.matches(&format!("round {round}: trained")).count();
            assert_eq!(trained, 1, "{name} trains once in round {round}:\n{log}");
        }
    }
    let log = consortium.log("coordinator");
    assert_eq!(log.matches(" published ").count(), 2, "{log}");
    assert!(!log.contains("refused"), "{log}");
    consortium
        .workshop
        .shell("for home in coordinator france-node china-node; do tapestry log verify --home $home; done");
    assert_eq!(consortium.models().matches("shared-base").count(), 3);
    coordinator.stop();
}
