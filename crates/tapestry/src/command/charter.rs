//! `tapestry charter`.

use super::{decide, log, records};
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
use tapestry_governance::{
    Charter, CharterTerms, DecisionKind, DecisionTerms, GateTerms, Governance, GovernanceTerms, HeldOutTerms, Leaving,
    RoundTerms, ScreeningTerms,
};
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
        CharterCommand::Show { file: Some(file), .. } => {
            print!("{}", describe(&read(&file)?)?);
            Ok(())
        }
        CharterCommand::Show { file: None, home } => {
            let home = Home::at(&home.context("give a file, or --home")?);
            let governance = log::governance(&home).await?;
            print!("{}", describe_governed(&governance)?);
            Ok(())
        }
        CharterCommand::Propose(args) => decide::propose(&args).await,
        CharterCommand::Vote { proposal, choice, home, reason } => {
            decide::vote(&Home::at(&home), &proposal, choice, reason).await
        }
        CharterCommand::Proposals { home, json } => decide::proposals(&Home::at(&home), json).await,
        CharterCommand::History { home, out, json } => decide::history(&Home::at(&home), out.as_deref(), json).await,
        CharterCommand::Records { home, key, out } => {
            let count = records::publish(&Home::at(&home), key, &out).await?;
            let noun = if count == 1 { "decision is" } else { "decisions are" };
            println!("{count} {noun} in {}; open index.html there", out.display());
            Ok(())
        }
        CharterCommand::Diff { from, to, home } => decide::show_diff(&from, &to, home.as_deref()).await,
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
        governance: Some(governance_terms(args, num_members)?),
    };
    let charter = Signed::unsigned(Charter::try_from(terms)?);
    write(&args.out, &charter)?;
    Ok(charter)
}

/// How the consortium will govern itself.
fn governance_terms(args: &DraftArgs, num_members: u32) -> Result<GovernanceTerms> {
    let text = args.text.as_deref().map(files::read_text).transpose()?.unwrap_or_default();
    let weighty = [
        DecisionKind::Eject,
        DecisionKind::Coordinator,
        DecisionKind::Text,
        DecisionKind::Decisions,
        DecisionKind::RecoverKey,
    ];
    let mut percent: BTreeMap<_, _> =
        DecisionKind::ALL.map(|kind| (kind, if weighty.contains(&kind) { 66 } else { 50 })).into();
    for rule in &args.decide_by {
        let (kind, number) = rule.split_once('=').map_or((None, rule.as_str()), |(kind, number)| (Some(kind), number));
        let number: u8 =
            number.parse().with_context(|| format!("expected [KIND=]PERCENT, such as eject=66; found {rule:?}"))?;
        match kind {
            None => percent.values_mut().for_each(|percent| *percent = number),
            Some(kind) => {
                let parsed = serde_json::from_value(serde_json::Value::String(kind.replace('-', "_")));
                let kind = parsed.with_context(|| format!("there is no kind of decision {kind:?}"))?;
                percent.insert(kind, number);
            }
        }
    }
    let min_open_ms = u64::try_from(args.min_vote.as_millis())?;
    Ok(GovernanceTerms {
        text,
        decisions: DecisionTerms { min_open_ms, percent },
        witnesses: args.witnesses.unwrap_or(num_members / 2 + 1),
        leaving: if args.leaving_withdraws { Leaving::Withdrawn } else { Leaving::Counts },
    })
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

pub(super) fn confirmed(question: &str) -> Result<bool> {
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

pub(super) fn read(path: &Path) -> Result<Signed<Charter>> {
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
    match &charter.governance {
        Some(terms) => text.push_str(&describe_rules(terms, charter.members.len())?),
        None => writeln!(text, "  decisions    none by vote: a charter of the form charter/4")?,
    }
    if charter.version > 1 && signed.signatures.is_empty() {
        writeln!(text, "  members")?;
        for (name, key) in &charter.members {
            writeln!(text, "    {:<14} {key}", name.as_str())?;
        }
        return Ok(text);
    }
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

/// The rules by which members decide, witness and leave.
fn describe_rules(terms: &GovernanceTerms, num_members: usize) -> Result<String> {
    let mut text = String::new();
    let open = format_duration(std::time::Duration::from_millis(terms.decisions.min_open_ms));
    writeln!(
        text,
        "  decisions    a proposal is open for at least {open}, or until all have voted; nobody has a veto. Votes needed:"
    )?;
    for (kind, percent) in &terms.decisions.percent {
        let required = terms.decisions.required(*kind, num_members);
        writeln!(text, "    {required} of {num_members} (more than {percent} %)  {kind}")?;
    }
    let warning = match terms.witnesses as usize {
        0 => ": nobody would notice a coordinator that shows different histories to different members",
        few if 2 * few <= num_members => ": two halves of the members could be shown different histories",
        _ => "",
    };
    writeln!(
        text,
        "  witnesses    a round opens when {} of {num_members} members have cosigned the coordinator's log{warning}",
        terms.witnesses
    )?;
    let open_round = match terms.leaving {
        Leaving::Counts => "counts",
        Leaving::Withdrawn => "is withdrawn, unless the merge has begun",
    };
    writeln!(
        text,
        "  leaving      at any time, at once, without anybody's leave; what a member has contributed to the open round {open_round}; what \
         it\n\x20              contributed before stays in the bases that came of it, and in the accounts"
    )?;
    if !terms.text.trim().is_empty() {
        writeln!(text, "  in words")?;
        for line in terms.text.trim().lines() {
            writeln!(text, "    {line}")?;
        }
    }
    Ok(text)
}

/// The charter in force at a role, and who is not in force any more.
fn describe_governed(governance: &Governance) -> Result<String> {
    let mut text = describe(governance.charter())?;
    let charter = &governance.charter().document;
    for name in charter.members.keys().filter(|name| !governance.is_member(name)) {
        writeln!(text, "  {name} has left.")?;
    }
    let steps = governance.steps().len();
    writeln!(text, "  In force after {steps} steps since the founding: tapestry charter history tells them.")?;
    Ok(text)
}

fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}
