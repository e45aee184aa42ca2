//! The merge policy of a charter: from what was typed to terms, and from terms to words for those who sign.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use tapestry_core::MemberName;
use tapestry_governance::{HeldOutTerms, MergeTerms};
use tapestry_merge::Method;
use tapestry_merge::weights::Weighting;

/// How contributions are weighed and merged, as typed.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct PolicyArgs {
    /// What is computed from the accepted contributions; docs/merge.md lists the methods.
    #[arg(long, value_name = "METHOD", default_value = "fedavg")]
    pub(crate) merge_method: String,
    /// A parameter of the method, such as `trim=1`; once for each.
    #[arg(long = "merge-parameter", value_name = "NAME=VALUE", value_parser = parse_parameter)]
    pub(crate) merge_parameters: Vec<(String, Value)>,
    /// How much each contribution counts: uniform, quality-weighted, culturally-aware or data-proportional;
    /// docs/merge-policy.md says who gains by each.
    #[arg(long, value_name = "WEIGHTING", default_value = "uniform")]
    pub(crate) weighting: String,
    /// A parameter of the weighting, such as `temperature=0.05`; once for each.
    #[arg(long = "weighting-parameter", value_name = "NAME=VALUE", value_parser = parse_parameter)]
    pub(crate) weighting_parameters: Vec<(String, Value)>,
    /// An open text of a member's own community, for `--weighting culturally-aware`; once for each member. All members can
    /// read it, none trains on it.
    #[arg(long = "community-text", value_name = "MEMBER=FILE", value_parser = parse_text)]
    pub(crate) community_texts: Vec<(MemberName, PathBuf)>,
    /// How many tokens of each community's text are scored.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) community_text_max_tokens: u32,
    /// A contribution that is late by s rounds has its weight divided by (1 + s) to this power; 0 counts it in full.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) staleness_exponent: f64,
    /// Let the charter weigh members by the tokens that they state. A capture risk: nobody can check the statement.
    #[arg(long)]
    pub(crate) allow_data_proportional: bool,
}

impl Default for PolicyArgs {
    /// What the command line means where nothing is said.
    fn default() -> Self {
        Self {
            merge_method: "fedavg".into(),
            merge_parameters: vec![],
            weighting: "uniform".into(),
            weighting_parameters: vec![],
            community_texts: vec![],
            community_text_max_tokens: 20_000,
            staleness_exponent: 0.5,
            allow_data_proportional: false,
        }
    }
}

impl PolicyArgs {
    /// The terms, still without the texts of [`Self::community_texts`].
    pub(crate) fn terms(&self, influence_cap: f64) -> Result<MergeTerms> {
        let members: BTreeSet<_> = self.community_texts.iter().map(|(member, _)| member).collect();
        if members.len() != self.community_texts.len() {
            bail!("--community-text names a member twice; every member has one text");
        }
        Ok(MergeTerms {
            method: configured::<Method>("--merge-method", &self.merge_method, &self.merge_parameters)?,
            weighting: configured::<Weighting>("--weighting", &self.weighting, &self.weighting_parameters)?,
            influence_cap,
            staleness_exponent: self.staleness_exponent,
            allow_data_proportional: self.allow_data_proportional,
            community_held_out: BTreeMap::new(),
        })
    }
}

/// What a name and parameters stand for, by the same rules as in a charter.
fn configured<T: DeserializeOwned>(flag: &str, name: &str, parameters: &[(String, Value)]) -> Result<T> {
    let mut object = Map::from_iter([("name".to_owned(), Value::from(name))]);
    for (parameter, value) in parameters {
        if object.insert(parameter.clone(), value.clone()).is_some() {
            bail!("{flag} {name}: parameter `{parameter}` is given twice");
        }
    }
    serde_json::from_value(Value::Object(object)).with_context(|| format!("{flag} {name} cannot be used like this"))
}

fn parse_parameter(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as trim=1")?;
    let number: Value = serde_json::from_str(value).map_err(|_| format!("`{value}` is not a number"))?;
    if name.is_empty() || name == "name" || !(number.is_number() || number.is_boolean()) {
        return Err(format!("expected a parameter's name and a number, such as trim=1; found {text:?}"));
    }
    Ok((name.to_owned(), number))
}

fn parse_text(text: &str) -> Result<(MemberName, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected MEMBER=FILE")?;
    let name = name.parse().map_err(|e: tapestry_core::NameError| e.to_string())?;
    Ok((name, file.into()))
}

/// A method or a weighting with its parameters: `trimmed-mean (trim 1)`.
fn in_short(configuration: &impl serde::Serialize) -> Result<String> {
    let Value::Object(mut fields) = serde_json::to_value(configuration)? else { bail!("a configuration has fields") };
    let name = fields.remove("name").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
    let parameters: Vec<String> = fields.iter().map(|(field, value)| format!("{field} {value}")).collect();
    Ok(if parameters.is_empty() { name } else { format!("{name} ({})", parameters.join(", ")) })
}

/// The merge policy for people: the lines of `tapestry charter show` that say how contributions are weighed and merged.
pub(crate) fn describe(terms: &MergeTerms) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "  merge        {}", in_short(&terms.method)?)?;
    writeln!(text, "  weights      {}: {}", in_short(&terms.weighting)?, terms.weighting.in_words())?;
    writeln!(text, "  cap          nobody weighs more than {}", terms.influence_cap)?;
    writeln!(text, "  lateness     late by s rounds counts 1 / (1 + s)^{}", terms.staleness_exponent)?;
    for (member, HeldOutTerms { text: digest, max_tokens }) in &terms.community_held_out {
        writeln!(text, "  own text     {member}: {digest}, its first {max_tokens} tokens")?;
    }
    for risk in risks(terms) {
        writeln!(text, "  RISK         {risk}")?;
    }
    Ok(text)
}

/// What those who sign should know of a policy, beyond what it does.
fn risks(terms: &MergeTerms) -> Vec<&'static str> {
    let mut risks = vec![];
    match &terms.weighting {
        Weighting::Uniform(_) => {}
        Weighting::QualityWeighted(_) => risks.push(
            "whose language the open text is in decides whose improvement is seen; a member that trains on the open text, \
             against the charter, gains weight",
        ),
        Weighting::DataProportional(_) => risks.push(
            "the number of tokens is each member's own statement; the largest member, or the boldest statement, sets the \
             direction up to the cap",
        ),
        Weighting::CulturallyAware(_) => risks.push(
            "each member's own text decides a part of its weight: read every text before you sign; one that is easy to improve \
             on buys weight up to the cap",
        ),
    }
    match &terms.method {
        Method::Krum(_) => risks.push("the result is ONE member's contribution, the one nearest to the others"),
        Method::MultiKrum(_) => risks.push("only the selected contributions count, those nearest to the others"),
        Method::Median(_) | Method::TrimmedMean(_) => risks.push(
            "what few members alone have learnt is taken for an error and cut off: protection against one comes at the cost of \
             minorities",
        ),
        Method::GeometricMedian(_) => {
            risks.push("members far from the others count less than their weight says: a minority is pulled to the majority");
        }
        Method::DiLoCo(_) | Method::FedAdam(_) | Method::FedYogi(_) => {
            risks.push("past rounds go on acting through the optimiser's state, those of members that have left included");
        }
        Method::TaskArithmetic(method) if method.scale > 1.0 => {
            risks.push("changes are scaled up: together the members move the base further than each of them did");
        }
        Method::FedAvg(_)
        | Method::NormBounding(_)
        | Method::CentredClipping(_)
        | Method::TaskArithmetic(_)
        | Method::Ties(_)
        | Method::Dare(_)
        | Method::DareTies(_)
        | Method::Slerp(_)
        | Method::ModelStock(_) => {}
    }
    risks
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    fn parse(line: &str) -> Result<PolicyArgs, clap::Error> {
        let command = PolicyArgs::augment_args(clap::Command::new("draft"));
        PolicyArgs::from_arg_matches(&command.try_get_matches_from(std::iter::once("draft").chain(line.split(' ')))?)
    }

    fn terms(line: &str) -> Result<MergeTerms> {
        parse(line)?.terms(0.5)
    }

    #[test]
    fn saying_nothing_means_the_default() {
        let command = PolicyArgs::augment_args(clap::Command::new("draft"));
        let matches = command.try_get_matches_from(["draft"]).expect("no flag is needed");
        let parsed = PolicyArgs::from_arg_matches(&matches).expect("parses");
        assert_eq!(parsed, PolicyArgs::default());
        assert_eq!(parsed.terms(0.5).expect("terms"), MergeTerms::plain(0.5));
    }

    #[test]
    fn methods_and_weightings_are_named_with_their_parameters() {
        let robust = terms("--merge-method trimmed-mean --merge-parameter trim=1").expect("terms");
        assert_eq!(in_short(&robust.method).expect("in short"), "trimmed-mean (trim 1)");
        let weighed = terms("--weighting quality-weighted --weighting-parameter temperature=0.05").expect("terms");
        assert_eq!(in_short(&weighed.weighting).expect("in short"), "quality-weighted (temperature 0.05)");
    }

    #[test]
    fn a_wrong_name_or_parameter_is_refused_with_what_was_expected() {
        let check = |line: &str, expected: &str| {
            let message = match parse(line) {
                Ok(args) => format!("{:#}", args.terms(0.5).expect_err("refused")),
                Err(error) => error.to_string(),
            };
            assert!(message.contains(expected), "{line}: {message}");
        };
        check("--merge-method mean", "expected one of `fedavg`");
        check("--merge-method trimmed-mean", "missing field `trim`");
        check("--merge-method fedavg --merge-parameter trim=1", "unknown field `trim`");
        check("--merge-method trimmed-mean --merge-parameter trim=1 --merge-parameter trim=2", "given twice");
        check("--merge-method trimmed-mean --merge-parameter trim=one", "is not a number");
        check("--merge-method trimmed-mean --merge-parameter trim", "expected NAME=VALUE");
        check("--merge-parameter name=1", "expected a parameter's name");
        check("--weighting fair", "expected one of `uniform`");
        check("--weighting quality-weighted", "missing field `temperature`");
        check("--community-text france", "expected MEMBER=FILE");
    }

    #[test]
    fn a_member_with_two_texts_is_refused() {
        let args = parse("--community-text iran=a.txt --community-text iran=b.txt").expect("parses");
        assert!(args.terms(0.5).expect_err("refused").to_string().contains("twice"));
    }

    #[test]
    fn those_who_sign_are_told_the_risks() {
        let check = |line: &str, expected: &str| {
            let text = describe(&terms(line).expect("terms")).expect("describes");
            assert!(text.contains(expected), "{text}");
        };
        assert!(!describe(&MergeTerms::plain(0.5)).expect("describes").contains("RISK"));
        check("--weighting data-proportional --allow-data-proportional", "CAPTURE RISK");
        check("--weighting quality-weighted --weighting-parameter temperature=0.05", "RISK         whose language");
        check("--merge-method krum --merge-parameter faulty=1", "ONE member's contribution");
    }
}
