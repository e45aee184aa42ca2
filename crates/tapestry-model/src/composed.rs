//! The model made of plain Burn operations, whose gradients Burn derives: the oracle for the fused form.
//!
//! Shape letters: b batch, t time, s time of the keys, n = b*t, d width, f feed-forward width, v vocabulary, h query heads,
//! k key/value heads, g query heads per key/value head, e head width, o and i the outputs and inputs of a matrix.

use crate::{Batch, Block, Decoder, DecoderConfig};
use burn::module::Param;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use tapestry_weights::QkNorm;

impl Decoder {
    /// [`Decoder::loss`].
    pub(crate) fn loss_composed(&self, batch: &Batch) -> Tensor<1> {
        let device = self.embed_tokens.device();
        let (b, t, d) = (batch.num_windows(), batch.window(), self.config().hidden_size);
        let integers = |values: &[u32]| TensorData::new(values.iter().map(|id| i64::from(*id)).collect(), [b, t]);
        let tokens_bt = Tensor::<2, Int>::from_data(integers(&batch.tokens()), &device);
        let starts_bt = Tensor::<2, Int>::from_data(integers(&batch.starts()), &device);
        let targets_bt = Tensor::<2, Int>::from_data(integers(&batch.targets()), &device);
        let shares_n = Tensor::<1>::from_data(TensorData::new(batch.shares().to_vec(), [b * t]), &device);

        let embedding_vd = self.embed_tokens.val();
        let starts_bt = &starts_bt;
        let x_btd: Tensor<3> = embedding_vd.clone().select(0, tokens_bt.reshape([b * t])).reshape([b, t, d]);
        let forward = |x, (layer, block): (usize, &Block)| {
            let rope = Rope::new(self.config(), layer, t, &device);
            let hidden_from = hidden_from(starts_bt.clone(), self.config().layer_windows[layer]);
            block.forward_composed(self.config(), x, &rope, &hidden_from)
        };
        let x_btd = self.layers.iter().enumerate().fold(x_btd, forward);
        let x_nd: Tensor<2> = rms_norm(x_btd, self.norm.val(), self.config().rms_norm_eps).reshape([b * t, d]);
        let head_vd = self.lm_head.as_ref().map_or(embedding_vd, Param::val);
        let log_p_nv = activation::log_softmax(x_nd.matmul(head_vd.transpose()), 1);
        let log_p_n: Tensor<1> = log_p_nv.gather(1, targets_bt.reshape([b * t, 1])).reshape([b * t]);
        (log_p_n * shares_n).sum().neg()
    }
}

impl Block {
    /// The layer's output for its input. `hidden_from` is true where a position must not
    /// look: `[b, 1, t, s]`.
    fn forward_composed(
        &self,
        config: &DecoderConfig,
        x_btd: Tensor<3>,
        rope: &Rope,
        hidden_from: &Tensor<4, Bool>,
    ) -> Tensor<3> {
        let eps = config.rms_norm_eps;
        let norms = [self.attention_norm.val(), self.mlp_norm.val()];
        let mlp = |x: Tensor<3>| {
            let gate_btf = activation::silu(linear(x.clone(), self.gate_proj.val()));
            linear(gate_btf * linear(x, self.up_proj.val()), self.down_proj.val())
        };
        let [attention_norm, mlp_norm] = norms;
        if config.family.traits().has_norms_after {
            let mixed = self.attention(config, x_btd.clone(), rope, hidden_from);
            let x_btd = x_btd + rms_norm(mixed, attention_norm, eps);
            return x_btd.clone() + rms_norm(mlp(x_btd), mlp_norm, eps);
        }
        let normed = rms_norm(x_btd.clone(), attention_norm, eps);
        let x_btd = x_btd + self.attention(config, normed, rope, hidden_from);
        x_btd.clone() + mlp(rms_norm(x_btd, mlp_norm, eps))
    }

    /// Queries, keys or values: matrix, bias, norm over all heads.
    fn project(&self, config: &DecoderConfig, x_btd: &Tensor<3>, matrix: &Param<Tensor<2>>, part: usize) -> Tensor<3> {
        let projected = linear(x_btd.clone(), matrix.val());
        let projected = match self.biases.get(part) {
            Some(bias) => projected + bias.val().reshape([1, 1, -1]),
            None => projected,
        };
        match (config.family.traits().qk_norm, self.qk_norms.get(part)) {
            (QkNorm::Whole, Some(norm)) => rms_norm(projected, norm.val(), config.rms_norm_eps),
            _ => projected,
        }
    }

    /// Heads with the norm over each.
    fn heads(&self, config: &DecoderConfig, x_btw: Tensor<3>, part: usize) -> Tensor<4> {
        let ([b, t, w], e) = (x_btw.dims(), config.head_dim);
        let n = w / e;
        let normed = match (config.family.traits().qk_norm, self.qk_norms.get(part)) {
            (QkNorm::Head, Some(norm)) => {
                rms_norm(x_btw.reshape([b, t * n, e]), norm.val(), config.rms_norm_eps).reshape([b, t, w])
            }
            _ => x_btw,
        };
        normed.reshape([b, t, n, e]).swap_dims(1, 2)
    }

    /// Attention where `g` query heads share a key/value head.
    fn attention(
        &self,
        config: &DecoderConfig,
        x_btd: Tensor<3>,
        rope: &Rope,
        hidden_from: &Tensor<4, Bool>,
    ) -> Tensor<3> {
        let [b, t, _] = x_btd.dims();
        let (h, k, e) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let g = h / k;
        let shared = |x_bkte: Tensor<4>| -> Tensor<4> {
            let x_bkgte: Tensor<5> = x_bkte.reshape([b, k, 1, t, e]);
            x_bkgte.expand([b, k, g, t, e]).reshape([b, h, t, e])
        };
        let q_bhte = rope.rotate(self.heads(config, self.project(config, &x_btd, &self.q_proj, 0), 0));
        let k_bkte = rope.rotate(self.heads(config, self.project(config, &x_btd, &self.k_proj, 1), 1));
        let v_bkte = self.heads(config, self.project(config, &x_btd, &self.v_proj, 2), 2);

        let scores_bhts = q_bhte.matmul(shared(k_bkte).swap_dims(2, 3)) / head_scale(e);
        let scores_bhts = scores_bhts.mask_fill(hidden_from.clone().expand([b, h, t, t]), f32::NEG_INFINITY);
        let mixed_bhte = activation::softmax(scores_bhts, 3).matmul(shared(v_bkte));
        linear(mixed_bhte.swap_dims(1, 2).reshape([b, t, h * e]), self.o_proj.val())
    }
}

/// True where position t must not look at position s: later ones, those before its document, and those before its sliding
/// window. `[b, 1, t, s]`.
fn hidden_from(starts_bt: Tensor<2, Int>, window: Option<usize>) -> Tensor<4, Bool> {
    let [b, t] = starts_bt.dims();
    let device = starts_bt.device();
    let starts: Tensor<4, Int> = starts_bt.reshape([b, 1, t, 1]).expand([b, 1, t, t]);
    let positions: Tensor<4, Int> = Tensor::<1, Int>::arange(0..t as i64, &device).reshape([1, 1, 1, t]);
    let later: Tensor<2, Bool> = Tensor::tril_mask([t, t], 0, &device);
    let before = positions.expand([b, 1, t, t]).lower(starts);
    let before = match window {
        None => before,
        Some(window) => {
            let offset = 1 - i64::try_from(window).expect("a window is small");
            let seen: Tensor<2, Bool> = Tensor::triu_mask([t, t], offset, &device);
            before.bool_or(seen.reshape([1, 1, t, t]).expand([b, 1, t, t]))
        }
    };
    before.bool_or(later.reshape([1, 1, t, t]).expand([b, 1, t, t]))
}

#[expect(clippy::cast_precision_loss, reason = "a head width")]
fn head_scale(head_dim: usize) -> f64 {
    (head_dim as f64).sqrt()
}

/// `x · wᵀ`.
fn linear(x_btd: Tensor<3>, weight_oi: Tensor<2>) -> Tensor<3> {
    let [b, t, d] = x_btd.dims();
    let out = weight_oi.dims()[0];
    let x: Tensor<2> = x_btd.reshape([b * t, d]);
    x.matmul(weight_oi.transpose()).reshape([b, t, out])
}

/// `x / sqrt(mean(x²) + eps) · weight`.
///
/// # Source
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4, with eps inside the root as Llama has it.
fn rms_norm(x_btd: Tensor<3>, weight_d: Tensor<1>, eps: f64) -> Tensor<3> {
    let mean_square = x_btd.clone().square().mean_dim(2);
    let root = (mean_square + eps).sqrt();
    let d = weight_d.dims()[0];
    x_btd / root * weight_d.reshape([1, 1, d])
}

/// Cosines and sines of the rotary position embedding.
///
/// Half-rotated: dimension `i` of a head turns together with dimension `i + e/2`, as the Hugging Face layout has it.
///
/// # Source
/// Su et al., "RoFormer", equation 34, with the pairs laid out in halves.
#[derive(Debug, Clone)]
struct Rope {
    /// `[1, 1, t, e/2]`
    cos_te: Tensor<4>,
    /// `[1, 1, t, e/2]`
    sin_te: Tensor<4>,
}

impl Rope {
    /// The tables for positions `0..num_positions`.
    fn new(config: &DecoderConfig, layer: usize, num_positions: usize, device: &Device) -> Self {
        let half = config.head_dim / 2;
        let (frequencies, magnitude) = config.rope_scaling_of(layer).frequencies(config.rope_theta, config.head_dim);
        let (cos, sin) = rope_tables(&frequencies, magnitude, num_positions);
        let table = |values| Tensor::from_data(TensorData::new(values, [1, 1, num_positions, half]), device);
        Self { cos_te: table(cos), sin_te: table(sin) }
    }

    /// Turns `x_bhte` by its positions.
    fn rotate(&self, x_bhte: Tensor<4>) -> Tensor<4> {
        let half = x_bhte.dims()[3] / 2;
        let first = x_bhte.clone().narrow(3, 0, half);
        let second = x_bhte.narrow(3, half, half);
        let (cos, sin) = (self.cos_te.clone(), self.sin_te.clone());
        let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
        Tensor::cat(vec![turned_first, second * cos + first * sin], 3)
    }
}

/// Cosines and sines, position by position. Angles are computed in `f64`, so that a table does not depend on how many
/// positions were asked for.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "positions are far below 2^52; rounding the tables to f32 is the point"
)]
fn rope_tables(frequencies: &[f64], magnitude: f64, num_positions: usize) -> (Vec<f32>, Vec<f32>) {
    let angles = (0..num_positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
    angles.map(|angle| ((angle.cos() * magnitude) as f32, (angle.sin() * magnitude) as f32)).unzip()
}
