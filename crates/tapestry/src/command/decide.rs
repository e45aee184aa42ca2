//! What members decide, from the command line: proposals, votes, the history of the charter; leaving; another key.

use super::charter::{confirmed, read};
use super::{dial, log};
use crate::cli::{ChoiceArg, ProposeArgs};
use crate::clock::now;
use crate::coordinator::governing::OpenVote;
use crate::files;
use crate::home::Home;
use crate::role::Role;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use tapestry_core::{MemberName, PublicKey, Signed, format_duration, to_canonical_json};
use tapestry_governance::{
    Change, Charter, CharterHistory, CharterTerms, Choice, Credit, CreditKind, Governance, Proposal, Step, Vote,
    legal_quorum,
};
use tapestry_net::Dialer;
use tapestry_round::node::{Node, NodeInput};

/// Who signs: the member of a node's home.
struct Own {
    dialer: Dialer,
    governance: Governance,
    member: MemberName,
}

impl Own {
    /// Asks the coordinator how governance stands, and checks all of it.
    async fn of(home: &Home) -> Result<Self> {
        let dialer = dial::coordinator(home).await?;
        let history: CharterHistory = dialer.get_json("/v1/governance").await?;
        let governance = Governance::of(&history).context("the history of the charter, as the coordinator tells it")?;
        // What this node follows already cannot have become another history.
        let (known, _) = log::published(home).await?;
        ensure!(
            governance.knows(&known.digest()?),
            "the coordinator tells a history of the charter that does not contain the charter that this node follows"
        );
        let key = home.public_key()?;
        let waits =
            home.path("key-next.pem").exists() && governance.member_of(&home.next_key_or_new()?.public()).is_some();
        ensure!(
            !waits,
            "this member has another key by now: start its node once (tapestry node run), and it changes over"
        );
        let member = governance.member_of(&key).context("this home's key is not that of a member in force")?.clone();
        Ok(Self { dialer, governance, member })
    }
}

pub(crate) async fn propose(args: &ProposeArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let own = Own::of(&home).await?;
    let change = change_of(args, &own.governance)?;
    let kinds = own.governance.kinds_of(&change)?;
    let terms =
        own.governance.charter().document.governance.as_ref().context("the charter has no rules for deciding")?;
    let open_for = args.open_for.unwrap_or(Duration::from_millis(terms.decisions.min_open_ms));
    let made_at = now();
    let proposal = Proposal {
        charter: own.governance.digest(),
        member: own.member.clone(),
        change,
        rationale: args.rationale.clone(),
        consulted: args.consulted.clone(),
        made_at,
        closes_at: made_at.plus(open_for),
    };
    let signed = Signed::by(proposal, &home.key()?)?;
    own.governance.check_proposal(&signed)?;
    let tally = own.governance.tally(&signed.document, std::iter::empty())?;
    print!("{}", describe_change(&signed.document.change, &own.governance)?);
    println!(
        "This decides: {}. It needs the votes of {} of {} members, and is open until {}.",
        kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        tally.required,
        tally.num_members,
        signed.document.closes_at
    );
    if args.dry_run {
        println!("Nothing was sent.");
        return Ok(());
    }
    own.dialer.post_json::<_, ()>("/v1/proposals", &signed).await?;
    println!(
        "proposal {}; next, each member: tapestry charter vote {} yes|no|abstain --home HOME --reason TEXT",
        signed.digest()?,
        signed.digest()?.short()
    );
    Ok(())
}

fn change_of(args: &ProposeArgs, governance: &Governance) -> Result<Change> {
    let mut terms = governance.next_terms();
    let before = terms.clone();
    for (name, key) in &args.admit {
        ensure!(
            terms.members.insert(name.clone(), *key).is_none(),
            "{name} is a member already; --recover gives another key"
        );
    }
    for name in &args.eject {
        ensure!(terms.members.remove(name).is_some(), "{name} is no member");
        terms.merge.community_held_out.remove(name);
    }
    for (name, key) in &args.recover {
        ensure!(terms.members.insert(name.clone(), *key).is_some(), "{name} is no member; --admit admits one");
    }
    terms.quorum = legal_quorum(terms.quorum, terms.members.len());
    if let Some(key) = args.coordinator {
        terms.coordinator = key;
        terms.standbys.remove(&key);
    }
    if let (Some(path), Some(rules)) = (&args.text, &mut terms.governance) {
        rules.text = files::read_text(path)?;
    }
    let mut value = serde_json::to_value(&terms)?;
    for setting in &args.set {
        set(&mut value, setting)?;
    }
    let terms: CharterTerms = serde_json::from_value(value).context("these terms are no charter")?;
    let credits = args.credits.iter().map(|text| parse_credit(text)).collect::<Result<Vec<_>>>()?;
    if credits.is_empty() {
        return Ok(Change::Charter(Box::new(terms)));
    }
    ensure!(terms == before, "credits are proposed by themselves, not together with a change of the charter");
    Ok(Change::Credits(credits))
}

/// Changes one term, `PATH=VALUE`.
fn set(terms: &mut Value, setting: &str) -> Result<()> {
    let (path, text) = setting.split_once('=').with_context(|| format!("expected TERM=VALUE; found {setting:?}"))?;
    let mut place = &mut *terms;
    for part in path.split('.') {
        let known = place.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>().join(", "));
        place = place.get_mut(part).with_context(|| {
            format!("{path}: the charter has no term {part:?} there; there are: {}", known.unwrap_or_default())
        })?;
    }
    // A number, a truth value, a structure; or else a text as it stands.
    *place = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    Ok(())
}

fn parse_credit(text: &str) -> Result<Credit> {
    let expected = "expected NAME:engineering|data|compute|evaluation:AMOUNT:UNIT:WHAT FOR";
    let parts: Vec<&str> = text.splitn(5, ':').collect();
    let [member, kind, amount, unit, what] = parts.as_slice() else { bail!("{expected}; found {text:?}") };
    let kind = match *kind {
        "engineering" => CreditKind::Engineering,
        "data" => CreditKind::Data,
        "compute" => CreditKind::Compute,
        "evaluation" => CreditKind::Evaluation,
        other => bail!("{expected}; found the kind {other:?}"),
    };
    let amount = amount.parse().with_context(|| format!("{expected}; {amount:?} is no whole number"))?;
    Ok(Credit { member: member.parse()?, kind, amount, unit: (*unit).into(), what: (*what).into() })
}

pub(crate) async fn vote(home: &Home, prefix: &str, choice: ChoiceArg, reason: String) -> Result<()> {
    ensure!(prefix.len() >= 6, "give at least the first six digits of the proposal's digest");
    let own = Own::of(home).await?;
    let open = open_votes(&own.dialer).await?;
    let mut found = open.iter().filter(|open| open.digest.to_string().starts_with(prefix));
    let open =
        found.next().with_context(|| format!("no open proposal begins with {prefix}: tapestry charter proposals"))?;
    ensure!(found.next().is_none(), "several open proposals begin with {prefix}; give more digits");
    // The coordinator names it; what is signed is its content.
    let proposal = own.governance.check_proposal(&open.proposal)?;
    let digest = open.proposal.digest()?;
    ensure!(digest == open.digest, "the coordinator shows a proposal under a digest that is not its own");
    let choice = match choice {
        ChoiceArg::Yes => Choice::Yes,
        ChoiceArg::No => Choice::No,
        ChoiceArg::Abstain => Choice::Abstain,
    };
    print!("{}", describe_change(&proposal.change, &own.governance)?);
    let vote = Vote { charter: own.governance.digest(), proposal: digest, member: own.member.clone(), choice, reason };
    let signed = Signed::by(vote, &home.key()?)?;
    own.governance.check_vote(&signed, digest)?;
    own.dialer.post_json::<_, ()>("/v1/votes", &signed).await?;
    println!("{} has voted {choice} on proposal {}", own.member, digest.short());
    Ok(())
}

async fn open_votes(dialer: &Dialer) -> Result<Vec<OpenVote>> {
    Ok(dialer.get_json("/v1/proposals").await?)
}

pub(crate) async fn proposals(home: &Home, json: bool) -> Result<()> {
    let dialer = dial::coordinator(home).await?;
    let open = open_votes(&dialer).await?;
    if json {
        println!("{}", serde_json::to_string(&open)?);
        return Ok(());
    }
    if open.is_empty() {
        println!("No proposal is open.");
    }
    let history: CharterHistory = dialer.get_json("/v1/governance").await?;
    let governance = Governance::of(&history)?;
    for open in &open {
        let proposal = &open.proposal.document;
        println!("Proposal {} by {}, open until {}", open.digest.short(), proposal.member, open.closes_at);
        print!("{}", indented(&describe_change(&proposal.change, &governance)?));
        println!("  Rationale: {}", proposal.rationale.trim());
        for party in &proposal.consulted {
            println!("  Consulted: {party}");
        }
        let kinds: Vec<_> = open.kinds.iter().map(ToString::to_string).collect();
        println!("  Decides {}: needs {} of {} members", kinds.join(", "), open.required, open.num_members);
        for vote in open.votes.iter().map(|vote| &vote.document) {
            println!("    {:<14} {:<8} {}", vote.member.as_str(), vote.choice.to_string(), vote.reason.trim());
        }
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// What a change changes, in words.
pub(crate) fn describe_change(change: &Change, governance: &Governance) -> Result<String> {
    let mut text = String::new();
    match change {
        Change::Charter(terms) => {
            let current: CharterTerms = governance.charter().document.clone().into();
            text.push_str(&diff(&current, terms)?);
        }
        Change::Credits(credits) => {
            for Credit { member, kind, amount, unit, what } in credits {
                writeln!(text, "credit to {member}: {amount} {unit} of {kind}, for {what}")?;
            }
        }
    }
    Ok(text)
}

/// Term by term, what differs between two charters.
pub(crate) fn diff(from: &CharterTerms, to: &CharterTerms) -> Result<String> {
    let mut text = String::new();
    let (from, to) = (serde_json::to_value(from)?, serde_json::to_value(to)?);
    compare(&mut text, "", &from, &to)?;
    Ok(text)
}

fn compare(text: &mut String, path: &str, from: &Value, to: &Value) -> Result<()> {
    if from == to || matches!(path, "version" | "previous") {
        return Ok(());
    }
    if let (Some(before), Some(after)) = (from.as_object(), to.as_object()) {
        let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let absent = Value::Null;
            compare(text, &path, before.get(name).unwrap_or(&absent), after.get(name).unwrap_or(&absent))?;
        }
        return Ok(());
    }
    if path == "governance.text" {
        return compare_lines(text, from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
    }
    match (from, to) {
        (Value::Null, to) => writeln!(text, "{path}: added, {to}")?,
        (from, Value::Null) => writeln!(text, "{path}: removed (was {from})")?,
        (from, to) => writeln!(text, "{path}: {from} -> {to}{}", in_words(path, to))?,
    }
    Ok(())
}

/// The lines of the agreement in words that go and come.
fn compare_lines(text: &mut String, from: &str, to: &str) -> Result<()> {
    writeln!(text, "the agreement in words:")?;
    for line in from.lines().filter(|line| !to.lines().any(|other| other == *line)) {
        writeln!(text, "  - {line}")?;
    }
    for line in to.lines().filter(|line| !from.lines().any(|other| other == *line)) {
        writeln!(text, "  + {line}")?;
    }
    Ok(())
}

fn in_words(path: &str, value: &Value) -> String {
    let duration = value.as_u64().filter(|_| path.ends_with("_ms")).map(Duration::from_millis);
    duration.map_or_else(String::new, |duration| format!(" ({})", format_duration(duration)))
}

/// One version or decision of a history.
#[derive(Debug, Serialize)]
struct Told<'a> {
    charter_version: u32,
    charter: String,
    step: Option<&'a Step>,
}

pub(crate) async fn history(home: &Home, out: Option<&Path>, json: bool) -> Result<()> {
    let history = log::governance(home).await?.history();
    if let Some(out) = out {
        files::write_atomic(out, &to_canonical_json(&history)?)?;
    }
    let mut governance = Governance::found(history.founding.clone())?;
    let told = |governance: &Governance, step| Told {
        charter_version: governance.charter().document.version,
        charter: governance.digest().to_string(),
        step,
    };
    if json {
        println!("{}", serde_json::to_string(&told(&governance, None))?);
    } else {
        let charter = &history.founding;
        let signers: Vec<_> =
            charter.signatures.keys().filter_map(|key| charter.document.member_of(*key).ok()).collect();
        let signers: Vec<_> = signers.iter().map(|name| name.as_str()).collect();
        println!("Charter of {}", charter.document.consortium);
        println!("version 1   {}  founded; signed by {}", governance.digest().short(), signers.join(", "));
    }
    for step in &history.steps {
        let before = governance.clone();
        governance.follow(step)?;
        if json {
            println!("{}", serde_json::to_string(&told(&governance, Some(step)))?);
            continue;
        }
        let version = governance.charter().document.version;
        let name = format!("version {version:<3} {}", governance.digest().short());
        match step {
            Step::Adopted { proposal, votes } => {
                let document = &proposal.document;
                println!("{name}  decided: proposal {} by {}", proposal.digest()?.short(), document.member);
                print!("{}", indented(&indented(&describe_change(&document.change, &before)?)));
                println!("    because: {}", document.rationale.trim());
                for vote in votes.iter().map(|vote| &vote.document) {
                    println!("    {:<14} {:<8} {}", vote.member.as_str(), vote.choice.to_string(), vote.reason.trim());
                }
            }
            Step::Rotated(rotation) => {
                println!("{name}  {} took key {}", rotation.document.member, rotation.document.to.short());
            }
            Step::Left(departure) => {
                println!("{name}  {} left: {}", departure.document.member, departure.document.reason.trim());
            }
            Step::Founded(_) => println!("{name}  rules for deciding, by the signatures of the quorum"),
        }
    }
    if !json {
        println!("All of it holds: {} steps, each with its own proof.", history.steps.len());
    }
    Ok(())
}

/// What differs between two versions, or two files.
pub(crate) async fn show_diff(from: &str, to: &str, home: Option<&Path>) -> Result<()> {
    let governance = match home {
        Some(home) => Some(log::governance(&Home::at(home)).await?),
        None => None,
    };
    let terms = |name: &str| -> Result<CharterTerms> {
        let Some(governance) = &governance else { return Ok(read(Path::new(name))?.document.into()) };
        let version: u32 = name.parse().with_context(|| format!("expected the number of a version; found {name:?}"))?;
        let mut replayed = Governance::found(governance.founding().clone())?;
        let mut charter: Option<Charter> = None;
        for step in std::iter::once(None).chain(governance.steps().iter().map(Some)) {
            if let Some(step) = step {
                replayed.follow(step)?;
            }
            if replayed.charter().document.version == version {
                charter = Some(replayed.charter().document.clone());
            }
        }
        Ok(charter.with_context(|| format!("there was no version {version}"))?.into())
    };
    let text = diff(&terms(from)?, &terms(to)?)?;
    print!("{}", if text.is_empty() { "They do not differ.\n" } else { &text });
    Ok(())
}

pub(crate) async fn leave(home: &Home, reason: String, yes: bool) -> Result<()> {
    let _lock =
        home.lock().context("stop the node first; it goes on to its Sovereign Build when it is started again")?;
    let key = home.key()?;
    let mut role = Role::<Node>::open(home, &key).await?;
    let departure = role.state().departure(reason)?;
    println!(
        "{} leaves the consortium, for good. It keeps all that it has: its data, its models, every Shared Base that it holds.",
        departure.member
    );
    if !yes && !confirmed("Leave?")? {
        bail!("not left");
    }
    let departure = Signed::by(departure, &key)?;
    let events = role.state().handle(now(), NodeInput::Leave { departure })?;
    role.record(events).await?;
    println!(
        "left; next: tapestry node run --home {0} tells the coordinator and builds the Sovereign Model",
        home.dir().display()
    );
    Ok(())
}

pub(crate) async fn rotate_key(home: &Home) -> Result<()> {
    let own = Own::of(home).await?;
    let key = home.key()?;
    let state = log::fold::<Node>(home, log::founder(home, None).await?).await?;
    ensure!(state.key() == key.public(), "this home's key is not the one that its log is written with");
    let next = home.next_key_or_new()?;
    let mut rotation = state.rotation(next.public())?;
    rotation.charter = own.governance.digest();
    let mut signed = Signed::by(rotation, &key)?;
    signed.sign(&next)?;
    own.governance.check_rotation(&signed)?;
    own.dialer.post_json::<_, ()>("/v1/rotation", &signed).await?;
    println!(
        "{} takes key {} as soon as no round is open; its node changes over by itself",
        own.member,
        PublicKey::short(&next.public())
    );
    Ok(())
}
