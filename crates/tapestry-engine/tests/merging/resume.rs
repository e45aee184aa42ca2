//! A merge that is interrupted goes on, and gives the same bytes.

use crate::fixture::{Fixture, merge, merge_until, names};
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_engine::EngineError;

const PART: u64 = 1 << 20;

/// Merges `out` and stops at the first safe place.
fn interrupt(fixture: &Fixture) {
    let recipe = fixture.recipe("method: fedavg", &[0, 1], true, "out");
    let stop = AtomicBool::new(false);
    let stopped = merge_until(&recipe, 2, PART, &stop, &|_, progress| stop.store(progress.done > 0, Ordering::Relaxed));
    let Err(EngineError::Stopped { done, total }) = stopped else { panic!("{stopped:?}") };
    assert!(done == PART && total > done, "{done} of {total}");
    assert!(!fixture.path("out").exists());
    assert!(fixture.path("out.partial").exists());
}

#[test]
fn an_interrupted_merge_goes_on_where_it_was() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    let whole = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "whole"), 2).unwrap();
    interrupt(&fixture);
    let resumed = merge(&fixture.recipe("method: fedavg", &[1, 0], true, "out"), 2).unwrap();
    assert_eq!(resumed.weights.resumed_bytes, PART);
    assert_eq!(resumed.weights.blake3, whole.weights.blake3);
    assert_eq!(fixture.merged("out"), fixture.merged("whole"));
    assert_eq!(names(&fixture.path("out")), names(&fixture.path("whole")));
}

#[test]
fn what_was_written_is_not_trusted_when_it_was_changed() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    let whole = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "whole"), 2).unwrap();
    interrupt(&fixture);
    let path = fixture.path("out.partial/model.safetensors");
    let mut content = std::fs::read(&path).unwrap();
    content[5000] ^= 1;
    std::fs::write(&path, content).unwrap();
    let again = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "out"), 2).unwrap();
    assert_eq!((again.weights.resumed_bytes, again.weights.blake3), (0, whole.weights.blake3));
}

#[test]
fn another_recipe_or_another_input_begins_anew() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    interrupt(&fixture);
    let equal = merge(&fixture.recipe("method: fedavg", &[0, 1], false, "out"), 2).unwrap();
    assert_eq!(equal.weights.resumed_bytes, 0);
    std::fs::remove_dir_all(fixture.path("out")).unwrap();
    interrupt(&fixture);
    fixture.model("a", &crate::fixture::tensors(), 9, 0.05);
    let changed = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "out"), 2).unwrap();
    assert_eq!(changed.weights.resumed_bytes, 0);
}

#[test]
fn two_merges_do_not_write_to_one_place() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    std::fs::create_dir(fixture.path("out.partial")).unwrap();
    let held = std::fs::File::create(fixture.path("out.partial/merge.lock")).unwrap();
    held.try_lock().unwrap();
    let refused = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "out"), 2).unwrap_err().to_string();
    assert!(refused.contains("another merge is writing there"), "{refused}");
    assert!(fixture.path("out.partial/merge.lock").exists(), "the other merge's folder stays");
}
