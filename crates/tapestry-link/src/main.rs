//! `cargo run --release -p tapestry-link -- LISTEN TARGET [ROUND_TRIP_MS [MBIT_PER_SECOND]]`: a link to try things on by hand.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tapestry_link::{Link, Terms};

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let addresses: Vec<SocketAddr> = words.iter().take(2).filter_map(|word| word.parse().ok()).collect();
    let numbers: Vec<u64> = words.iter().skip(2).filter_map(|word| word.parse().ok()).collect();
    let ([listen, target], true) = (&addresses[..], (2..=4).contains(&words.len()) && numbers.len() + 2 == words.len())
    else {
        eprintln!("usage: tapestry-link LISTEN TARGET [ROUND_TRIP_MS [MBIT_PER_SECOND]]");
        eprintln!("such as: tapestry-link 127.0.0.1:7000 127.0.0.1:7443 100 200");
        return ExitCode::FAILURE;
    };
    let delay = Duration::from_millis(numbers.first().copied().unwrap_or(0)) / 2;
    let bytes_per_second = numbers.get(1).map(|mbit| mbit * 125_000);
    match Link::between(*listen, *target, Terms { delay, bytes_per_second, ..Terms::default() }).await {
        Ok(link) => {
            println!("{} leads to {target}", link.address());
            let _ = tokio::signal::ctrl_c().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot listen on {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}
