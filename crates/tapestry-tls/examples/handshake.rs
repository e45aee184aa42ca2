//! What a handshake costs with X25519MLKEM768 and with X25519 alone: processor time of both ends together, in one thread and without
//! a network; turn by turn, so that both meet the same machine.
//!
//!     cargo run --release -p tapestry-tls --example handshake [HANDSHAKES]
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

#[path = "../tests/handshake/pair.rs"]
mod pair;

use pair::{Agreed, configs, handshake};
use rustls::crypto::{CryptoProvider, ring};
use std::time::Instant;
use tapestry_tls::{X25519MLKEM768, between_members};

fn main() {
    let num = std::env::args().nth(1).map_or(2000, |text| text.parse().unwrap());
    let x25519 = || CryptoProvider { kx_groups: vec![ring::kx_group::X25519], ..ring::default_provider() };
    let kinds = [configs(between_members(), between_members()), configs(x25519(), x25519())];
    let mut times = [const { vec![] }; 2];
    let mut agreed = [const { None::<Agreed> }; 2];
    for _ in 0..num {
        for kind in 0..2 {
            let start = Instant::now();
            agreed[kind] = Some(handshake(&kinds[kind], |_| {}).unwrap());
            times[kind].push(start.elapsed());
        }
    }
    println!("{num} handshakes each, both ends together, mutual raw Ed25519 keys; median (10th to 90th percentile)");
    for (agreed, times) in agreed.into_iter().zip(&mut times) {
        let agreed = agreed.unwrap();
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
        println!(
            "{:?}: {:.0} microseconds ({:.0} to {:.0}); {} bytes from the client, {} from the server, {} round trips",
            agreed.group,
            at(50),
            at(10),
            at(90),
            agreed.client_sent,
            agreed.server_sent,
            agreed.round_trips
        );
    }
    let mut parts = [const { vec![] }; 3];
    for _ in 0..num {
        let start = Instant::now();
        let offer = X25519MLKEM768.start().unwrap();
        parts[0].push(start.elapsed());
        let start = Instant::now();
        let answer = X25519MLKEM768.start_and_complete(offer.pub_key()).unwrap();
        parts[1].push(start.elapsed());
        let start = Instant::now();
        offer.complete(&answer.pub_key).unwrap();
        parts[2].push(start.elapsed());
    }
    for (name, mut times) in ["the client's keys", "the server's answer", "the client's end"].into_iter().zip(parts) {
        times.sort();
        println!("X25519MLKEM768, {name}: {:.0} microseconds", times[times.len() / 2].as_secs_f64() * 1e6);
    }
}
