//! A merge of local models, described in a file.

use crate::ContributionReport;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tapestry_core::Dtype;
use tapestry_merge::{Method, MethodError};

/// A longer file is no recipe.
const MAX_RECIPE_BYTES: u64 = 1 << 20;
/// More contributions than any consortium has.
const MAX_CONTRIBUTIONS: usize = 1000;
/// A contribution may be as far from the base as the base is long; one that was trained from it is a tenth of that or less.
const DEFAULT_MAX_RELATIVE_CHANGE: f64 = 1.0;

/// What to merge, how, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The method with its parameters.
    pub method: Method,
    /// What the contributions were trained from.
    pub base: Option<PathBuf>,
    /// The models to merge.
    pub contributions: Vec<RecipeContribution>,
    /// The output of an earlier merge by the same method, whose state this one continues.
    pub previous: Option<PathBuf>,
    /// The type of the result; without it, that of the inputs.
    pub dtype: Option<Dtype>,
    /// The farthest that a contribution may be from the base, as a share of the base's length.
    pub max_relative_change: f64,
    /// The folder to make.
    pub output: PathBuf,
}

/// One of the models to merge.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeContribution {
    /// Its name: that of the member, or else of its folder.
    pub name: String,
    /// A folder in Hugging Face layout or a safetensors file.
    pub path: PathBuf,
    /// How much it counts, in relation to the others.
    pub weight: f64,
}

/// Why a file is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML, or not a recipe.
    #[error("{path}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A field makes no sense.
    #[error("{path}: `{field}` must be {expected}; found {found}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is possible.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The method's parameters make no sense.
    #[error("{path}: {reason}")]
    Method {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: MethodError,
    },
}

/// What was typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    method: String,
    base: Option<PathBuf>,
    contributions: Vec<TypedContribution>,
    #[serde(default)]
    parameters: BTreeMap<String, serde_json::Value>,
    previous: Option<PathBuf>,
    dtype: Option<String>,
    max_relative_change: Option<f64>,
    output: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedContribution {
    path: PathBuf,
    weight: Option<f64>,
    name: Option<String>,
}

impl Recipe {
    /// Reads a recipe. Paths in it are relative to its own folder.
    ///
    /// # Errors
    /// [`RecipeError`], which names file, field and, where the syntax is at fault, the line.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let io = |source| RecipeError::Io { path: path.to_path_buf(), source };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_RECIPE_BYTES {
            let found = format!("a file of {size} bytes");
            return Err(field(path, "recipe", format!("at most {MAX_RECIPE_BYTES} bytes long"), found));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        Self::parse(&text, path)
    }

    /// The contributions with their shares, in the order of arithmetic.
    #[must_use]
    pub fn shares(&self) -> Vec<ContributionReport> {
        let sum: f64 = self.contributions.iter().map(|c| c.weight).sum();
        let report = |c: &RecipeContribution| ContributionReport {
            name: c.name.clone(),
            path: c.path.clone(),
            share: c.weight / sum,
        };
        self.contributions.iter().map(report).collect()
    }

    /// Reads a recipe from its text; `path` is for messages, and its folder is what paths are relative to.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        let syntax = |reason: String| RecipeError::Syntax { path: path.to_path_buf(), reason };
        let typed: Typed = serde_saphyr::from_str(text).map_err(|e| syntax(e.to_string()))?;
        let method = parse_method(&typed.method, typed.parameters).map_err(syntax)?;
        method.check().map_err(|reason| RecipeError::Method { path: path.to_path_buf(), reason })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let num = typed.contributions.len();
        if num == 0 || num > MAX_CONTRIBUTIONS {
            return Err(field(
                path,
                "contributions",
                format!("a list of 1 to {MAX_CONTRIBUTIONS} models"),
                num.to_string(),
            ));
        }
        let weighted = typed.contributions.iter().filter(|c| c.weight.is_some()).count();
        if weighted != 0 && weighted != num {
            let found = format!("{weighted} of {num}");
            return Err(field(path, "weight", "given for every contribution or for none".into(), found));
        }
        let mut contributions = vec![];
        for (index, typed) in typed.contributions.into_iter().enumerate() {
            let weight = typed.weight.unwrap_or(1.0);
            if !(weight > 0.0 && weight.is_finite()) {
                let expected = "a finite number above zero (to leave a contribution out, remove it)".into();
                return Err(field(path, &format!("contributions[{index}].weight"), expected, weight.to_string()));
            }
            let last = || typed.path.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = typed.name.clone().or_else(last).filter(|name| !name.is_empty() && name.len() <= 200);
            let Some(name) = name else {
                let found = format!("{:?}", typed.name);
                return Err(field(path, &format!("contributions[{index}].name"), "1 to 200 bytes long".into(), found));
            };
            contributions.push(RecipeContribution { name, path: folder.join(&typed.path), weight });
        }
        contributions.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = contributions.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let expected = "different for each contribution (a `name` tells two folders of one name apart)".into();
            return Err(field(path, "contributions", expected, format!("`{}` twice", pair[0].name)));
        }
        let dtype = match typed.dtype.as_deref() {
            None | Some("keep") => None,
            Some("f32") => Some(Dtype::F32),
            Some("bf16") => Some(Dtype::BF16),
            Some("f16") => Some(Dtype::F16),
            Some(other) => return Err(field(path, "dtype", "f32, bf16, f16 or keep".into(), format!("`{other}`"))),
        };
        let max_relative_change = typed.max_relative_change.unwrap_or(DEFAULT_MAX_RELATIVE_CHANGE);
        if !(max_relative_change > 0.0 && max_relative_change.is_finite()) {
            let expected = "a finite number above zero".into();
            return Err(field(path, "max_relative_change", expected, max_relative_change.to_string()));
        }
        Ok(Self {
            method,
            base: typed.base.map(|base| folder.join(base)),
            contributions,
            previous: typed.previous.map(|previous| folder.join(previous)),
            dtype,
            max_relative_change,
            output: folder.join(typed.output),
        })
    }
}

/// A method from its name and parameters, as people write them.
fn parse_method(name: &str, parameters: BTreeMap<String, serde_json::Value>) -> Result<Method, String> {
    let mut object: serde_json::Map<String, serde_json::Value> = parameters.into_iter().collect();
    if object.contains_key("name") {
        return Err("`parameters` has no field `name`; the method is named by `method`".into());
    }
    object.insert("name".into(), name.into());
    serde_json::from_value(object.into()).map_err(|error| format!("method `{name}`: {error}"))
}

fn field(path: &Path, field: &str, expected: String, found: String) -> RecipeError {
    RecipeError::Field { path: path.to_path_buf(), field: field.to_string(), expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "method: fedavg\ncontributions:\n  - path: b/model\n    weight: 3\n    name: beta\n  - path: ../a\n    weight: 1\noutput: out\n";

    fn refused(change: impl Fn(&str) -> String, expected: &str) {
        let error = Recipe::parse(&change(GOOD), Path::new("recipes/r.yaml")).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("recipes/r.yaml"), "{error}");
    }

    #[test]
    fn a_recipe_is_read_with_paths_from_its_own_folder_and_contributions_by_name() {
        let recipe = Recipe::parse(GOOD, Path::new("recipes/r.yaml")).expect("a recipe");
        let names: Vec<_> =
            recipe.contributions.iter().map(|c| (c.name.as_str(), c.path.as_path(), c.weight)).collect();
        assert_eq!(names, [("a", Path::new("recipes/../a"), 1.0), ("beta", Path::new("recipes/b/model"), 3.0)]);
        assert_eq!(recipe.output, Path::new("recipes/out"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_field_and_what_would() {
        refused(|good| good.replace("fedavg", "fedag"), "unknown variant `fedag`");
        refused(|good| good.replace("method: fedavg\n", ""), "method");
        refused(|good| good.replace("output", "outptu"), "outptu");
        refused(|good| good.replace("weight: 3", "weight: -3"), "contributions[0].weight");
        refused(|good| good.replace("weight: 3", "weight: .nan"), "contributions[0].weight");
        refused(|good| good.replace("    weight: 3\n", ""), "given for every contribution or for none");
        refused(|good| good.replace("beta", "a"), "`a` twice");
        refused(|good| format!("{good}dtype: f64\n"), "f32, bf16, f16 or keep");
        refused(|good| format!("{good}parameters: {{density: 2}}\n"), "density");
        refused(|good| format!("{good}parameters: {{name: 2}}\n"), "named by `method`");
        refused(|good| format!("{good}max_relative_change: 0\n"), "above zero");
        refused(|good| format!("{good}method: ties\n"), "method");
        refused(|_| "method: fedavg\ncontributions: []\noutput: o\n".into(), "1 to 1000");
        refused(|_| "[".repeat(100_000), "");
    }
}
