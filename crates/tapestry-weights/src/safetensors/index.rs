//! `model.safetensors.index.json`: which shard holds which tensor.

use super::header::clipped;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::fmt;

/// A longer index is refused; that of a model with 100,000 tensors is shorter.
pub(super) const MAX_INDEX_BYTES: u64 = 32 << 20;
/// More tensors than this are refused.
const MAX_TENSORS: usize = 1 << 20;
/// More shards are refused: each is an open file. The largest open models have about 200.
const MAX_SHARDS: usize = 512;
/// The longest name that file systems take.
const MAX_FILE_NAME_BYTES: usize = 255;

/// An index that holds in itself; its shards may say otherwise.
#[derive(Debug)]
pub(super) struct Index {
    /// Names of files beside the index, sorted.
    pub(super) shards: Vec<String>,
    /// Tensors in the order of their names, with the number of the shard that is to hold each.
    pub(super) tensors: Vec<(String, usize)>,
}

impl Index {
    /// Reads and checks an index.
    ///
    /// # Errors
    /// The first fault, for people.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let text =
            std::str::from_utf8(content).map_err(|e| format!("it is not UTF-8 at its byte {}", e.valid_up_to()))?;
        let Raw { weight_map: WeightMap(mut entries) } =
            serde_json::from_str(text).map_err(|e| format!("it cannot be read: {}", clipped(&e)))?;
        entries.sort();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("tensor {} is listed twice", clipped(&format!("{:?}", pair[0].0))));
        }
        let names: BTreeSet<&str> = entries.iter().map(|(_, shard)| shard.as_str()).collect();
        if names.is_empty() {
            return Err("its weight_map lists no tensor".into());
        }
        if names.len() > MAX_SHARDS {
            return Err(format!("it lists {} shards; at most {MAX_SHARDS} are accepted", names.len()));
        }
        for name in &names {
            check_file_name(name)?;
        }
        check_promised(&names)?;
        let shards: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let place = |shard: &String| shards.binary_search(shard).expect("every shard is in the list of all");
        let tensors = entries.iter().map(|(tensor, shard)| (tensor.clone(), place(shard))).collect();
        Ok(Self { shards, tensors })
    }
}

/// A shard lies beside its index: anything but a plain name could lead to a file that its owner never meant to give.
fn check_file_name(name: &str) -> Result<(), String> {
    let is_plain = name.len() <= MAX_FILE_NAME_BYTES
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':', '\0']);
    if is_plain {
        return Ok(());
    }
    let found = clipped(&format!("{name:?}"));
    Err(format!("it lists the shard {found}; the plain name of a .safetensors file beside it is expected"))
}

/// Where all names are of the form `model-00002-of-00005.safetensors`, each of the five must be listed.
fn check_promised(names: &BTreeSet<&str>) -> Result<(), String> {
    let promises: Option<BTreeSet<(&str, &str)>> = names.iter().map(|name| promise(name)).collect();
    let Some((stem, total)) = promises.filter(|all| all.len() == 1).and_then(|all| all.first().copied()) else {
        return Ok(());
    };
    let num_promised: usize = total.parse().map_err(|e| format!("shards \"of {total}\": {e}"))?;
    // Below the limit of shards, so that the search for the missing one ends soon.
    let missing = (1..=num_promised.min(names.len() + 1))
        .map(|n| format!("{stem}-{n:0width$}-of-{total}.safetensors", width = total.len()))
        .find(|name| !names.contains(name.as_str()));
    match missing {
        Some(missing) => {
            Err(format!("it lists {} shards, whose names promise {num_promised}: {missing:?} is missing", names.len()))
        }
        None => Ok(()),
    }
}

/// `("model", "00005")` of `model-00002-of-00005.safetensors`.
fn promise(name: &str) -> Option<(&str, &str)> {
    let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(total) && number.len() == total.len()).then_some((stem, total))
}

/// The index as written. Its `metadata` is not read: the sizes that programs write there differ in what they count.
#[derive(Deserialize)]
struct Raw {
    weight_map: WeightMap,
}

/// Tensors and their shards in their own order; names given twice are seen.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors and the names of their shards")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("there are more than {MAX_TENSORS} tensors")));
                    }
                    entries.push(entry);
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: impl AsRef<[u8]>, expected: &str) {
        let message = Index::parse(content.as_ref()).expect_err("refused");
        assert!(message.contains(expected), "{message}");
        assert!(message.len() < 2000, "{} bytes of message", message.len());
    }

    fn map(entries: &[(&str, &str)]) -> String {
        let entries: Vec<_> = entries.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
        format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{}}}}}"#, entries.join(","))
    }

    #[test]
    fn an_index_is_sorted() {
        let index =
            Index::parse(map(&[("b", "y.safetensors"), ("c", "x.safetensors"), ("a", "y.safetensors")]).as_ref());
        let index = index.expect("holds");
        assert_eq!(index.shards, ["x.safetensors", "y.safetensors"]);
        assert_eq!(index.tensors, [("a".into(), 1), ("b".into(), 1), ("c".into(), 0)]);
    }

    #[test]
    fn indices_that_are_no_index_are_refused() {
        refused("", "cannot be read");
        refused("[]", "cannot be read");
        refused("{\"weight_map\":{\"a\":1}}", "cannot be read");
        refused("{\"metadata\":{}}", "weight_map");
        refused(b"{\"weight_map\":{\"\xff\":\"a.safetensors\"}}", "not UTF-8 at its byte 16");
        refused("[".repeat(1 << 20), "cannot be read");
        refused(format!("{{\"weight_map\":{}", "{\"a\":".repeat(1 << 20)), "cannot be read");
        refused(format!("{{\"metadata\":{}", "[".repeat(1 << 20)), "cannot be read");
        refused(map(&[]), "lists no tensor");
        refused(map(&[("a", "x.safetensors"), ("a", "y.safetensors")]), "tensor \"a\" is listed twice");
        refused(format!(r#"{{"weight_map":{{}},"weight_map":{{"a":"{}"}}}}"#, "x".repeat(1 << 20)), "duplicate field");
    }

    #[test]
    fn a_shard_outside_of_the_folder_is_refused() {
        for shard in [
            "/etc/x.safetensors",
            "../x.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "..",
            "",
            "C:x.safetensors",
        ] {
            refused(map(&[("a", shard)]), "plain name");
        }
        refused(map(&[("a", ".hidden.safetensors")]), "plain name");
        refused(map(&[("a", "pytorch_model.bin")]), "plain name");
        refused(map(&[("a", &format!("{}.safetensors", "x".repeat(1 << 20)))]), "plain name");
        refused(r#"{"weight_map":{"a":"x\u0000.safetensors"}}"#, "plain name");
    }

    #[test]
    fn a_shard_that_the_names_promise_and_the_index_omits_is_named() {
        let all =
            |total: u32| -> Vec<_> { (1..=total).map(|n| format!("m-{n:05}-of-{total:05}.safetensors")).collect() };
        let index = |shards: &[String]| {
            let tensors: Vec<_> = (0..shards.len()).map(|n| format!("t{n}")).collect();
            map(&tensors.iter().zip(shards).map(|(t, s)| (t.as_str(), s.as_str())).collect::<Vec<_>>())
        };
        assert_eq!(Index::parse(index(&all(12)).as_ref()).expect("holds").shards, all(12));
        for missing in 0..4 {
            let mut shards = all(4);
            let name = shards.remove(missing);
            refused(index(&shards), &name);
        }
        refused(index(&["m-1-of-9.safetensors".into()]), "promise 9");
        refused(index(&["m-00001-of-99999.safetensors".into()]), "promise 99999");
        let huge = format!("m-{0}-of-{0}.safetensors", "9".repeat(100));
        refused(index(&[huge]), "number too large");
        refused(index(&(0..600).map(|n| format!("x{n}.safetensors")).collect::<Vec<_>>()), "600 shards");
        // Names of other forms promise nothing.
        Index::parse(index(&["a-of-b.safetensors".into(), "m-00001-of-00002.safetensors".into()]).as_ref())
            .expect("holds");
    }
}
