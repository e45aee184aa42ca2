//! Elements per second of one thread: `cargo run --release -p tapestry-merge --example speed`.
//!
//! The rows are those of a large model, cut as the engine cuts them; they stay in the cache, so this is the arithmetic alone.
#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::time::Instant;
use tapestry_core::{Dtype, TensorSpec};
use tapestry_merge::{
    Block, Contributor, GRAM_BLOCK_ELEMENTS, Gram, Method, Selection, Setting, Survey, SurveyKind, select_in_memory,
};

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
    // The fastest of many parts: what else the machine does takes time from some of them, and gives none to any.
    const PARTS: usize = 40;
    let runs = ELEMENTS.div_ceil(row * PARTS);
    work();
    let mut part = || {
        let start = Instant::now();
        (0..runs).for_each(|_| work());
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..PARTS).map(|_| part()).fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    let rate = (runs * row) as f64 / seconds;
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    let model_seconds = ELEMENTS as f64 / rate;
    println!("{what}: {:.0} M elements/s, {model_seconds:.2} s for 134.5 M", rate / 1e6);
}

fn merge(method: &str, count: usize) {
    let method: Method = serde_json::from_str(method).expect("a method");
    let demands = method.demands();
    // Changes are small beside the base, as they are where a model was trained further.
    let (base, mut rows) = (rows(1, ROW).remove(0), rows(count, ROW));
    rows.iter_mut().for_each(|row| row.iter_mut().zip(&base).for_each(|(value, base)| *value = base + 0.01 * *value));
    let inputs: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let share = 1.0 / count as f64;
    let contributors: Vec<_> = (0..count).map(|i| Contributor { name: format!("m{i:03}"), share }).collect();
    let tensors = [TensorSpec { name: "layer".into(), shape: vec![ROW as u64], dtype: Dtype::F32 }];
    let setting = Setting { tensors: &tensors, contributors: &contributors };
    let mut survey = Survey::default();
    match demands.survey {
        SurveyKind::Nothing => {}
        SurveyKind::Grams => survey.grams.push(Gram::of_block(&base, &inputs)),
        SurveyKind::Thresholds { density } => {
            survey.thresholds.push(inputs.iter().map(|input| select_in_memory(&base, input, density)).collect());
        }
    }
    let rule = method.rule(&setting, &survey).expect("enough contributions");
    let states = vec![vec![0f32; ROW]; demands.num_states];
    let states: Vec<&[f32]> = states.iter().map(|row| &row[..]).collect();
    let mut out = vec![0.0; ROW];
    let mut states_out = vec![vec![0.0; ROW]; demands.num_states];
    let mut states_out: Vec<&mut [f64]> = states_out.iter_mut().map(|row| &mut row[..]).collect();
    let base: &[f32] = if demands.base { &base } else { &[] };
    time(&format!("{} of {count}", method.name()), ROW, || {
        let block = Block { tensor: 0, first: 0, base, inputs: &inputs, states: &states };
        rule.merge(&block, std::hint::black_box(&mut out), &mut states_out);
    });
}

/// Both passes of the search for one contribution's threshold, over values as they are in models: near to normal, and in part the
/// same as the base's, as after training in 16 bits.
fn selection(density: f64, unchanged: f32) {
    let parts = rows(8, ROW);
    let [base, mut input] = [0, 4].map(|from| -> Vec<f32> {
        (0..ROW).map(|at| parts[from..from + 4].iter().map(|part| part[at]).sum()).collect()
    });
    let chance = rows(9, ROW).remove(8);
    (0..ROW).filter(|at| chance[*at] + 0.5 < unchanged).for_each(|at| input[at] = base[at]);
    let mut selection = Selection::new(ELEMENTS as u64, density);
    let mut pass = 0;
    while !selection.is_done() {
        pass += 1;
        let mut counts = selection.counts();
        time(&format!("selection, density {density}, {unchanged} unchanged, pass {pass}"), ROW, || {
            counts.add(&base, &input)
        });
        selection.absorb(&counts);
        selection.end_pass();
    }
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
    for method in ["task-arithmetic", "diloco", "fedadam", "fedyogi"] {
        merge(&format!(r#"{{"name": "{method}"}}"#), 3);
    }
    merge(r#"{"name": "slerp"}"#, 2);
    merge(r#"{"name": "model-stock"}"#, 3);
    for density in [0.2, 0.5] {
        merge(&format!(r#"{{"name": "ties", "density": {density}}}"#), 3);
        for method in ["dare", "dare-ties"] {
            merge(&format!(r#"{{"name": "{method}", "density": {density}, "seed": 7}}"#), 3);
        }
        [0.0, 0.3, 0.9].into_iter().for_each(|unchanged| selection(density, unchanged));
    }
    for count in [2, 5, 16] {
        gram(count, ROW);
        gram(count, GRAM_BLOCK_ELEMENTS);
    }
}
