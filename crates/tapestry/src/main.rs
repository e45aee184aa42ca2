//! The one binary: coordinator, node, and everything that an operator does by hand.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod activity;
mod cli;
mod clock;
mod command;
mod coordinator;
mod costs;
mod demo;
mod files;
mod home;
mod logs;
mod measure;
mod merge;
mod metrics;
mod node;
mod observe;
mod participation;
mod policy;
mod progress;
mod readers;
mod role;
mod screen;
mod settings;
mod stores;
mod telemetry;
mod transfer;

use anyhow::Result;
use clap::Parser as _;
use cli::{Cli, Command, CoordinatorCommand, NodeCommand, TrainCommand};
use home::Home;
use progress::{Form, Reporter};
use std::process::ExitCode;
use tapestry_train::{Stage, TrainError};

/// Gives pages back less often than the system's allocator, which training and scoring gain from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // `cargo demo -- --quick` arrives as `demo -- --quick`.
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|a| a == "demo") && arguments.get(2).is_some_and(|a| a == "--") {
        arguments.remove(2);
    }
    let cli = Cli::parse_from(arguments);
    logs::init(cli.log_format);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if logs::is_json() {
                tracing::error!("{error:#}");
            } else {
                eprintln!("error: {error}");
                for cause in error.chain().skip(1) {
                    eprintln!("  because: {cause}");
                }
            }
            if error.is::<command::log::TwoHistories>() {
                return ExitCode::from(3);
            }
            // A trainer's codes are part of its contract; everything else ends with 1.
            error.downcast_ref::<TrainError>().map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Base(command) => command::base::run(command),
        Command::DemoPoison { job } => demo::poison::run(&job),
        Command::Chat(args) => command::generate::chat(args),
        Command::Eval(command) => command::eval::run(command),
        Command::Generate(args) => command::generate::run(args),
        Command::Merge(args) if args.command.is_none() => command::merge::run(&args),
        Command::Train(TrainCommand::Cpt { job, child }) => command::train::run(&job, Stage::Cpt, child),
        Command::Train(TrainCommand::Sft { job }) => command::train::run(&job, Stage::Sft, false),
        Command::Train(TrainCommand::Preference { job }) => command::train::run(&job, Stage::Preference, false),
        Command::Node(NodeCommand::Init { home, contributed, private, held_out }) => {
            let home = Home::at(&home);
            println!("{}", command::node::init(&home, &contributed, &private, &held_out)?);
            let settings = home.path("node.toml");
            eprintln!(
                "This is the node's public key: give it to whoever drafts the charter. Settings: {}",
                settings.display()
            );
            Ok(())
        }
        other => runtime()?.block_on(run_async(other)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn run_async(command: Command) -> Result<()> {
    match command {
        Command::Charter(command) => command::charter::run(command).await,
        Command::Coordinator(CoordinatorCommand::Init { home }) => {
            println!("{}", Home::at(&home).key_or_new()?.public());
            Ok(())
        }
        Command::Coordinator(CoordinatorCommand::HandOver { home, to, address }) => {
            coordinator::hand_over(&Home::at(&home), to, address).await?;
            println!(
                "the role is {to}'s to take; next, here: tapestry coordinator run --home {} (it gives its state away), and there: \
                 tapestry coordinator run --from https://HERE:PORT#KEY, or without --from on a common store",
                home.display()
            );
            Ok(())
        }
        Command::Coordinator(CoordinatorCommand::Run {
            home,
            listen,
            standby,
            from,
            address,
            metrics,
            json_progress,
        }) => {
            let from = from.as_deref().map(command::node::parse_url).transpose()?;
            let options = coordinator::RunOptions { listen, metrics, standby, from, address };
            coordinator::run(&Home::at(&home), &options, Reporter::new(form(json_progress))).await
        }
        Command::Node(NodeCommand::Join { url, home, standbys, accept }) => {
            let member = command::node::join(&Home::at(&home), &url, &standbys, accept).await?;
            println!("joined as {member}; next: tapestry node run --home {}", home.display());
            Ok(())
        }
        Command::Node(NodeCommand::Leave { home, reason, yes }) => {
            command::decide::leave(&Home::at(&home), reason, yes).await
        }
        Command::Node(NodeCommand::RotateKey { home }) => command::decide::rotate_key(&Home::at(&home)).await,
        Command::Node(NodeCommand::Participate { mode, reason, home }) => {
            println!("{}", command::node::participate(&Home::at(&home), mode, reason)?);
            Ok(())
        }
        Command::Node(NodeCommand::Run { home, metrics, json_progress }) => {
            node::run(&Home::at(&home), metrics, Reporter::new(form(json_progress))).await
        }
        Command::Mirror { home, listen } => {
            transfer::mirror(&Home::at(&home), listen, &Reporter::new(form(false))).await
        }
        Command::Account(args) => command::account::run(&args).await,
        Command::Status(args) => command::status::run(&args).await,
        Command::Log(command) => command::log::run(command).await,
        Command::Merge(args) => command::merge::explain(args).await,
        Command::Verify(command) => command::verify::run(command).await,
        Command::Model(command) => command::model::run(command).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Base(_)
        | Command::Chat(_)
        | Command::DemoPoison { .. }
        | Command::Generate(_)
        | Command::Eval(_)
        | Command::Train(_)
        | Command::Node(NodeCommand::Init { .. }) => {
            unreachable!("these run without a runtime")
        }
    }
}

const fn form(json_progress: bool) -> Form {
    if json_progress { Form::Json } else { Form::People }
}
