//! The coordinator's role changes hands in the middle of a round: a standby takes it over, a coordinator gives it away.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use std::fmt::Write as _;
use std::time::Duration;
use tapestry_core::SecretKey;
use tapestry_net::{Dialer, NetError};

const MEMBERS: [&str; 2] = ["france", "china"];

/// Two members that have joined and may turn to a second coordinator; china trains when [`Workshop::open_gate`] lets it.
struct Consortium {
    workshop: Workshop,
    addresses: [String; 2],
}

impl Consortium {
    /// With one store for both coordinators, or each with its own home.
    fn ready(has_one_store: bool) -> (Self, Process) {
        let workshop = Workshop::new();
        workshop.make_nodes(&MEMBERS);
        for name in MEMBERS {
            workshop.shorten_training(&format!("{name}-node"));
            let settings = workshop.path(&format!("{name}-node/node.toml"));
            let text = std::fs::read_to_string(&settings).unwrap();
            let impatient = text.replace("[transfer]\n", "[transfer]\nidle_timeout_seconds = 5\n");
            assert_ne!(text, impatient, "node.toml has another form");
            std::fs::write(&settings, impatient).unwrap();
        }
        workshop.gate_training("china");
        workshop.shell("tapestry coordinator init --home standby > standby.key; mkdir coordinator");
        let mut settings = "[transfer]\nidle_timeout_seconds = 5\n".to_owned();
        if has_one_store {
            writeln!(settings, "[store]\nurl = \"file://{}\"", workshop.path("store").display()).unwrap();
        }
        for home in ["coordinator", "standby"] {
            std::fs::write(workshop.path(home).join("coordinator.toml"), &settings).unwrap();
        }
        workshop.shell(
            "tapestry charter draft --home coordinator --consortium Two --rounds 2 --window 1h --standby $(cat standby.key) \
             --member france=$(cat france.key) --member china=$(cat china.key) --base base --open-text open.txt \
             --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
             for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator",
        );
        let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let consortium = Self { workshop, addresses };
        let coordinator = consortium.start("coordinator", 0, "");
        consortium.workshop.wait_for("it listens", || consortium.workshop.path("coordinator/address").exists());
        (consortium, coordinator)
    }

    fn start(&self, home: &str, address: usize, options: &str) -> Process {
        let address = &self.addresses[address];
        self.workshop.start(&format!("tapestry coordinator run --home {home} --listen {address} {options}"))
    }

    /// The nodes join, with these options, and start.
    fn start_nodes(&self, options: &str) -> Vec<Process> {
        let url = format!("https://{}#$(cat coordinator/key.pub)", self.addresses[0]);
        let start = |name: &&str| {
            self.workshop.shell(&format!("tapestry node join \"{url}\" --home {name}-node {options}"));
            self.workshop.start(&format!("tapestry node run --home {name}-node"))
        };
        MEMBERS.iter().map(start).collect()
    }

    fn wait_for_log(&self, home: &str, text: &str) {
        let log = || self.workshop.shell(&format!("tapestry log show --home {home}"));
        self.workshop.wait_for(text, || log().contains(text));
    }

    /// Log and list of blobs are for those who may coordinate, not for members.
    fn members_get_no_copy(&self) {
        let key = |home: &str| {
            SecretKey::from_pem(&std::fs::read_to_string(self.workshop.path(home).join("key.pem")).unwrap()).unwrap()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = |home: &str, path: &str| {
            let dialer = Dialer::new(&self.addresses[0], key("coordinator").public(), &key(home)).unwrap();
            runtime.block_on(async { dialer.get_bytes(path, 1 << 20).await })
        };
        for path in ["/v1/state/log/1", "/v1/state/blobs/00"] {
            assert!(ask("standby", path).is_ok(), "{path}");
            let refused = ask("france-node", path);
            assert!(matches!(refused, Err(NetError::Refused { status: 403, .. })), "{path}: {refused:?}");
        }
        for path in ["/v1/state/log/999", "/v1/state/blobs/xyz", "/v1/state/blobs/000"] {
            let refused = ask("standby", path);
            assert!(matches!(refused, Err(NetError::Refused { status: 404, .. })), "{path}: {refused:?}");
        }
    }

    /// Lets the rounds come to their end, and holds all to account.
    fn end(&self, home: &str, nodes: &mut [Process]) {
        for work in ["round-2", "sovereign"] {
            self.workshop.open_gate("china", work);
        }
        for node in nodes {
            node.wait_for_success(Duration::from_secs(120));
        }
        for round in 1..=2 {
            let verified = self.workshop.shell(&format!("tapestry verify round {round} --home {home}"));
            assert!(verified.contains(&format!("Round {round} holds")), "{verified}");
        }
        for name in MEMBERS {
            let log = self.workshop.shell(&format!("tapestry log show --home {name}-node"));
            for round in 1..=2 {
                assert_eq!(log.matches(&format!("round {round}: trained")).count(), 1, "{name} trains once:\n{log}");
                assert_eq!(log.matches(&format!("round {round}: weights sent")).count(), 1, "{name}:\n{log}");
            }
            assert!(log.contains("has the coordinator's role now"), "{log}");
        }
    }
}

#[test]
fn a_standby_goes_on_with_the_round_and_the_deposed_coordinator_stops() {
    let (consortium, mut first) = Consortium::ready(true);
    let workshop = &consortium.workshop;
    workshop.refused("tapestry coordinator run --home standby --listen 127.0.0.1:0", "has the coordinator's role");
    let mut standby = consortium.start("standby", 1, "--standby");
    let url = format!("https://{}#$(cat standby.key)", consortium.addresses[1]);
    let mut nodes = consortium.start_nodes(&format!("--standby \"{url}\""));
    consortium.wait_for_log("coordinator", "round 1: contribution of france has arrived");
    assert!(
        !standby.messages().contains("has the role now"),
        "it waits while the holder lives:\n{}",
        standby.messages()
    );

    // As a machine that stands still does: it holds its connections, and does not know what happens meanwhile.
    first.signal("STOP");
    workshop.wait_for("the standby has the role", || standby.messages().contains("this coordinator has the role now"));
    workshop.open_gate("china", "round-1");
    consortium.wait_for_log("standby", "round 1: Shared Base");
    first.signal("CONT");
    first.wait_for_failure("another coordinator has taken the role over");

    // The one that took it over vanishes, too, and the first takes it back.
    standby.kill();
    let mut first = consortium.start("coordinator", 0, "--standby");
    workshop.wait_for("the first has it back", || first.messages().contains("this coordinator has the role now"));
    consortium.end("coordinator", &mut nodes);
    first.stop();
    let log = workshop.shell("tapestry log show --home standby; tapestry log verify --home standby");
    for tenure in [2, 3] {
        assert!(log.contains(&format!("(tenure {tenure})")), "{log}");
    }
    assert!(!log.contains("refused") && !log.contains("MISSING"), "{log}");
}

#[test]
fn a_coordinator_gives_its_role_and_its_state_to_another_machine() {
    let (consortium, mut first) = Consortium::ready(false);
    let workshop = &consortium.workshop;
    let mut nodes = consortium.start_nodes("");
    consortium.wait_for_log("coordinator", "round 1: contribution of france has arrived");
    // The copy begins while the first still coordinates.
    let from = format!("https://{}#$(cat coordinator/key.pub)", consortium.addresses[0]);
    let from = workshop.shell(&format!("echo -n \"{from}\""));
    let second = consortium.start("standby", 1, &format!("--from {from}"));
    workshop.wait_for("a copy is there", || second.messages().contains("entries of the log are here"));
    consortium.members_get_no_copy();
    let give = "tapestry coordinator hand-over --home coordinator --to";
    workshop.refused(&format!("{give} $(cat standby.key)"), "another tapestry process uses");
    first.stop();
    workshop.refused(&format!("{give} $(cat france.key)"), "neither as coordinator nor as one of its standbys");
    workshop.refused(&format!("{give} $(cat standby.key) --address nowhere"), "HOST:PORT");
    workshop.shell(&format!("{give} $(cat standby.key) --address {}", consortium.addresses[1]));
    workshop.refused(&format!("{give} $(cat standby.key)"), "handed over to");
    // It still serves its state, and decides nothing.
    let mut first = consortium.start("coordinator", 0, "");
    workshop.wait_for("the second has the role", || second.messages().contains("which has it now"));
    workshop.open_gate("china", "round-1");
    consortium.wait_for_log("standby", "round 1: Shared Base");
    consortium.end("standby", &mut nodes);
    // A node that was told where the role is asks there, whatever its settings say.
    workshop.shell("tapestry status --home france-node");
    first.stop();
    workshop.shell("tapestry status --home france-node");
    let log = workshop.shell("tapestry log show --home coordinator; tapestry log verify --home coordinator");
    assert!(log.contains("is handed over to") && !log.contains("round 1: Shared Base"), "{log}");
    workshop.shell("tapestry log verify --home standby");
}
