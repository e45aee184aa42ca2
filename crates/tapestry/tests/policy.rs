//! A merge policy from the command line to the merge: drafted with flags, read in words, obeyed, explained, and verified.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::time::Duration;

const MEMBERS: [&str; 3] = ["france", "china", "iran"];

/// A draft for three members with these flags besides.
fn draft(flags: &str) -> String {
    format!(
        "tapestry charter draft --home coordinator --consortium Three --rounds 2 --member france=$(cat france.key) \
         --member china=$(cat china.key) --member iran=$(cat iran.key) --base base --open-text open.txt \
         --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10 {flags}"
    )
}

#[test]
fn members_are_weighed_by_their_own_communities_and_an_optimiser_goes_on_from_round_to_round() {
    let workshop = Workshop::new();
    workshop.make_nodes(&MEMBERS);
    workshop.shell(&draft(
        "--weighting culturally-aware --weighting-parameter temperature=0.001 --weighting-parameter community_share=0.5 \
         --community-text france=france/held-out.txt --community-text china=china/held-out.txt \
         --community-text iran=iran/held-out.txt --community-text-max-tokens 300 --influence-cap 0.4 --min-contributions 3 \
         --merge-method diloco --merge-parameter learning_rate=0.7 --merge-parameter momentum=0.9",
    ));
    let shown = workshop.shell("tapestry charter show charter.json");
    for expected in [
        "diloco (learning_rate 0.7, momentum 0.9)",
        "culturally-aware (community_share 0.5, temperature 0.001)",
        "RISK",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    for name in MEMBERS {
        workshop.shorten_training(&format!("{name}-node"));
        workshop.shell(&format!("tapestry charter sign charter.json --home {name}-node --yes"));
    }
    workshop.shell("tapestry charter publish charter.json --home coordinator");
    let address = format!("127.0.0.1:{}", free_port());
    let _coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    for name in MEMBERS {
        workshop
            .shell(&format!("tapestry node join \"https://{address}#$(cat coordinator/key.pub)\" --home {name}-node"));
    }
    let nodes = MEMBERS.map(|name| workshop.start(&format!("tapestry node run --home {name}-node")));
    for mut node in nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    let explained = workshop.shell("tapestry merge explain --home coordinator");
    assert!(explained.contains("own text") && explained.contains("capped"), "{explained}");
    let records = workshop.shell("tapestry merge explain --home coordinator --json");
    let weights = |round: u64| -> Vec<serde_json::Value> {
        let lines = records.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["round"] == round).map(|line| line["weight"].clone()).collect()
    };
    for round in [1, 2] {
        let weights = weights(round);
        assert_eq!(weights.len(), 3);
        let shares: Vec<f64> = weights.iter().map(|weight| weight["weight"].as_f64().unwrap()).collect();
        assert!(
            (shares.iter().sum::<f64>() - 1.0).abs() < 1e-14 && shares.iter().all(|share| *share <= 0.4),
            "{shares:?}"
        );
        assert!(weights.iter().all(|weight| weight["community"]["base_bpb"].is_number()), "{weights:?}");
        let verified = workshop.shell(&format!("tapestry verify round {round} --home coordinator"));
        assert!(verified.contains(&format!("Round {round} holds")), "{verified}");
    }
    let log = workshop.shell("tapestry log show --home coordinator --json");
    let states = |line: &str| line.contains(r#""type":"merged""#) && line.contains(r#""states":[""#);
    assert_eq!(log.lines().filter(|line| states(line)).count(), 2, "{log}");
}

#[test]
fn policies_that_cannot_be_followed_are_not_drafted() {
    let workshop = Workshop::new();
    workshop.make_nodes(&MEMBERS);
    let check = |flags: &str, expected: &str| {
        workshop.refused(&draft(flags), expected);
        assert!(!workshop.path("charter.json").exists());
    };
    check("--weighting data-proportional", "capture risk");
    check("--weighting culturally-aware --weighting-parameter temperature=0.05", "missing field `community_share`");
    check(
        "--weighting culturally-aware --weighting-parameter temperature=0.05 --weighting-parameter community_share=0.5",
        "one text for each member",
    );
    check("--weighting quality-weighted --weighting-parameter temperature=0", "temperature");
    check("--merge-method krum --merge-parameter faulty=1 --influence-cap 1", "5 or more");
    check("--merge-method median --min-contributions 2", "3 or more");
    check("--merge-method mode", "expected one of `fedavg`");
    check("--influence-cap 0.4", "`merge.influence_cap`");
}
