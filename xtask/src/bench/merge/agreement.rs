//! Whether a peer did the same work: its output beside ours, element by element.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::bench::report::{Difference, ROUNDING};

/// Elements that are compared at a time.
const STEP: u64 = 1 << 16;
/// A longer header is none of a bench.
const MAX_HEADER: u64 = 64 << 20;

/// How far the elements of one folder's model are from those of the other's. Both in f32.
///
/// # Errors
/// When one has a tensor that the other has not, or cannot be read.
pub(super) fn difference(ours: &Path, peer: &Path) -> Result<Difference> {
    let (ours, peer) = (Model::open(ours)?, Model::open(peer)?);
    let names = |model: &Model| model.tensors.keys().cloned().collect::<Vec<_>>();
    ensure!(names(&ours) == names(&peer), "different tensors: {} and {}", ours.tensors.len(), peer.tensors.len());
    let (mut largest, mut num_different, mut num) = (0.0_f64, 0.0, 0.0);
    for (name, (start, end)) in &ours.tensors {
        let (peer_start, peer_end) = peer.tensors[name];
        ensure!(end - start == peer_end - peer_start, "`{name}` has another size");
        for at in (0..end - start).step_by(usize::try_from(STEP * 4)?) {
            let len = (end - start - at).min(STEP * 4);
            let (a, b) = (ours.read(start + at, len)?, peer.read(peer_start + at, len)?);
            for (a, b) in a.iter().zip(b) {
                let difference = (f64::from(*a) - f64::from(b)).abs();
                // A NaN must not disappear in a maximum.
                if difference > largest || difference.is_nan() {
                    largest = difference;
                }
                num += 1.0;
                num_different += f64::from(u8::from(difference.is_nan() || difference > ROUNDING));
            }
        }
    }
    Ok(Difference { largest, share: num_different / f64::max(num, 1.0) })
}

struct Model {
    file: File,
    /// Name, and first and last byte in the file.
    tensors: BTreeMap<String, (u64, u64)>,
}

impl Model {
    /// The only safetensors file in a folder.
    fn open(folder: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let files = entries.flatten().map(|entry| entry.path());
        let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
        let [path] = files.as_slice() else {
            bail!("{} has {} safetensors files; expected one", folder.display(), files.len())
        };
        let file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= MAX_HEADER, "{}: a header of {length} bytes", path.display());
        let mut header = vec![0; usize::try_from(length)?];
        file.read_exact_at(&mut header, 8)?;
        let header: Value = serde_json::from_slice(&header).with_context(|| path.display().to_string())?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in header.as_object().context("a header is an object")? {
            if name == "__metadata__" {
                continue;
            }
            ensure!(entry["dtype"] == "F32", "`{name}` has dtype {}; expected F32", entry["dtype"]);
            let offset = |index: usize| entry["data_offsets"][index].as_u64().context("an offset is a number");
            let (start, end) = (offset(0)?, offset(1)?);
            ensure!(start <= end, "`{name}` ends before it begins");
            tensors.insert(name.clone(), (start + 8 + length, end + 8 + length));
        }
        Ok(Self { file, tensors })
    }

    fn read(&self, start: u64, len: u64) -> Result<Vec<f32>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        self.file.read_exact_at(&mut bytes, start)?;
        let (elements, _) = bytes.as_chunks::<4>();
        Ok(elements.iter().map(|element| f32::from_le_bytes(*element)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::models::{TINY, WEIGHTS, make, path};

    #[test]
    fn one_element_that_differs_is_found_and_its_difference_told() {
        let folder = std::env::temp_dir().join(format!("tapestry-bench-agreement-{}", std::process::id()));
        make(&folder.join("a"), &TINY, 1).expect("made");
        make(&folder.join("b"), &TINY, 1).expect("made");
        let [a, b] = ["a", "b"].map(|name| path(&folder.join(name), &TINY, 0));
        assert_eq!(difference(&a, &b).expect("comparable"), Difference { largest: 0.0, share: 0.0 });
        let file = b.join(WEIGHTS);
        let mut bytes = std::fs::read(&file).expect("readable");
        let change = |bytes: &mut Vec<u8>, change: fn(f32) -> f32| {
            let last = bytes.last_chunk_mut::<4>().expect("an element");
            *last = change(f32::from_le_bytes(*last)).to_le_bytes();
            std::fs::write(&file, bytes).expect("writable");
        };
        change(&mut bytes, |value| value + 0.5);
        let found = difference(&a, &b).expect("comparable");
        assert!((found.largest - 0.5).abs() < 1e-6, "{found:?}");
        #[expect(clippy::cast_precision_loss, reason = "a small model")]
        let one = 1.0 / TINY.num_elements() as f64;
        assert!((found.share - one).abs() < 1e-12, "{found:?}");
        change(&mut bytes, |_| f32::NAN);
        assert!(difference(&a, &b).expect("comparable").largest.is_nan());
        std::fs::remove_dir_all(folder).expect("removable");
    }
}
