//! The same model out of Burn's own operations, in the fastest way found: the query heads that share keys lie below each
//! other, so that keys and values need not be repeated.

use crate::model::{EPS, HEAD_DIM, Layer, Model, NUM_HEADS, NUM_KV_HEADS, NUM_TOKENS, WIDTH};
use burn::tensor::{Int, Tensor, TensorData, activation};

fn rms_norm(x: Tensor<2>, weight: Tensor<1>) -> Tensor<2> {
    let factors = (x.clone().powi_scalar(2).mean_dim(1) + EPS).sqrt();
    x / factors * weight.unsqueeze()
}

fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

/// What is the same in each layer.
struct Positions {
    cos: Tensor<3>,
    sin: Tensor<3>,
    mask: Tensor<4>,
}

impl Positions {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers, rounded to f32")]
    fn new(model: &Model) -> Self {
        let device = model.table.device();
        let half = HEAD_DIM / 2;
        let table = |of: fn(f64) -> f64| {
            let angle = |p: usize, i: usize| p as f64 * 100_000_f64.powf(-(i as f64) / half as f64);
            let values: Vec<f32> =
                (0..NUM_TOKENS).flat_map(|p| (0..half).map(move |i| of(angle(p, i)) as f32)).collect();
            Tensor::<3>::from_data(TensorData::new(values, [1, NUM_TOKENS, half]), &device)
        };
        let hidden = |i: usize| if i % NUM_TOKENS > i / NUM_TOKENS { -1e9 } else { 0.0 };
        let mask: Vec<f32> = (0..NUM_TOKENS * NUM_TOKENS).map(hidden).collect();
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            mask: Tensor::from_data(TensorData::new(mask, [1, 1, NUM_TOKENS, NUM_TOKENS]), &device),
        }
    }

    /// `[t, h*e]` to `[h, t, e]`, turned.
    fn rotate(&self, x: Tensor<3>) -> Tensor<3> {
        let half = HEAD_DIM / 2;
        let (a, b) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![first, b * cos + a * sin], 2)
    }
}

impl Layer {
    fn composed(&self, x: Tensor<2>, positions: &Positions) -> Tensor<2> {
        let shared = NUM_HEADS / NUM_KV_HEADS;
        let [q, k, v, o] = &self.attention;
        let normed = rms_norm(x.clone(), self.attention_norm.clone());
        let heads =
            |x: Tensor<2>, count: usize| -> Tensor<3> { x.reshape([NUM_TOKENS, count, HEAD_DIM]).swap_dims(0, 1) };
        let q = positions.rotate(heads(linear(normed.clone(), q), NUM_HEADS));
        let k = positions.rotate(heads(linear(normed.clone(), k), NUM_KV_HEADS));
        let v = heads(linear(normed, v), NUM_KV_HEADS);
        let q = q.mul_scalar(0.125).reshape([NUM_KV_HEADS, shared * NUM_TOKENS, HEAD_DIM]);
        let scores = q.matmul(k.swap_dims(1, 2)).reshape([NUM_KV_HEADS, shared, NUM_TOKENS, NUM_TOKENS]);
        let p: Tensor<4> = activation::softmax(scores + positions.mask.clone(), 3);
        let out = p.reshape([NUM_KV_HEADS, shared * NUM_TOKENS, NUM_TOKENS]).matmul(v);
        let out: Tensor<3> = out.reshape([NUM_HEADS, NUM_TOKENS, HEAD_DIM]).swap_dims(0, 1);
        let x = x + linear(out.reshape([NUM_TOKENS, WIDTH]), o);
        let [gate, up, down] = &self.mlp;
        let normed = rms_norm(x.clone(), self.mlp_norm.clone());
        x + linear(activation::silu(linear(normed.clone(), gate)) * linear(normed, up), down)
    }
}

impl Model {
    /// The mean of `-ln p` over the targets.
    pub(crate) fn composed_loss(&self) -> Tensor<1> {
        let device = self.table.device();
        let int = |values: &[u32]| {
            let values: Vec<i64> = values.iter().map(|id| i64::from(*id)).collect();
            Tensor::<1, Int>::from_data(TensorData::new(values, [NUM_TOKENS]), &device)
        };
        let positions = Positions::new(self);
        let mut x = self.table.clone().select(0, int(&self.ids));
        for layer in &self.layers {
            x = layer.composed(x, &positions);
        }
        let logits = linear(rms_norm(x, self.norm.clone()), &self.table);
        let targets: Tensor<2, Int> = int(&self.targets).reshape([NUM_TOKENS, 1]);
        activation::log_softmax(logits, 1).gather(1, targets).mean().neg()
    }
}
