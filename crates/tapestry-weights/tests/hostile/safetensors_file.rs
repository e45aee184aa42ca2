//! Damaged files of one model.

use crate::memory::peak_of;
use crate::mutation::{Random, damage, damage_json};
use crate::{Scratch, for_seeds};
use safetensors::SafeTensors;
use std::path::Path;
use tapestry_weights::{SafetensorsFile, SafetensorsModel, WeightSource as _, WeightsError};

const DTYPES: [(&str, u64); 8] =
    [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("BOOL", 1), ("U8", 1), ("F64", 8), ("F8_E4M3", 1)];

/// A header and its data, mostly valid: a generator of the grammar that goes wrong now and then.
pub(crate) fn generate(random: &mut Random) -> (String, Vec<u8>) {
    let num_tensors = random.below(6);
    let mut order: Vec<usize> = (0..num_tensors).collect();
    if random.one_in(2) {
        order.reverse();
    }
    let mut entries = vec![];
    if random.one_in(2) {
        entries.push(r#""__metadata__":{"format":"pt","k":"v"}"#.to_owned());
    }
    let mut at = 0u64;
    for n in order {
        let num_dtypes = if random.one_in(3) { DTYPES.len() } else { 3 };
        let (dtype, size) = *random.pick(&DTYPES[..num_dtypes]);
        let mut shape: Vec<u64> = (0..random.below(4)).map(|_| random.below(5) as u64).collect();
        let bytes = shape.iter().product::<u64>() * size;
        let (mut start, mut end) = (at, at + bytes);
        at = end;
        if random.one_in(30) {
            match random.below(4) {
                0 => start = random.nasty(),
                1 => end = random.nasty(),
                2 => shape.push(random.nasty()),
                _ => at = at.saturating_sub(random.below(9) as u64),
            }
        }
        let n = if random.one_in(40) { 0 } else { n };
        entries.push(format!(
            r#""layers.{n}.weight":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(random.below(9)));
    let data_bytes = usize::try_from(at).expect("small") + if random.one_in(40) { random.below(9) } else { 0 };
    (header, (0..data_bytes).map(|_| random.next().to_le_bytes()[0]).collect())
}

pub(crate) fn assemble(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Opens the file by every reader. Where it opens, everything in it is read, and compared with the readers of the project that
/// defined the format; gives whether it did.
fn read_everything(path: &Path, content: &[u8]) -> bool {
    let (file, peak) = peak_of(|| SafetensorsFile::open_with_others(path));
    // Twice, because a reader keeps the header while it parses; and what every tensor takes beside its name.
    let explained = 2048 + 8 * content.len();
    assert!(peak <= explained, "{peak} bytes were taken for a file of {}", content.len());
    let is_floats_only = SafetensorsFile::open_any_order(path).is_ok();
    assert_eq!(is_floats_only, SafetensorsModel::open(path).is_ok());
    assert!(is_floats_only || SafetensorsFile::open(path).is_err());
    let file = match file {
        Ok(file) => file,
        Err(WeightsError::Malformed { path: named, what, .. }) => {
            assert!(named == path && !what.is_empty() && what.len() < 4000, "{what}");
            return false;
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(is_floats_only, file.others().is_empty());
    let theirs = SafeTensors::deserialize(content).expect("what opens here is a safetensors file");
    assert_eq!(theirs.len(), file.tensors().len() + file.others().len());
    for (index, spec) in file.tensors().iter().enumerate() {
        let view = theirs.tensor(&spec.name).expect("it is there too");
        let mut bytes = vec![0; view.data().len()];
        file.read_into(index, 0, &mut bytes).expect("a checked tensor is read");
        assert!(bytes == view.data(), "{}", spec.name);
        assert!(file.read_into(index, 1, &mut bytes).is_err(), "{} beyond its end", spec.name);
        let values = file.read_named(&spec.name).expect("a checked tensor is read");
        assert_eq!(values.len() as u64, spec.num_elements().expect("checked"));
    }
    for (index, other) in file.others().iter().enumerate() {
        let view = theirs.tensor(&other.name).expect("it is there too");
        let mut bytes = vec![0; view.data().len()];
        file.read_other_into(index, 0, &mut bytes).expect("a checked tensor is read");
        assert!(bytes == view.data(), "{}", other.name);
    }
    true
}

/// The shares that are opened and refused are both of some size: a fuzzer whose files are all refused for the same reason finds
/// nothing.
fn check_both(name: &str, num_seeds: u64, make: impl Fn(&mut Random) -> Vec<u8>) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = Scratch::create(&dir.path().join("model.safetensors"));
    let mut num_opened = 0;
    for_seeds(num_seeds, |random| {
        let content = make(random);
        num_opened += u64::from(read_everything(file.hold(&content), &content));
    });
    let share = num_opened * 100 / num_seeds;
    assert!((2..=98).contains(&share), "{name}: {share} % of the files were opened");
}

#[test]
fn files_with_damaged_bytes_are_read_or_refused() {
    check_both("bytes", 20_000, |random| {
        let (header, data) = generate(random);
        let mut content = assemble(&header, &data);
        damage(&mut content, random);
        content
    });
}

#[test]
fn headers_with_damaged_tokens_are_read_or_refused() {
    check_both("tokens", 20_000, |random| {
        let (mut header, data) = generate(random);
        damage_json(&mut header, random);
        assemble(&header, &data)
    });
}

#[test]
fn headers_that_follow_the_grammar_are_read_or_refused() {
    check_both("grammar", 20_000, |random| {
        let (header, data) = generate(random);
        assemble(&header, &data)
    });
}

/// Halves of two files in one, as a broken copy or a broken disk makes them.
#[test]
fn spliced_files_are_read_or_refused() {
    check_both("splices", 12_000, |random| {
        let [(header, data), (other_header, other_data)] = [generate(random), generate(random)];
        match random.below(3) {
            0 => assemble(&header, &other_data),
            1 => assemble(&other_header, &data),
            _ => {
                let (first, second) = (assemble(&header, &data), assemble(&other_header, &other_data));
                let (at, from) = (random.below(first.len()), random.below(second.len()));
                [&first[..at], &second[from..]].concat()
            }
        }
    });
}

/// Many small things in a header of a megabyte take no more memory for each of its bytes than few do.
#[test]
fn large_headers_take_memory_in_proportion() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = Scratch::create(&dir.path().join("model.safetensors"));
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = (0..30_000).map(entry).collect();
    let lists = "[0,0,0,0,0,0,0,0],".repeat(60_000);
    for header in [
        format!("{{{}}}", entries.join(",")),
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(500_000)),
        format!(r#"{{"a":{{"dtype":"U8","shape":{lists}"data_offsets":[0,0]}}}}"#),
        format!(r#"{{"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#, "\\u0061".repeat(200_000)),
        format!(r#"{{"a":{{"dtype":"{}","shape":[0],"data_offsets":[0,0]}}}}"#, "x".repeat(1_000_000)),
        format!(r#"{{"__metadata__":{{"{}":"{0}"}}}}"#, "x".repeat(500_000)),
        format!(r#"{{{}}}"#, r#""__metadata__":{},"#.repeat(50_000)),
        "[".repeat(1_000_000),
    ] {
        let content = assemble(&header, &[]);
        let is_opened = read_everything(file.hold(&content), &content);
        let is_honest = header.contains("\"29999\"") || header.contains(r#"{"__metadata__":{"x"#);
        assert_eq!(is_opened, is_honest, "{}", &header[..60]);
    }
}

/// A file of 256 MiB, of which the disk holds nothing, is read to its end; mapped pages would count too.
#[test]
fn reading_a_large_file_takes_memory_that_does_not_depend_on_its_size() {
    const COUNT: u64 = 64 << 20;
    let dir = tempfile::tempdir().expect("a folder");
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{COUNT}],"data_offsets":[0,{}]}}}}"#, 4 * COUNT);
    let file = Scratch::create(&dir.path().join("model.safetensors"));
    let path = file.hold(&assemble(&header, &[]));
    file.file.set_len(8 + header.len() as u64 + 4 * COUNT).expect("grows");
    let model = SafetensorsModel::open(path).expect("opens");
    let (found, peak) = peak_of(|| model.first_non_finite().expect("reads"));
    assert_eq!(found, None);
    assert!(peak < 2 << 20, "{peak} bytes");
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").expect("reads");
        let mapped = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("there");
        let mapped: u64 = mapped.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(mapped < 64 << 10, "{mapped} KiB of files are mapped");
    }
}
