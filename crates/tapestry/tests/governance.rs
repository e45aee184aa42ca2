//! What members decide, with real processes: a fourth member is admitted, one is excluded, one takes another key, one leaves; the
//! coordinator only counts. And everything can be checked afterwards, by anybody, with nothing running.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Process, Workshop, free_port};
use std::time::Duration;

const NAMES: [&str; 3] = ["france", "china", "iran"];

struct Consortium {
    workshop: Workshop,
    address: String,
    coordinator: Option<Process>,
}

impl Consortium {
    /// Three members under a charter of one round; the coordinator runs.
    fn founded(extra: &str) -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&["france", "china", "iran", "kenya"]);
        for name in ["france", "china", "iran", "kenya"] {
            workshop.shorten_training(&format!("{name}-node"));
        }
        std::fs::write(workshop.path("agreement.md"), "# Agreement\n\nWe train together.\n").unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        workshop.shell(&format!(
            "tapestry charter draft --home coordinator --consortium Three {extra} --member france=$(cat france.key) \
             --member china=$(cat china.key) --member iran=$(cat iran.key) --base base --open-text open.txt \
             --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10 \
             --text agreement.md --min-vote 1s
             for name in france china iran; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator"
        ));
        let mut consortium = Self { workshop, address, coordinator: None };
        consortium.start_coordinator();
        for name in NAMES {
            consortium.shell(&format!("tapestry node join URL --home {name}-node"));
        }
        consortium
    }

    fn start_coordinator(&mut self) {
        let _ = std::fs::remove_file(self.workshop.path("coordinator/address"));
        let command = format!("tapestry coordinator run --home coordinator --listen {}", self.address);
        self.coordinator = Some(self.workshop.start(&command));
        self.workshop.wait_for("the coordinator listens", || self.workshop.path("coordinator/address").exists());
    }

    /// Commands in which `URL` is the coordinator's.
    fn shell(&self, commands: &str) -> String {
        self.workshop
            .shell(&commands.replace("URL", &format!("\"https://{}#$(cat coordinator/key.pub)\"", self.address)))
    }

    /// Runs these nodes to their end.
    fn run(&self, names: &[&str]) -> Vec<String> {
        let start = |name: &&str| self.workshop.start(&format!("tapestry node run --home {name}-node"));
        let nodes: Vec<_> = names.iter().map(start).collect();
        let finish = |mut node: Process| {
            node.wait_for_success(Duration::from_secs(180));
            node.messages()
        };
        nodes.into_iter().map(finish).collect()
    }

    /// The first digits of the one open proposal.
    fn open_proposal(&self) -> String {
        let listed = self.shell("tapestry charter proposals --home coordinator --json");
        let open: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(open.as_array().unwrap().len(), 1, "{listed}");
        open[0]["digest"].as_str().unwrap()[..12].to_owned()
    }

    /// A proposal by a member, and the votes of members on it: a name, and `yes` or `no`.
    fn decide(&self, by: &str, change: &str, votes: &[(&str, &str)]) {
        self.shell(&format!(
            "tapestry charter propose --home {by}-node --rationale 'Because it is better so.' --consulted 'The council' {change}"
        ));
        let proposal = self.open_proposal();
        for (name, choice) in votes {
            self.shell(&format!(
                "tapestry charter vote {proposal} {choice} --home {name}-node --reason '{name} says {choice}'"
            ));
        }
        self.workshop.wait_for("the decision", || {
            self.shell("tapestry charter proposals --home coordinator").contains("No proposal")
        });
    }
}

#[test]
fn members_decide_who_is_in_and_by_which_terms_and_the_coordinator_only_counts() {
    let mut consortium = Consortium::founded("--rounds 1");
    consortium.run(&NAMES);
    let log = consortium.shell("tapestry log show --home coordinator");
    assert!(log.contains("2 members have witnessed"), "a round opens on what members have witnessed:\n{log}");
    assert!(log.contains("v1 "), "{log}");

    // One more round, another cap, and a fourth member; one is against it, and says so.
    let kenya = consortium.shell("cat kenya.key");
    let change = format!("--set rounds.num_rounds=2 --set merge.influence_cap=0.6 --admit kenya={}", kenya.trim());
    let shown = consortium.shell(&format!(
        "tapestry charter propose --home france-node --rationale 'To see it first' {change} --dry-run"
    ));
    assert!(shown.contains("merge.influence_cap: 0.5 -> 0.6") && shown.contains("Nothing was sent"), "{shown}");
    consortium.decide("france", &change, &[("france", "yes"), ("china", "yes"), ("iran", "no")]);
    consortium.workshop.refused("tapestry charter vote 000000 yes --home france-node", "no open proposal begins with");
    let url = format!("https://{}#{}", consortium.address, consortium.shell("cat coordinator/key.pub").trim());
    let (is_joined, digest) = consortium.workshop.try_shell(&format!("tapestry node join {url} --home kenya-node"));
    assert!(!is_joined && digest.contains("has not signed"), "{digest}");
    let digest = digest.split("--accept ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    consortium.shell(&format!("tapestry node join URL --home kenya-node --accept {digest}"));
    consortium.run(&["france", "china", "iran", "kenya"]);
    let log = consortium.shell("tapestry log show --home coordinator --event ended --event decided --event voted");
    assert!(log.contains("ADOPTED: 2 for, 1 against") && log.contains("iran says no"), "{log}");
    assert!(
        consortium.shell("tapestry log show --home coordinator --round 2 --member kenya").contains("kenya accepted")
    );

    // The operator stops the coordinator and starts it again; a member takes another key meanwhile.
    consortium.coordinator = None;
    consortium.start_coordinator();
    consortium.shell("cp china-node/key.pem old-key.pem; tapestry node rotate-key --home china-node");

    consortium.workshop.refused(
        "tapestry charter propose --home china-node --rationale 'Too early' --set rounds.num_rounds=3",
        "start its node once",
    );
    let told = consortium.run(&["china"]);
    assert!(told[0].contains("another key now"), "{}", told[0]);

    // One is excluded, although it votes against that, and one more round is agreed on.
    let change = "--set rounds.num_rounds=3 --eject iran";
    consortium.decide("china", change, &[("france", "yes"), ("china", "yes"), ("kenya", "yes"), ("iran", "no")]);
    let ended = consortium.run(&["france", "china", "kenya", "iran"]);
    assert!(ended[3].contains("out of the consortium"), "{}", ended[3]);
    assert!(consortium.shell("tapestry model list --home iran-node").contains("sovereign"), "it keeps what it has");
    consortium.workshop.refused(
        "tapestry charter propose --home iran-node --rationale 'Let me in' --set rounds.num_rounds=9",
        "not that of a member in force",
    );
    let log = consortium.shell("tapestry log show --home coordinator --round 3");
    assert!(log.contains("kenya accepted") && !log.contains("iran"), "{log}");

    // Work that no machine counts is entered by vote, and weighs nothing.
    consortium.decide(
        "france",
        "--credit 'china:engineering:80:hours:the installer <b>and</b> its tests'",
        &[("france", "yes"), ("china", "yes"), ("kenya", "no")],
    );
    let account = consortium.shell("tapestry account --home coordinator; tapestry account --home coordinator --csv");
    assert!(
        account.contains("80 hours: the installer") && account.contains("no member weighs more than 0.6"),
        "{account}"
    );
    assert!(account.contains("credit: engineering") && account.contains("largest weight"), "{account}");

    // One leaves; nobody is asked.
    consortium.shell("tapestry node leave --home kenya-node --reason 'Our own way' --yes");
    consortium.run(&["kenya"]);
    assert!(
        consortium.shell("tapestry log show --home coordinator").contains("kenya has left the consortium: Our own way")
    );
    consortium.coordinator = None;

    // A lawyer reads it, and an auditor checks it, with nothing running.
    let history = consortium.shell("tapestry charter history --home coordinator --out history.json");
    for told in [
        "version 1",
        "iran           no       iran says no",
        "china took key",
        "kenya left",
        "members.iran: removed",
        "All of it holds",
    ] {
        assert!(history.contains(told), "{told} is missing:\n{history}");
    }
    assert!(consortium.shell("tapestry charter show --home france-node").contains("We train together."));
    assert!(consortium.shell("tapestry charter diff 1 2 --home coordinator").contains("members.kenya: added"));
    let verified = consortium.shell("tapestry verify all --home coordinator");
    assert!(verified.contains("All of it holds") && verified.contains("3 made again"), "{verified}");
    let published = consortium
        .shell("tapestry charter records --home coordinator --out records; cat records/0001.md records/0003.html");
    for told in [
        "3 decisions",
        "## Dissent",
        "iran says no",
        "The council",
        "Because it is better so.",
        "&lt;b&gt;and&lt;/b&gt;",
    ] {
        assert!(published.contains(told), "{told} is missing:\n{published}");
    }
    consortium.shell("tapestry log export --home coordinator --out export");
    let checked = consortium.shell("tapestry log verify export; tapestry log show --export export --last 3");
    assert!(checked.contains("The log of this coordinator holds"), "{checked}");
    let proof =
        consortium.shell("tapestry log prove 2 --export export; tapestry log prove --from 2 --home coordinator");
    assert!(proof.contains("\"hashes\"") && proof.contains("\"leaf\""), "{proof}");
    consortium.shell("cp -r export changed; sed -i 's/iran says no/iran says so/' $(grep -rl 'iran says no' changed)");
    consortium.workshop.refused("tapestry log verify changed", "DOES NOT HOLD");
}

#[test]
fn two_members_find_out_that_they_were_shown_two_histories() {
    let mut consortium = Consortium::founded("--rounds 2 --window 12s");
    // The coordinator and one member conspire: there are two of each, with one key, and the others are shown one each.
    consortium.coordinator = None;
    consortium.shell("cp -r coordinator coordinator-2; cp -r iran-node iran-2-node");
    let second = format!("127.0.0.1:{}", free_port());
    for name in ["china", "iran-2"] {
        consortium.shell(&format!("sed -i 's/{}/{second}/' {name}-node/node.toml", consortium.address));
    }
    consortium.start_coordinator();
    let told = consortium.workshop.start(&format!("tapestry coordinator run --home coordinator-2 --listen {second}"));
    consortium.workshop.wait_for("the second listens", || told.messages().contains("listening on"));
    let nodes: Vec<_> = ["france", "iran", "china", "iran-2"]
        .map(|name| consortium.workshop.start(&format!("tapestry node run --home {name}-node")))
        .into();
    // Each of the two rounds needs two witnesses, and has them.
    for home in ["coordinator", "coordinator-2"] {
        let log = || consortium.shell(&format!("tapestry log show --home {home}"));
        consortium.workshop.wait_for("a round on each side", || log().contains("round 1: Shared Base"));
        consortium.workshop.wait_for("what came of it is witnessed", || log().contains("round 2 announced"));
    }
    drop(nodes);

    consortium.shell("tapestry log checkpoint --home china-node > china.checkpoint");
    let compare = "tapestry log compare china.checkpoint --home france-node || test $? = 3";
    let found = consortium.shell(compare);
    assert!(found.contains("TWO HISTORIES") && found.contains("Both are signed by the coordinator"), "{found}");
    let log = consortium
        .shell("tapestry log show --home france-node --event histories_differ; tapestry log verify --home france-node");
    assert!(log.contains("TWO HISTORIES") && log.contains("The log of this node holds"), "{log}");
    let evidence = consortium.shell("tapestry log show --home france-node --event histories_differ --json");
    assert!(evidence.matches("tapestry/").count() >= 4, "both checkpoints, with their signatures:\n{evidence}");
    let mut france = consortium.workshop.start("tapestry node run --home france-node");
    france.wait_for_failure("two histories");
}

#[test]
fn members_of_one_history_agree_and_fetch_it_for_themselves() {
    let consortium = Consortium::founded("--rounds 1");
    consortium.run(&NAMES);
    consortium.shell("tapestry log checkpoint --home china-node > china.checkpoint");
    let same = consortium.shell("tapestry log compare china.checkpoint --home france-node");
    assert!(same.contains("One history"), "{same}");
    let fetched = consortium.shell(
        "tapestry log export --from-coordinator --home france-node --out fetched; tapestry log verify fetched
         tapestry log prove 3 --home france-node; tapestry log prove --from 3 --home france-node",
    );
    assert!(fetched.contains("cosigned by") && fetched.contains("\"leaf\""), "{fetched}");
    // A checkpoint of another log is none.
    consortium
        .shell("tapestry log checkpoint --home china-node | sed 's/tapestry\\//tapestry-2\\//' > other.checkpoint");
    consortium.workshop.refused("tapestry log compare other.checkpoint --home france-node", "error");
}
