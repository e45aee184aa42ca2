//! `tapestry node init`, `tapestry node join` and `tapestry node participate`.

use super::charter::describe;
use crate::cli::ParticipationMode;
use crate::clock::now;
use crate::home::Home;
use crate::participation;
use crate::role::Role;
use crate::settings::{CoordinatorAddress, Evaluation, Machine, NodeSettings, Texts, Training};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use tapestry_core::{Digest, MemberName, PublicKey};
use tapestry_governance::{CharterHistory, Governance};
use tapestry_net::Dialer;
use tapestry_round::Decline;
use tapestry_round::node::{Node, NodeInput, Participation};

/// Makes a node's home.
pub(crate) fn init(home: &Home, contributed: &[PathBuf], private: &[PathBuf], held_out: &Path) -> Result<PublicKey> {
    if home.path("node.toml").exists() {
        bail!("{} is a node's home already; edit its node.toml, or give another --home", home.dir().display());
    }
    let absolute = |path: &Path| -> Result<PathBuf> {
        crate::files::read_long_text(path)?;
        Ok(std::path::absolute(path)?)
    };
    let texts = Texts {
        contributed: contributed.iter().map(|p| absolute(p)).collect::<Result<_>>()?,
        private: private.iter().map(|p| absolute(p)).collect::<Result<_>>()?,
        held_out: absolute(held_out)?,
    };
    for path in texts.contributed.iter().chain(&texts.private) {
        ensure!(*path != texts.held_out, "{} is held out, so it must not be trained on", path.display());
        let both = texts.contributed.contains(path) && texts.private.contains(path);
        ensure!(!both, "{} is given as contributed and as private; a text is one of them", path.display());
    }
    let settings = NodeSettings {
        coordinator: None,
        standbys: vec![],
        texts,
        contributed_cpt: Training::gentle(),
        private_cpt: Training::gentle(),
        evaluation: Evaluation { max_tokens: 20_000 },
        machine: Machine::default(),
        transfer: crate::transfer::TransferSettings::default(),
    };
    let key = home.key_or_new()?;
    settings.write(home)?;
    Ok(key.public())
}

/// Fetches the charter and follows it.
pub(crate) async fn join(home: &Home, url: &str, standbys: &[String], accept: Option<Digest>) -> Result<MemberName> {
    let mut settings = NodeSettings::read(home)?;
    let standbys = standbys.iter().map(|url| parse_url(url)).collect::<Result<Vec<_>>>()?;
    let _lock = home.lock()?;
    let key = home.key()?;
    let (address, coordinator_key) = parse_url(url)?;
    let dialer = Dialer::new(&address, coordinator_key, &key)?;
    let history: CharterHistory = dialer.get_json("/v1/governance").await.with_context(|| {
        format!("the coordinator at {address} gives no charter to this node's key {}", key.public())
    })?;
    let governance = Governance::of(&history).context("the history of the consortium, as the coordinator tells it")?;
    governance.check_time(now())?;
    let charter = governance.charter();
    let terms = &charter.document;
    terms.check_may_coordinate(coordinator_key)?;
    for (_, standby) in &standbys {
        terms.check_may_coordinate(*standby)?;
    }
    let member = terms.member_of(key.public())?.clone();
    let digest = governance.digest();
    let is_signed_here = history.founding.signatures.contains_key(&key.public());
    if !is_signed_here && accept != Some(digest) {
        print!("{}", describe(charter)?);
        bail!("this node's key has not signed that charter. If {member} agrees with it, join with --accept {digest}");
    }
    let mut role = Role::<Node>::open(home, &key).await?;
    let events = role.state().handle(now(), NodeInput::Join { history: Box::new(history) })?;
    settings.coordinator = Some(CoordinatorAddress { address, key: coordinator_key });
    settings.standbys = standbys.into_iter().map(|(address, key)| CoordinatorAddress { address, key }).collect();
    settings.write(home)?;
    role.record(events).await?;
    Ok(member)
}

/// Says how the member takes part from now on; what follows, for people.
pub(crate) fn participate(home: &Home, mode: ParticipationMode, reason: String) -> Result<&'static str> {
    NodeSettings::read(home)?;
    ensure!(
        reason.len() <= Decline::MAX_REASON_BYTES,
        "the reason has {} bytes; the other members are told at most {}",
        reason.len(),
        Decline::MAX_REASON_BYTES
    );
    let (participation, what) = match mode {
        ParticipationMode::Contribute => {
            ensure!(reason.is_empty(), "taking part needs no reason; leave --reason out");
            (Participation::Contribute, "This member contributes from now on.")
        }
        ParticipationMode::Private => (
            Participation::KeepPrivate { reason },
            "This member trains in each round and keeps the weights. What was sent already is not taken back.",
        ),
        ParticipationMode::Decline => {
            (Participation::Decline { reason }, "This member declines each round from now on.")
        }
        ParticipationMode::Away => (
            Participation::Away { reason },
            "This member is away; the node tells the coordinator when it runs, and rounds do not wait for it.",
        ),
    };
    participation::write(home, &participation)?;
    Ok(what)
}

/// `https://HOST:PORT#KEY`.
pub(crate) fn parse_url(url: &str) -> Result<(String, PublicKey)> {
    let expected = "expected https://HOST:PORT#KEY, as `tapestry coordinator run` prints it";
    let rest = url.strip_prefix("https://").with_context(|| format!("{expected}; found {url:?}"))?;
    let (address, key) = rest.split_once('#').with_context(|| {
        format!("{expected}; without the key after the # nobody knows whom this node would talk to")
    })?;
    let key = key.parse().with_context(|| format!("{expected}; the part after the # is wrong"))?;
    let address = address.trim_end_matches('/');
    ensure!(
        address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
        "{expected}; found {address:?}"
    );
    Ok((address.to_owned(), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_address_and_key() {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let (address, found) = parse_url(&format!("https://example.org:7443#{key}")).expect("parses");
        assert_eq!((address.as_str(), found.to_string().as_str()), ("example.org:7443", key));
        for wrong in ["example.org:7443", "http://a:1#00", "https://a:1", "https://a#", &format!("https://a#{key}")] {
            assert!(parse_url(wrong).is_err(), "{wrong}");
        }
    }
}
