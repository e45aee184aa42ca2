//! Does what `docs/quickstart.md` says, command by command, in separate processes with real files and sockets.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::fs;
use std::time::Duration;

/// The fenced blocks of the page whose info string is `info`, in order.
fn blocks<'a>(page: &'a str, info: &str) -> Vec<&'a str> {
    let fence = format!("```{info}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn the_page_works() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/quickstart.md")).unwrap();
    let workshop = Workshop::new();
    workshop.write_inputs(&["france", "china", "iran"]);
    let address = format!("127.0.0.1:{}", free_port());
    let here =
        |script: &str| script.replace("0.0.0.0:7443", &address).replace("coordinator.example.org:7443", &address);
    let (foreground, background) = (blocks(&page, "sh"), blocks(&page, "sh background"));
    let [members, others, draft, sign, publish, join, watch] = foreground[..] else {
        panic!("the page has {} blocks to run", foreground.len())
    };
    let [coordinator, nodes] = background[..] else { panic!("the page has {} blocks to start", background.len()) };
    let [finally] = blocks(&page, "sh finally")[..] else { panic!("the page has no last block") };

    let setup = format!("{members}{others}");
    // The keys are in shell variables, so what follows runs in the same shell.
    workshop.shell(&here(&format!("{setup}{draft}{sign}{publish}")));
    for home in ["france-node", "china-node", "iran-node"] {
        workshop.shorten_training(home);
    }
    let mut coordinator = workshop.start(here(coordinator).trim());
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    workshop.shell(&here(join));
    let mut nodes: Vec<_> = nodes.trim().lines().map(|line| workshop.start(line)).collect();
    let seen = workshop.shell(&here(watch));
    assert!(seen.contains("Three libraries") && seen.contains("charter of Three libraries is in force"), "{seen}");
    for node in &mut nodes {
        node.wait_for_success(Duration::from_secs(300));
    }
    let told = workshop.shell(finally);
    assert!(told.matches("The log of this").count() == 2 && told.contains("bits per byte"), "{told}");
    for model in ["shared-base", "france"] {
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(workshop.path(&format!("models/{model}/{file}")).exists(), "{model}/{file}");
        }
    }
    let shared = workshop.shell("tapestry model list --home france-node; tapestry model list --home coordinator");
    let digests: Vec<_> = shared.lines().filter_map(|line| line.strip_prefix("shared-base")).collect();
    assert_eq!((digests.len(), digests.first()), (2, digests.last()), "{shared}");
    coordinator.stop();
}
