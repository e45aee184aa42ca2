//! `tapestry verify round`: a coordinator whose log is well-formed and signed, and whose published base is not the merge that it claims, is found out.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::time::Duration;
use tapestry_core::{Digest, SecretKey, Timestamp};
use tapestry_round::coordinator::CoordinatorEvent;
use tapestry_store::{RoleLog, verify_log};

/// One round of two members under DiLoCo, so that the optimiser's state is checked as well; everything has ended.
fn one_round() -> Workshop {
    let workshop = Workshop::new();
    workshop.make_nodes(&["france", "china"]);
    for name in ["france", "china"] {
        workshop.shorten_training(&format!("{name}-node"));
    }
    workshop.shell(
        "tapestry charter draft --home coordinator --consortium Two --rounds 2 --member france=$(cat france.key) \
         --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 600 --merge-method diloco \
         --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
         for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
         tapestry charter publish charter.json --home coordinator",
    );
    let address = format!("127.0.0.1:{}", free_port());
    let _coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    workshop.shell(&format!(
        "for name in france china; do tapestry node join \"https://{address}#$(cat coordinator/key.pub)\" --home $name-node; done"
    ));
    let nodes = ["france", "china"].map(|name| workshop.start(&format!("tapestry node run --home {name}-node")));
    for mut node in nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    workshop
}

/// The coordinator's log written anew, with the coordinator's own key, every event passed through `lie`.
fn rewrite_log(workshop: &Workshop, lie: impl Fn(CoordinatorEvent) -> CoordinatorEvent) {
    let (log, key) = (workshop.path("coordinator/log"), workshop.path("coordinator/key.pem"));
    let key = SecretKey::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_, entries) = verify_log::<CoordinatorEvent>(&log, key.public()).await.unwrap();
        std::fs::rename(&log, workshop.path("honest-log")).unwrap();
        let (mut rewritten, _) = RoleLog::<CoordinatorEvent>::open(&log, key).await.unwrap();
        for entry in entries {
            rewritten.append(Timestamp::from_ms(entry.at.as_ms()), lie(entry.event)).await.unwrap();
        }
    });
}

/// Puts the honest log back.
fn restore_log(workshop: &Workshop) {
    workshop.shell("rm -r coordinator/log; mv honest-log coordinator/log");
}

#[test]
fn a_published_base_that_is_not_the_merge_is_found_out() {
    let workshop = one_round();
    for round in 1..=2 {
        let told = workshop.shell(&format!("tapestry verify round {round} --home coordinator"));
        assert!(told.contains(&format!("Round {round} holds")), "{told}");
    }
    workshop.refused("tapestry verify round 3 --home coordinator", "the last that has is round 2");
    let explained = workshop.shell("tapestry merge explain --home coordinator --round 2");
    assert!(explained.contains("Round 2") && explained.contains("0.500000"), "{explained}");

    // The coordinator publishes the adopted base itself in place of the merge. Every signature and link of the log is right.
    let adopted = std::cell::Cell::new(None);
    rewrite_log(&workshop, |event| match event {
        CoordinatorEvent::BaseMeasured { base, bpb } => {
            adopted.set(Some(base));
            CoordinatorEvent::BaseMeasured { base, bpb }
        }
        CoordinatorEvent::Merged { round: 2, states, .. } => {
            CoordinatorEvent::Merged { round: 2, model: adopted.get().unwrap(), states }
        }
        CoordinatorEvent::Ended { mut outcome, bpb } if outcome.round == 2 => {
            outcome.base = adopted.get().unwrap();
            CoordinatorEvent::Ended { outcome, bpb }
        }
        other => other,
    });
    workshop.shell("tapestry log verify --home coordinator");
    workshop.shell("tapestry verify round 1 --home coordinator");
    workshop.refused("tapestry verify round 2 --home coordinator", "round 2 DOES NOT HOLD");
    restore_log(&workshop);

    // It weighs one member more than the charter's policy gives, and merges with that: the merge is right, the weights are not.
    rewrite_log(&workshop, |event| match event {
        CoordinatorEvent::MergeStarted { round: 1, mut weights } => {
            (weights[0].weight, weights[1].weight) = (0.9, 0.1);
            CoordinatorEvent::MergeStarted { round: 1, weights }
        }
        other => other,
    });
    workshop.refused("tapestry verify round 1 --home coordinator", "the log DOES NOT HOLD");
    restore_log(&workshop);

    // The optimiser's state is not what follows from the round.
    rewrite_log(&workshop, |event| match event {
        CoordinatorEvent::Merged { round: 1, model, .. } => {
            CoordinatorEvent::Merged { round: 1, model, states: vec![Digest::of(b"another state")] }
        }
        other => other,
    });
    workshop.refused("tapestry verify round 1 --home coordinator", "round 1 DOES NOT HOLD");
    restore_log(&workshop);

    // A chunk of a contribution was changed on the disk.
    workshop.shell("for blob in $(find coordinator/blobs -size +100k -type f); do printf x | dd of=$blob bs=1 seek=5000 conv=notrunc status=none; done");
    workshop.refused("tapestry verify round 1 --home coordinator", "damaged");
}
