//! Elements per second of one thread: `cargo run --release -p tapestry-merge --example speed`.
//!
//! The rows are those of a large model, cut as the engine cuts them; they stay in the cache, so this is the arithmetic alone.
#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::time::Instant;
use tapestry_merge::{Block, Contributor, GRAM_BLOCK_ELEMENTS, Gram, Method, Setting, Survey};

const ELEMENTS: usize = 134_500_000;
const ROW: usize = 16_384;

fn rows(count: usize, len: usize) -> Vec<Vec<f32>> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[expect(clippy::cast_precision_loss, reason = "any value will do")]
        let value = (state >> 40) as f32 / 16_777_216.0 - 0.5;
        value
    };
    (0..count).map(|_| (0..len).map(|_| next()).collect()).collect()
}

fn time(what: &str, row: usize, mut work: impl FnMut()) {
    let runs = ELEMENTS.div_ceil(row);
    work();
    let start = Instant::now();
    (0..runs).for_each(|_| work());
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    let rate = (runs * row) as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{what}: {rate:.0} M elements/s, {:.2} s", start.elapsed().as_secs_f64());
}

fn merge(method: &str, count: usize) {
    let method: Method = serde_json::from_str(method).expect("a method");
    let rows = rows(count, ROW);
    let inputs: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let share = 1.0 / count as f64;
    let contributors: Vec<_> = (0..count).map(|i| Contributor { name: format!("m{i:03}"), share }).collect();
    let setting = Setting { tensors: &[], contributors: &contributors };
    let rule = method.rule(&setting, &Survey::default()).expect("enough contributions");
    let mut out = vec![0.0; ROW];
    time(&format!("{} of {count}", method.name()), ROW, || {
        let block = Block { tensor: 0, first: 0, base: &[], inputs: &inputs, states: &[] };
        rule.merge(&block, std::hint::black_box(&mut out), &mut []);
    });
}

fn gram(count: usize, row: usize) {
    let rows = rows(count + 1, row);
    let inputs: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
    time(&format!("gram of {count} changes, rows of {row}"), row, || {
        std::hint::black_box(Gram::of_block(inputs[0], std::hint::black_box(&inputs[1..])));
    });
}

fn main() {
    merge(r#"{"name": "fedavg"}"#, 5);
    for count in [3, 5, 6, 9, 15] {
        merge(r#"{"name": "median"}"#, count);
    }
    for count in [3, 5, 9, 15] {
        merge(r#"{"name": "trimmed-mean", "trim": 1}"#, count);
    }
    for count in [2, 5, 16] {
        gram(count, ROW);
        gram(count, GRAM_BLOCK_ELEMENTS);
    }
}
