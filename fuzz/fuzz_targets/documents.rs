//! Everything that is JSON and comes from outside: the first byte of the input says which document the rest is read as.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapestry_core::{ModelManifest, Signed, WeightsManifest, to_canonical_json};
use tapestry_governance::Charter;
use tapestry_ledger::Entry;
use tapestry_merge::Method;
use tapestry_round::coordinator::CoordinatorEvent;
use tapestry_round::node::NodeEvent;
use tapestry_round::{Announcement, Attendance, Contribution, Decline, HandOver, News, Outcome, Tenure};

/// What can be read has one canonical form, which is read as the same again.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    // Numbers without a JSON form cannot come in, so that whatever was read can be written.
    let canonical = to_canonical_json(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&canonical).expect("what was written can be read");
    assert_eq!(again, read);
    assert_eq!(to_canonical_json(&again).expect("and written"), canonical);
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 14 {
        0 => {
            check::<Signed<Charter>>(bytes);
            if let Ok(charter) = serde_json::from_slice::<Signed<Charter>>(bytes) {
                let _ = Charter::binding(&charter, charter.document.valid_from);
            }
        }
        1 => check::<Signed<Contribution>>(bytes),
        2 => check::<Signed<Decline>>(bytes),
        3 => check::<Signed<Attendance>>(bytes),
        4 => check::<Signed<Announcement>>(bytes),
        5 => check::<Signed<Outcome>>(bytes),
        6 => check::<Signed<Tenure>>(bytes),
        7 => check::<Signed<HandOver>>(bytes),
        8 => check::<News>(bytes),
        9 => check::<Signed<Entry<CoordinatorEvent>>>(bytes),
        10 => check::<Signed<Entry<NodeEvent>>>(bytes),
        11 => {
            if let Ok(manifest) = serde_json::from_slice::<ModelManifest>(bytes) {
                let _ = manifest.check();
            }
        }
        12 => {
            if let Ok(manifest) = serde_json::from_slice::<WeightsManifest>(bytes)
                && manifest.check().is_ok()
            {
                assert_eq!(manifest.offsets().count(), manifest.tensors.len());
            }
        }
        _ => {
            if let Ok(method) = serde_json::from_slice::<Method>(bytes) {
                let _ = method.check();
            }
        }
    }
});
