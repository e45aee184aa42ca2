//! `tapestry charter`.

use crate::cli::{CharterCommand, DraftArgs};
use crate::clock::now;
use crate::coordinator;
use crate::files;
use crate::home::Home;
use crate::policy;
use crate::stores::open_blobs;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use tapestry_core::{CHUNK_BYTES, Digest, MemberName, Signed, format_duration, to_canonical_json};
use tapestry_governance::{Charter, CharterTerms, GateTerms, HeldOutTerms, RoundTerms, ScreeningTerms};
use tapestry_weights::{HfDir, SafetensorsModel, WeightSource as _};

pub(crate) async fn run(command: CharterCommand) -> Result<()> {
    match command {
        CharterCommand::Draft(args) => {
            print!("{}", describe(&draft(&args).await?)?);
            println!("\nwritten to {}; next, each member: tapestry charter sign {0} --home HOME", args.out.display());
            Ok(())
        }
        CharterCommand::Sign { file, home, yes } => {
            print!("{}", describe(&read(&file)?)?);
            if !yes && !confirmed("\nSign this charter?")? {
                bail!("not signed");
            }
            let (member, charter) = sign(&file, &Home::at(&home))?;
            println!("\nsigned as {member}; {} of {} signatures", charter.signatures.len(), charter.document.quorum);
            Ok(())
        }
        CharterCommand::Publish { files, home } => {
            let home = Home::at(&home);
            let digest = publish(&files, &home).await?;
            println!("charter {digest} is in force; next: tapestry coordinator run --home {}", home.dir().display());
            Ok(())
        }
        CharterCommand::Show { file } => {
            print!("{}", describe(&read(&file)?)?);
            Ok(())
        }
    }
}

/// Writes an unsigned charter.
pub(crate) async fn draft(args: &DraftArgs) -> Result<Signed<Charter>> {
    if args.out.exists() {
        bail!("{} exists; sign it, or give another --out", args.out.display());
    }
    let home = Home::at(&args.home);
    let blobs = open_blobs(&home).await?;
    let key = home.key_or_new()?;
    let mut merge = args.policy.terms(args.influence_cap)?;
    let open_text = read_open_text(&args.open_text)?;
    let mut community_texts = vec![];
    for (member, path) in &args.policy.community_texts {
        community_texts.push((member.clone(), read_open_text(path)?));
    }
    let num_members = u32::try_from(args.members.len())?;
    let members: BTreeMap<_, _> = args.members.iter().cloned().collect();
    if members.len() != args.members.len() {
        bail!("a member's name is given twice; every member has a name of its own");
    }
    check_base(&args.base)?;
    let (base, _) = blobs.import_model(&args.base).await.context("cannot take in the base")?;
    let text = blobs.put(open_text.into_bytes().into()).await?;
    for (member, text) in community_texts {
        let (text, max_tokens) = (blobs.put(text.into_bytes().into()).await?, args.policy.community_text_max_tokens);
        merge.community_held_out.insert(member, HeldOutTerms { text, max_tokens });
    }
    let from = now();
    let terms = CharterTerms {
        consortium: args.consortium.clone(),
        version: 1,
        previous: None,
        members,
        coordinator: key.public(),
        standbys: args.standbys.iter().copied().collect(),
        quorum: args.quorum.unwrap_or(num_members),
        base,
        open_held_out: HeldOutTerms { text, max_tokens: args.open_text_max_tokens },
        rounds: RoundTerms {
            num_rounds: args.rounds,
            window_ms: u64::try_from(args.window.as_millis())?,
            min_contributions: args.min_contributions,
            late_rounds: args.late_rounds,
        },
        screening: ScreeningTerms {
            max_relative_change: args.max_relative_change,
            max_bpb_rise: args.max_contribution_rise,
        },
        merge,
        gate: GateTerms { max_bpb_rise: args.max_merged_rise },
        privacy_tier: 0,
        valid_from: from,
        valid_until: from.plus(args.valid_for),
    };
    let charter = Signed::unsigned(Charter::try_from(terms)?);
    write(&args.out, &charter)?;
    Ok(charter)
}

/// An open text, which has to fit a chunk: members get it whole or not at all.
fn read_open_text(path: &Path) -> Result<String> {
    let text = files::read_text(path)?;
    if text.len() as u64 > CHUNK_BYTES {
        bail!("{} has {} bytes; an open held-out text may have at most {CHUNK_BYTES}", path.display(), text.len());
    }
    Ok(text)
}

/// Checks that a folder holds a model that this version can train, and that every weight is a number.
fn check_base(dir: &Path) -> Result<()> {
    let files = HfDir::open(dir).context("cannot take in the base")?;
    let weights = SafetensorsModel::open(&files.weights_path)?;
    match weights.first_non_finite()? {
        None => Ok(()),
        Some((tensor, index)) => bail!(
            "{} holds NaN or infinity in tensor {} at element {index}; it cannot be a base",
            files.weights_path.display(),
            tensor.name
        ),
    }
}

/// Adds the signature of the node in `home`.
pub(crate) fn sign(file: &Path, home: &Home) -> Result<(MemberName, Signed<Charter>)> {
    let mut charter = read(file)?;
    let key = home.key()?;
    let member = charter.document.member_of(key.public()).context("this node is not listed in the charter")?.clone();
    charter.sign(&key)?;
    write(file, &charter)?;
    Ok((member, charter))
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: read the charter with `tapestry charter show`, then sign with --yes");
    }
    print!("{question} [yes/no] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Puts a charter in force at the coordinator in `home`.
pub(crate) async fn publish(paths: &[PathBuf], home: &Home) -> Result<Digest> {
    let mut charter = read(&paths[0])?;
    let digest = charter.digest()?;
    for path in &paths[1..] {
        let other = read(path)?;
        if other.digest()? != digest {
            bail!("{} is not the same charter as {}", path.display(), paths[0].display());
        }
        charter.signatures.extend(other.signatures);
    }
    coordinator::adopt_charter(home, charter).await?;
    Ok(digest)
}

fn read(path: &Path) -> Result<Signed<Charter>> {
    let text = files::read_text(path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a charter", path.display()))
}

/// Writes the charter in its canonical form, so that equal charters are equal files.
fn write(path: &Path, charter: &Signed<Charter>) -> Result<()> {
    files::write_atomic(path, &to_canonical_json(charter)?)
}

/// The charter for people.
pub(crate) fn describe(signed: &Signed<Charter>) -> Result<String> {
    let charter = &signed.document;
    let mut text = String::new();
    let rounds = &charter.rounds;
    let window = format_duration(charter.window());
    writeln!(text, "Charter of {}, version {}", charter.consortium, charter.version)?;
    writeln!(text, "  digest       {}", signed.digest()?)?;
    writeln!(text, "  holds        {} to {}", charter.valid_from, charter.valid_until)?;
    writeln!(text, "  coordinator  {}", charter.coordinator)?;
    for standby in &charter.standbys {
        writeln!(text, "  standby      {standby}, may take the coordinator's role over")?;
    }
    writeln!(text, "  base         {}", charter.base)?;
    let HeldOutTerms { text: held_out, max_tokens } = &charter.open_held_out;
    writeln!(text, "  open text    {held_out}, its first {max_tokens} tokens")?;
    writeln!(
        text,
        "  rounds       {}, each waits {window} for members and needs {} accepted contributions",
        rounds.num_rounds, rounds.min_contributions
    )?;
    match rounds.late_rounds {
        0 => writeln!(text, "  late         a contribution that misses its round counts in none")?,
        late => writeln!(
            text,
            "  late         a contribution that misses its round counts in a later one, up to {late} later, for less: see lateness"
        )?,
    }
    writeln!(
        text,
        "  screening    a contribution moves at most {} of the base's norm, and its bits per byte on the open text\n\
        \x20              rise at most {} %",
        charter.screening.max_relative_change,
        percent(charter.screening.max_bpb_rise)
    )?;
    text.push_str(&policy::describe(&charter.merge)?);
    writeln!(
        text,
        "  gate         a merged base's bits per byte on the open text are at most {} % above the adopted base's",
        percent(charter.gate.max_bpb_rise)
    )?;
    writeln!(text, "  privacy      tier {}", charter.privacy_tier)?;
    writeln!(text, "  binds with   {} of {} members' signatures:", charter.quorum, charter.members.len())?;
    for (name, key) in &charter.members {
        let state = if signed.signatures.contains_key(key) { "signed" } else { "not signed" };
        writeln!(text, "    {:<14} {key}  {state}", name.as_str())?;
    }
    match Charter::binding(signed, now()) {
        Ok(_) => writeln!(text, "  It binds.")?,
        Err(error) => writeln!(text, "  It does not bind yet: {error}")?,
    }
    Ok(text)
}

fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}
