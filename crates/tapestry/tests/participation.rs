//! Members that are late, keep their weights, leave and come back, in real rounds.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use std::time::Duration;

const MEMBERS: [&str; 3] = ["france", "china", "iran"];

struct Consortium {
    workshop: Workshop,
    coordinator: Process,
}

impl Consortium {
    /// Three members that have joined; `gated` ones train for round N only when [`Self::open_gate`] lets them.
    fn ready(terms: &str, gated: &[&str]) -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&MEMBERS);
        for name in MEMBERS {
            let home = format!("{name}-node");
            workshop.shorten_training(&home);
            if gated.contains(&name) {
                workshop.gate_training(name);
            }
        }
        workshop.shell(&format!(
            "tapestry charter draft --home coordinator --consortium Three {terms} --member france=$(cat france.key) \
             --member china=$(cat china.key) --member iran=$(cat iran.key) --base base --open-text open.txt \
             --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
             for name in france china iran; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator"
        ));
        let address = format!("127.0.0.1:{}", free_port());
        let coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
        workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
        workshop.shell(&format!(
            "for name in france china iran; do
                 tapestry node join \"https://{address}#$(cat coordinator/key.pub)\" --home $name-node
             done"
        ));
        Self { workshop, coordinator }
    }

    fn open_gate(&self, name: &str, work: &str) {
        self.workshop.open_gate(name, work);
    }

    fn start_node(&self, name: &str) -> Process {
        self.workshop.start(&format!("tapestry node run --home {name}-node"))
    }

    fn log(&self, home: &str) -> String {
        self.workshop.shell(&format!("tapestry log show --home {home}"))
    }

    fn wait_for_log(&self, text: &str) {
        self.workshop.wait_for(text, || self.log("coordinator").contains(text));
    }

    /// Stops all, and holds every published round and every log to account.
    fn end(mut self, num_rounds: u32) {
        self.coordinator.stop();
        for round in 1..=num_rounds {
            let verified = self.workshop.shell(&format!("tapestry verify round {round} --home coordinator"));
            assert!(verified.contains(&format!("Round {round} holds")), "{verified}");
        }
        self.workshop.shell("for name in france china iran; do tapestry log verify --home $name-node; done");
    }
}

#[test]
fn a_late_contribution_counts_in_the_next_round_and_nobody_trains_twice() {
    let consortium = Consortium::ready("--rounds 2 --window 25s --late-rounds 1", &["france", "iran"]);
    let show = consortium.workshop.shell("tapestry charter show charter.json");
    assert!(show.contains("counts in a later one, up to 1 later"), "{show}");
    consortium.open_gate("france", "round-1");
    let mut nodes: Vec<_> = MEMBERS.iter().map(|name| consortium.start_node(name)).collect();
    consortium.wait_for_log("iran is MISSING: no answer by");
    consortium.wait_for_log("round 1: Shared Base");
    // Iran is done with round 1 while round 2 collects; killed in between, it knows what it was doing.
    nodes[2].kill();
    nodes[2] = consortium.start_node("iran");
    consortium.open_gate("iran", "round-1");
    consortium.wait_for_log("iran is LATE: counts in round 2, 1 later (charter: rounds.late_rounds 1)");
    consortium.wait_for_log("round 2: iran accepted");
    for work in ["round-2", "sovereign"] {
        consortium.open_gate("france", work);
    }
    consortium.wait_for_log("round 2: Shared Base");
    for work in ["round-2", "sovereign"] {
        consortium.open_gate("iran", work);
    }
    for node in &mut nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    let log = consortium.log("coordinator");
    assert!(log.contains("1 rounds late"), "{log}");
    let trained = consortium.log("iran-node");
    assert_eq!(trained.matches("round 1: trained").count(), 1, "{trained}");
    let table = consortium.workshop.shell("tapestry merge explain --home coordinator");
    assert!(table.contains("iran"), "{table}");
    consortium.end(2);
}

#[test]
fn a_member_leaves_comes_back_keeps_a_rounds_weights_and_contributes_again() {
    let consortium = Consortium::ready("--rounds 3 --window 1h", &["france", "iran"]);
    let said = consortium.workshop.shell("tapestry node participate away --reason harvest --home iran-node");
    assert!(said.contains("away"), "{said}");
    let told = std::thread::scope(|scope| {
        // Ends by itself when the rounds are over.
        let watching = scope.spawn(|| consortium.workshop.shell("tapestry status --watch --home china-node"));
        leaves_and_comes_back(&consortium);
        watching.join().unwrap()
    });
    for line in [
        "Round 1 iran away: harvest",
        "Round 2 iran declined: the weights of this round stay private: elections",
        "Round 3 iran accepted",
        "Round 3      published",
        "iran train round 2",
    ] {
        assert!(told.contains(line), "no {line:?} in:\n{told}");
    }
    consortium.end(3);
}

fn leaves_and_comes_back(consortium: &Consortium) {
    let mut nodes: Vec<_> = MEMBERS.iter().map(|name| consortium.start_node(name)).collect();
    consortium.wait_for_log("iran leaves for a while: harvest");
    consortium.open_gate("france", "round-1");
    // The window is an hour; nobody waits for whoever is away.
    consortium.wait_for_log("round 1: Shared Base");
    consortium.workshop.shell("tapestry node participate private --reason elections --home iran-node");
    consortium.wait_for_log("iran is back");
    consortium.open_gate("france", "round-2");
    let is_training = |status: String| {
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["members"]["iran"]["activity"]["detail"] == "round 2"
    };
    let status = "tapestry status --json --home france-node";
    consortium.workshop.wait_for("iran says what it does", || is_training(consortium.workshop.shell(status)));
    // Whoever watches looks once a second.
    std::thread::sleep(Duration::from_secs(3));
    consortium.open_gate("iran", "round-2");
    consortium.wait_for_log("round 2: iran declines: the weights of this round stay private: elections");
    consortium.wait_for_log("round 2: Shared Base");
    consortium.workshop.shell("tapestry node participate contribute --home iran-node");
    // Iran is training for round 3 now; what it says meanwhile holds for that.
    for name in ["france", "iran"] {
        consortium.open_gate(name, "round-3");
        consortium.open_gate(name, "sovereign");
    }
    for node in &mut nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    let log = consortium.log("coordinator");
    assert!(
        log.contains("round 3: iran accepted") && !log.contains("refused") && !log.contains("back: elections"),
        "{log}"
    );
    let own = consortium.log("iran-node");
    assert!(own.contains("round 2: trained") && !own.contains("round 1: trained"), "{own}");
    assert_eq!(own.matches("weights sent").count(), 1, "{own}");
}

#[test]
fn what_an_operator_gets_wrong_is_said() {
    let workshop = Workshop::new();
    workshop.make_nodes(&MEMBERS[..1]);
    workshop.refused("tapestry node participate away --home nowhere", "not the home of a node");
    workshop.refused("tapestry node participate contribute --reason so --home france-node", "leave --reason out");
    workshop.refused(
        "tapestry node participate away --reason $(head -c 1001 /dev/zero | tr '\\0' x) --home france-node",
        "at most 1000",
    );
    workshop.refused("tapestry node participate perhaps --home france-node", "possible values");
}
