//! Development tasks, run as `cargo xtask NAME`. `test` is what CI runs; there is nothing that only CI does.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::process::ExitCode;

use anyhow::{Result, bail};

mod bench;
mod demo;
mod deny;
mod run;
mod spdx;
mod test;
mod tidy;

const USAGE: &str = "\
cargo xtask TASK

  test [--without STEP]...  everything that CI runs, cheapest first:
                            tidy, deny, fmt, clippy, tests, demo
  tidy                      the rules of ARCHITECTURE.md that a program can check
  deny                      licences and sources of foreign code, by deny.toml
  demo                      the quick demo in a temporary folder, and a check of what it wrote
  sim [OPTION]...           simulated consortia, each from a seed, under faults and malice (docs/simulator.md)
    --seeds NUM             how many (10000)
    --from SEED             the first (0)
    --seed SEED             one alone, with its story where it fails
    --threads NUM           how many at a time (one a processor)
    --scaling FILE          instead: what a round costs with 2 to 50 members; an SVG in FILE
  bench NAME [OPTION]...    our figures beside those of the peers and of the machine; NAME: log, merge, round
    --json                  one JSON object a row, instead of tables
    --rows FILTER[,...]     only works whose name contains FILTER
    --quick, --full         tiny models, in seconds; also what takes long or much disk
    --repeat NUM            runs of each program, or rounds, of which the median counts (3)
    --keep                  leave the homes and logs of consortia in the folder
    --dir DIR               where models are made and kept (bench-NAME in the target folder)
    --peers DIR             where bench/peers/setup.sh set the peers up (else $PEERS_HOME)
    --binary FILE           our program, where it is not to be built";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test", options @ ..] => test::test(options),
        ["tidy"] => tidy::tidy(),
        ["deny"] => deny::deny(),
        ["demo"] => demo::demo(),
        ["sim", words @ ..] => {
            let run = ["run", "--release", "--quiet", "--locked", "--package", "tapestry-sim", "--"];
            run::step(run::cargo().args(run).args(words))
        }
        ["bench", words @ ..] => bench::bench(words),
        ["bench-child", words @ ..] => bench::child(words),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task `{}`\n\n{USAGE}", other.join(" ")),
    }
}
