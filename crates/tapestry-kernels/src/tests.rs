//! Every operation against the same thing composed of plain Burn operations, values and gradients.
#![expect(clippy::cast_possible_truncation, reason = "tests count in small numbers")]

use crate::adamw::{self, AdamW};
use crate::{AttentionPlan, MlpPlan, NormOrder, RopeTables, elementwise, forward, ops};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use std::sync::Arc;

/// Numbers in [-1, 1) that look random and are always the same.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn leaf<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let values = numbers(shape.iter().product(), seed);
    Tensor::from_data(TensorData::new(values, shape), device).require_grad()
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec().expect("f32")
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3_f32, |m, x| m.max(x.abs()));
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-4 * largest, "{what}: element {index} is {a}, not {b}");
    }
}

fn rms_norm(x: Tensor<3>, w: Tensor<1>, eps: f32) -> Tensor<3> {
    let r = (x.clone().powi_scalar(2).mean_dim(2) + eps).sqrt();
    x / r * w.reshape([1, 1, -1])
}

fn linear(x: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    x.matmul(w.transpose().unsqueeze())
}

fn rotate(x: Tensor<4>, theta: f64) -> Tensor<4> {
    let [b, h, t, e] = x.dims();
    let half = e / 2;
    let angle = |p: usize, i: usize| p as f64 * theta.powf(-(i as f64) / half as f64);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..t).flat_map(|p| (0..half).map(move |i| f(angle(p, i)) as f32)).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, 1, t, half]), &x.device())
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let first = x.clone().slice([0..b, 0..h, 0..t, 0..half]);
    let second = x.slice([0..b, 0..h, 0..t, half..e]);
    Tensor::cat(vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin], 3)
}

/// Batch, time, width, query heads, key/value heads, head width; starts of documents.
struct Case {
    b: usize,
    t: usize,
    d: usize,
    h: usize,
    k: usize,
    e: usize,
    starts: Vec<u32>,
}

fn cases() -> Vec<Case> {
    let documents = |b: usize, t: usize, cuts: &[u32]| -> Vec<u32> {
        (0..b)
            .flat_map(|_| (0..t as u32).map(|p| cuts.iter().copied().filter(|c| *c <= p).max().unwrap_or(0)))
            .collect()
    };
    vec![
        Case { b: 1, t: 5, d: 8, h: 2, k: 2, e: 4, starts: vec![] },
        Case { b: 2, t: 70, d: 24, h: 6, k: 2, e: 6, starts: vec![] },
        Case { b: 2, t: 131, d: 20, h: 3, k: 1, e: 8, starts: documents(2, 131, &[1, 64, 100, 130]) },
    ]
}

fn composed_attention(case: &Case, x: Tensor<3>, n: Tensor<1>, w: [Tensor<2>; 4], theta: f64, eps: f32) -> Tensor<3> {
    let Case { b, t, h, k, e, .. } = *case;
    let [q, kw, v, o] = w;
    let normed = rms_norm(x.clone(), n, eps);
    let heads = |y: Tensor<3>, count: usize| y.reshape([b, t, count, e]).swap_dims(1, 2);
    let q = rotate(heads(linear(normed.clone(), q), h), theta);
    let kk = rotate(heads(linear(normed.clone(), kw), k), theta);
    let v = heads(linear(normed, v), k);
    let share = |y: Tensor<4>| y.reshape([b, k, 1, t, e]).repeat_dim(2, h / k).reshape([b, h, t, e]);
    let scores = q.matmul(share(kk).swap_dims(2, 3)) / (e as f32).sqrt();
    let hidden: Vec<f32> = (0..b * t * t)
        .map(|i| {
            let (window, row, col) = (i / (t * t), i / t % t, i % t);
            let start = case.starts.get(window * t + row).copied().unwrap_or(0) as usize;
            if col > row || col < start { -1e30 } else { 0.0 }
        })
        .collect();
    let mask = Tensor::<4>::from_data(TensorData::new(hidden, [b, 1, t, t]), &x.device());
    let out = activation::softmax(scores + mask, 3).matmul(share(v)).swap_dims(1, 2).reshape([b, t, h * e]);
    x + linear(out, o)
}

#[test]
fn attention_matches_its_composed_form() {
    let device = Device::flex().autodiff();
    for case in cases() {
        let Case { b, t, d, h, k, e, .. } = case;
        let (theta, eps) = (100.0, 1e-5);
        let x = leaf([b, t, d], 1, &device);
        let n = leaf([d], 2, &device);
        let w = [[h * e, d], [k * e, d], [k * e, d], [d, h * e]];
        let w: Vec<Tensor<2>> = w.into_iter().zip(3..).map(|(shape, seed)| leaf(shape, seed, &device)).collect();
        let w: [Tensor<2>; 4] = w.try_into().expect("four");
        let plan = Arc::new(AttentionPlan {
            batch: b,
            time: t,
            num_heads: h,
            num_kv_heads: k,
            head_dim: e,
            norm_eps: eps,
            norm_order: NormOrder::Before,
            window: None,
            recompute: false,
            rope: Arc::new(RopeTables::new(theta, e, t + 3)),
            starts: case.starts.clone().into(),
        });
        let weight = leaf([b, t, d], 9, &device);
        let fused = {
            let (norm, matrices) = (n.clone(), w.clone());
            let parameters = ops::AttentionParameters { norm, matrices, biases: None, qk_norms: None };
            ops::attention_block(x.clone(), parameters, plan)
        };
        let composed = composed_attention(&case, x.clone(), n.clone(), w.clone(), theta, eps);
        close("output", &values(&fused), &values(&composed));
        let (a, c) = ((fused * weight.clone()).sum().backward(), (composed * weight).sum().backward());
        let gradient = |t: &Tensor<2>, g| values(&t.grad(g).expect("tracked"));
        close("dx", &values(&x.grad(&a).expect("tracked")), &values(&x.grad(&c).expect("tracked")));
        close("dn", &values(&n.grad(&a).expect("tracked")), &values(&n.grad(&c).expect("tracked")));
        for (name, w) in ["dq", "dk", "dv", "do"].iter().zip(&w) {
            close(name, &gradient(w, &a), &gradient(w, &c));
        }
    }
}

#[test]
fn mlp_matches_its_composed_form() {
    let device = Device::flex().autodiff();
    for (b, t, d, f) in [(1, 3, 8, 12), (2, 37, 20, 52)] {
        let (x, n, eps) = (leaf([b, t, d], 1, &device), leaf([d], 2, &device), 1e-5);
        let w = [leaf([f, d], 3, &device), leaf([f, d], 4, &device), leaf([d, f], 5, &device)];
        let weight = leaf([b, t, d], 9, &device);
        let fused = ops::mlp_block(
            x.clone(),
            n.clone(),
            w.clone(),
            MlpPlan { norm_eps: eps, norm_order: NormOrder::Before, recompute: b == 2 },
        );
        let normed = rms_norm(x.clone(), n.clone(), eps);
        let product = activation::silu(linear(normed.clone(), w[0].clone())) * linear(normed, w[1].clone());
        let composed = x.clone() + linear(product, w[2].clone());
        close("output", &values(&fused), &values(&composed));
        let (a, c) = ((fused * weight.clone()).sum().backward(), (composed * weight).sum().backward());
        close("dx", &values(&x.grad(&a).expect("tracked")), &values(&x.grad(&c).expect("tracked")));
        close("dn", &values(&n.grad(&a).expect("tracked")), &values(&n.grad(&c).expect("tracked")));
        for (name, w) in ["dgate", "dup", "ddown"].iter().zip(&w) {
            close(name, &values(&w.grad(&a).expect("tracked")), &values(&w.grad(&c).expect("tracked")));
        }
    }
}

/// Embedding and head share one table, some tokens come twice, and some do not count.
#[test]
fn embedding_and_cross_entropy_match_their_composed_form() {
    let device = Device::flex().autodiff();
    let (v, d, n) = (50, 12, 33);
    let table = leaf([v, d], 1, &device);
    let norm = leaf([d], 2, &device);
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 % 13).collect();
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 11 % v as u32).collect();
    let weights: Vec<f32> = (0..n).map(|i| if i % 4 == 0 { 0.0 } else { 0.04 }).collect();
    let fused = {
        let x = ops::embed(table.clone(), Arc::new(ids.clone()));
        let x = ops::rms_norm(x, norm.clone(), 1e-5);
        ops::linear_cross_entropy(x, table.clone(), Arc::new(targets.clone()), Arc::new(weights.clone()))
    };
    let composed = {
        let int = |values: &[u32]| TensorData::new(values.iter().map(|i| i64::from(*i)).collect::<Vec<_>>(), [n]);
        let x = table.clone().select(0, Tensor::<1, Int>::from_data(int(&ids), &device));
        let x: Tensor<2> = rms_norm(x.reshape([1, n, d]), norm.clone(), 1e-5).reshape([n, d]);
        let log_p = activation::log_softmax(x.matmul(table.clone().transpose()), 1);
        let targets: Tensor<2, Int> = Tensor::<1, Int>::from_data(int(&targets), &device).reshape([n, 1]);
        let nll = log_p.gather(1, targets).reshape([n]).neg();
        (nll * Tensor::from_data(TensorData::new(weights.clone(), [n]), &device)).sum()
    };
    close("loss", &values(&fused), &values(&composed));
    let (a, c) = ((fused * 3.0).backward(), (composed * 3.0).backward());
    close("dtable", &values(&table.grad(&a).expect("tracked")), &values(&table.grad(&c).expect("tracked")));
    close("dnorm", &values(&norm.grad(&a).expect("tracked")), &values(&norm.grad(&c).expect("tracked")));
}

/// Each token's log-probability with a weight of its own, some negative.
#[test]
fn log_probabilities_match_their_composed_form() {
    let device = Device::flex().autodiff();
    let (v, d, n) = (50, 12, 33);
    let (x, head) = (leaf([n, d], 1, &device), leaf([v, d], 2, &device));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 11 % v as u32).collect();
    let weight = leaf([n], 3, &device);
    let fused = ops::linear_log_probs(x.clone(), head.clone(), Arc::new(targets.clone()));
    let ids = TensorData::new(targets.iter().map(|i| i64::from(*i)).collect::<Vec<_>>(), [n, 1]);
    let all = activation::log_softmax(x.clone().matmul(head.clone().transpose()), 1);
    let composed: Tensor<1> = all.gather(1, Tensor::<2, Int>::from_data(ids, &device)).reshape([n]);
    close("values", &values(&fused), &values(&composed));
    let (a, c) = ((fused * weight.clone()).sum().backward(), (composed * weight).sum().backward());
    close("dx", &values(&x.grad(&a).expect("tracked")), &values(&x.grad(&c).expect("tracked")));
    close("dhead", &values(&head.grad(&a).expect("tracked")), &values(&head.grad(&c).expect("tracked")));
}

#[test]
fn surprise_does_not_depend_on_how_the_head_is_cut() {
    let (v, d, n) = (301, 16, 9);
    let (x, head) = (numbers(n * d, 1), numbers(v * d, 2));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 37 % v as u32).collect();
    let whole = forward::token_nll(&x, &head, &targets);
    let mut parts = forward::NllAccumulator::new(n);
    for (index, rows) in head.chunks(100 * d).enumerate() {
        parts.add(&x, rows, index * 100, &targets);
    }
    close("parts", &parts.finish(), &whole);
    for (i, found) in whole.iter().enumerate() {
        let logit = |row: usize| (0..d).map(|j| f64::from(x[i * d + j]) * f64::from(head[row * d + j])).sum::<f64>();
        let sum: f64 = (0..v).map(|row| logit(row).exp()).sum();
        let expected = sum.ln() - logit(targets[i] as usize);
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
    }
    let mut bad = x.clone();
    bad[3] = f32::NAN;
    assert!(forward::token_nll(&bad, &head, &targets)[0].is_nan(), "NaN must not be lost on the way");
}

#[test]
fn the_exponential_is_exact_enough() {
    for i in -8700..=8800 {
        let x = i as f32 / 100.0;
        let (found, expected) = (f64::from(elementwise::exp(x)), f64::from(x).exp());
        assert!((found / expected - 1.0).abs() < 4e-7, "{x}: {found} {expected}");
    }
    assert!(elementwise::exp(f32::NAN).is_nan());
}

/// Two updates by hand, in f64.
#[test]
fn adamw_follows_its_formula() {
    let settings = |step| AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.5, step };
    let (mut w, mut m, mut v) = (vec![1.0; 70_000], vec![0.0; 70_000], vec![0.0; 70_000]);
    let (mut we, mut me, mut ve) = (1.0_f64, 0.0, 0.0);
    for step in 1..=2 {
        let g = vec![3.0 * step as f32; 70_000];
        adamw::update(&mut w, &g, &mut m, &mut v, 0.5, &settings(step));
        let g = 1.5 * f64::from(step);
        me = 0.9 * me + 0.1 * g;
        ve = 0.95 * ve + 0.05 * g * g;
        let (mh, vh) = (me / (1.0 - 0.9_f64.powi(step as i32)), ve / (1.0 - 0.95_f64.powi(step as i32)));
        we -= 0.1 * 0.5 * we + 0.1 * mh / (vh.sqrt() + 1e-8);
    }
    assert!(w.iter().all(|w| (f64::from(*w) - we).abs() < 1e-6), "{} {we}", w[0]);
    assert!((adamw::sum_of_squares(&[3.0, 4.0]) - 25.0).abs() < 1e-12);
}

/// The same bits whatever the number of threads.
#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let (d, f, n) = (48, 96, 200);
            let x = numbers(n * d, 1);
            let (norm, gate, up, down) = (numbers(d, 2), numbers(f * d, 3), numbers(f * d, 4), numbers(d * f, 5));
            let weights = forward::MlpWeights { norm: &norm, gate: &gate, up: &up, down: &down };
            forward::mlp_block(&x, &weights, 1e-5, NormOrder::Before)
        })
    };
    let one = run(1);
    assert!(run(2).iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(run(3).iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits()));
}
