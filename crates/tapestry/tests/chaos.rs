//! Seven members and a coordinator as processes, behind links that stall, reset and turn half-open, killed at random and started again.
//!
//! `TAPESTRY_CHAOS_SECONDS=300 cargo test --release -p tapestry --test chaos -- --nocapture` does harm for longer than the twenty seconds of an
//! ordinary run; `TAPESTRY_CHAOS_SEED` does the same harm in another order.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test; what was done is shown with --nocapture")]

mod common;

use common::{Process, Workshop, free_port};
use std::time::{Duration, Instant};
use tapestry_link::{Link, Terms};

const MEMBERS: [&str; 7] = ["bolivia", "china", "france", "iran", "japan", "kenya", "vietnam"];

/// What the environment says, or else `default`.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Numbers that a seed decides (xorshift; Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        self.0 % limit
    }
}

struct Consortium {
    workshop: Workshop,
    address: String,
}

impl Consortium {
    fn new(num_rounds: u64) -> Self {
        let workshop = Workshop::new();
        workshop.make_nodes(&MEMBERS);
        let members: Vec<_> = MEMBERS.iter().map(|name| format!("--member {name}=$(cat {name}.key)")).collect();
        for name in MEMBERS {
            workshop.shorten_training(&format!("{name}-node"));
        }
        workshop.shell(&format!(
            "tapestry charter draft --home coordinator --consortium Seven --rounds {num_rounds} --window 1h {} --base base \
             --open-text open.txt --open-text-max-tokens 600 --max-relative-change 10 --max-contribution-rise 10 \
             --max-merged-rise 10
             for name in {}; do tapestry charter sign charter.json --home $name-node --yes; done
             tapestry charter publish charter.json --home coordinator",
            members.join(" "),
            MEMBERS.join(" ")
        ));
        Self { workshop, address: format!("127.0.0.1:{}", free_port()) }
    }

    fn start_coordinator(&self) -> Process {
        let _ = std::fs::remove_file(self.workshop.path("coordinator/address"));
        let process =
            self.workshop.start(&format!("tapestry coordinator run --home coordinator --listen {}", self.address));
        self.workshop.wait_for("the coordinator listens", || self.workshop.path("coordinator/address").exists());
        process
    }

    /// Each member reaches the coordinator over a link of its own.
    fn join(&self, links: &[Link]) {
        for (name, link) in MEMBERS.iter().zip(links) {
            self.workshop.shell(&format!(
                "tapestry node join \"https://{}#$(cat coordinator/key.pub)\" --home {name}-node",
                link.address()
            ));
        }
    }

    fn start_node(&self, member: usize) -> Process {
        self.workshop.start(&format!("tapestry node run --home {}-node", MEMBERS[member]))
    }

    fn log(&self, home: &str) -> String {
        self.workshop.shell(&format!("tapestry log show --home {home}"))
    }

    /// What a member has sent in all, over its link, must be little more than its weights and what was on the way when something broke.
    fn weights_bytes(&self) -> u64 {
        std::fs::metadata(self.workshop.path("base/model.safetensors")).unwrap().len()
    }
}

#[test]
fn seven_members_come_through() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seed = number("TAPESTRY_CHAOS_SEED", 20_261_123);
    let mut random = Random(seed.max(1));
    let seconds = number("TAPESTRY_CHAOS_SECONDS", 20);
    // A round under fire takes a few seconds.
    let num_rounds = (seconds / 5).max(3);
    let consortium = Consortium::new(num_rounds);
    let target = consortium.address.parse().unwrap();
    let terms = Terms { delay: Duration::from_millis(5), bytes_per_second: Some(20_000_000), ..Terms::default() };
    let links: Vec<Link> = MEMBERS.iter().map(|_| runtime.block_on(Link::to(target, terms)).unwrap()).collect();
    let mut coordinator = consortium.start_coordinator();
    consortium.join(&links);
    let mut nodes: Vec<_> = (0..MEMBERS.len()).map(|member| consortium.start_node(member)).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut num_kills, mut num_breaks) = (0, vec![0_u64; MEMBERS.len()]);
    while Instant::now() < end && !nodes.iter_mut().all(Process::has_ended) {
        std::thread::sleep(Duration::from_millis(50 + random.below(400)));
        let member = usize::try_from(random.below(MEMBERS.len() as u64)).unwrap();
        match random.below(8) {
            0 => {
                coordinator.kill();
                std::thread::sleep(Duration::from_millis(random.below(800)));
                coordinator = consortium.start_coordinator();
                num_kills += 1;
                num_breaks.iter_mut().for_each(|breaks| *breaks += 1);
            }
            1..=3 if !nodes[member].has_ended() => {
                nodes[member].kill();
                nodes[member] = consortium.start_node(member);
                num_kills += 1;
                num_breaks[member] += 1;
            }
            4 => {
                links[member].reset();
                num_breaks[member] += 1;
            }
            5 => {
                links[member].half_open();
                // Nobody tells either side; a node that is started anew does not wait for its idle timeout.
                nodes[member].kill();
                nodes[member] = consortium.start_node(member);
                num_kills += 1;
                num_breaks[member] += 1;
            }
            6 => {
                links[member].stall(true);
                std::thread::sleep(Duration::from_millis(random.below(700)));
                links[member].stall(false);
            }
            _ => {}
        }
    }
    eprintln!("seed {seed}: {num_kills} processes killed, connections broken {num_breaks:?} times");
    assert!(num_kills >= 5, "only {num_kills} processes were killed");
    for node in &mut nodes {
        node.wait_for_success(Duration::from_secs(300));
    }
    coordinator.stop();

    let log = consortium.log("coordinator");
    assert_eq!(log.matches(" published ").count(), usize::try_from(num_rounds).unwrap(), "{log}");
    assert!(!log.contains("refused") && !log.contains("MISSING"), "{log}");
    let bases = |home: &str| consortium.workshop.shell(&format!("tapestry model list --home {home}"));
    let shared = |list: String| list.lines().find(|line| line.contains("shared-base")).unwrap().to_owned();
    let expected = shared(bases("coordinator"));
    for (member, name) in MEMBERS.iter().enumerate() {
        let home = format!("{name}-node");
        consortium.workshop.shell(&format!("tapestry log verify --home {home}"));
        assert_eq!(shared(bases(&home)), expected, "{name} is on another base");
        let own = consortium.log(&home);
        for round in 1..=num_rounds {
            assert_eq!(own.matches(&format!("round {round}: trained")).count(), 1, "{name} trains once:\n{own}");
        }
        // The weights of each round, what was on its way at each break (the tiny model is one chunk), and room for messages.
        let (sent, _) = links[member].bytes_moved();
        let weights = consortium.weights_bytes();
        let limit = weights * (num_rounds + num_breaks[member]) + (8 << 20);
        assert!(sent <= limit, "{name} has sent {sent} bytes, more than {limit}");
    }
    for round in 1..=num_rounds {
        consortium.workshop.shell(&format!("tapestry verify round {round} --home coordinator"));
    }
    consortium.workshop.shell("tapestry log verify --home coordinator");
}
