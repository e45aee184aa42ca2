//! One decoder layer, and the rotary positions that all layers share.
//!
//! Shape letters: b batch, t time, s time of the keys, d width, f feed-forward width, h query heads, k key/value heads,
//! g query heads per key/value head, e head width, o and i the outputs and inputs of a matrix.

use crate::parameters::{Parameters, layer_name};
use crate::{LlamaConfig, ModelError};
use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

/// Cosines and sines of the rotary position embedding.
///
/// Half-rotated: dimension `i` of a head turns together with dimension `i + e/2`, as the Hugging Face layout has it.
///
/// # Source
/// Su et al., "RoFormer", equation 34, with the pairs laid out in halves.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// `[1, 1, t, e/2]`
    cos_te: Tensor<4>,
    /// `[1, 1, t, e/2]`
    sin_te: Tensor<4>,
}

impl Rope {
    /// The tables for positions `0..num_positions`.
    pub(crate) fn new(config: &LlamaConfig, num_positions: usize, device: &Device) -> Self {
        let half = config.head_dim / 2;
        let (cos, sin) = rope_tables(config.rope_theta, half, num_positions);
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
    reason = "positions and head widths are far below 2^52; rounding the tables to f32 is the point"
)]
pub(crate) fn rope_tables(theta: f64, half: usize, num_positions: usize) -> (Vec<f32>, Vec<f32>) {
    let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
    let angles = (0..num_positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// One decoder layer: attention and feed-forward, each behind a root-mean-square norm and around a residual.
///
/// All matrices are stored as Hugging Face stores them, `[out, in]`.
#[derive(Module, Debug)]
pub struct Block {
    /// `[d]`
    pub input_layernorm: Param<Tensor<1>>,
    /// `[h*e, d]`
    pub q_proj: Param<Tensor<2>>,
    /// `[k*e, d]`
    pub k_proj: Param<Tensor<2>>,
    /// `[k*e, d]`
    pub v_proj: Param<Tensor<2>>,
    /// `[d, h*e]`
    pub o_proj: Param<Tensor<2>>,
    /// `[d]`
    pub post_attention_layernorm: Param<Tensor<1>>,
    /// `[f, d]`
    pub gate_proj: Param<Tensor<2>>,
    /// `[f, d]`
    pub up_proj: Param<Tensor<2>>,
    /// `[d, f]`
    pub down_proj: Param<Tensor<2>>,
    #[module(skip)]
    config: LlamaConfig,
}

impl Block {
    /// Reads layer `layer`.
    pub(crate) fn read(
        config: &LlamaConfig,
        layer: usize,
        parameters: &Parameters<'_>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let vector = |part: &str| vector(parameters, &layer_name(layer, part), device);
        let matrix = |part: &str, out, width| matrix(parameters, &layer_name(layer, part), [out, width], device);
        Ok(Self {
            input_layernorm: vector("input_layernorm")?,
            q_proj: matrix("self_attn.q_proj", q, d)?,
            k_proj: matrix("self_attn.k_proj", kv, d)?,
            v_proj: matrix("self_attn.v_proj", kv, d)?,
            o_proj: matrix("self_attn.o_proj", d, q)?,
            post_attention_layernorm: vector("post_attention_layernorm")?,
            gate_proj: matrix("mlp.gate_proj", f, d)?,
            up_proj: matrix("mlp.up_proj", f, d)?,
            down_proj: matrix("mlp.down_proj", d, f)?,
            config: config.clone(),
        })
    }

    /// The parameters with the part of their Hugging Face name that is the same in every layer.
    pub(crate) fn vectors(&self) -> [(&'static str, &Param<Tensor<1>>); 2] {
        [
            ("input_layernorm", &self.input_layernorm),
            ("post_attention_layernorm", &self.post_attention_layernorm),
        ]
    }

    /// As [`Block::vectors`], for the matrices.
    pub(crate) fn matrices(&self) -> [(&'static str, &Param<Tensor<2>>); 7] {
        [
            ("self_attn.q_proj", &self.q_proj),
            ("self_attn.k_proj", &self.k_proj),
            ("self_attn.v_proj", &self.v_proj),
            ("self_attn.o_proj", &self.o_proj),
            ("mlp.gate_proj", &self.gate_proj),
            ("mlp.up_proj", &self.up_proj),
            ("mlp.down_proj", &self.down_proj),
        ]
    }

    /// The layer's output for its input, made of plain Burn operations. `hidden_from` is true where a position must not
    /// look: `[b, 1, t, s]`.
    pub(crate) fn forward_composed(&self, x_btd: Tensor<3>, rope: &Rope, hidden_from: &Tensor<4, Bool>) -> Tensor<3> {
        let eps = self.config.rms_norm_eps;
        let normed = rms_norm(x_btd.clone(), self.input_layernorm.val(), eps);
        let x_btd = x_btd + self.attention(normed, rope, hidden_from);
        let normed = rms_norm(x_btd.clone(), self.post_attention_layernorm.val(), eps);
        let gate_btf = activation::silu(linear(normed.clone(), self.gate_proj.val()));
        let up_btf = linear(normed, self.up_proj.val());
        x_btd + linear(gate_btf * up_btf, self.down_proj.val())
    }

    /// Attention where `g` query heads share a key/value head.
    fn attention(&self, x_btd: Tensor<3>, rope: &Rope, hidden_from: &Tensor<4, Bool>) -> Tensor<3> {
        let [b, t, _] = x_btd.dims();
        let (h, k, e) = (self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim);
        let g = h / k;
        let heads = |x: Tensor<3>, n: usize| -> Tensor<4> { x.reshape([b, t, n, e]).swap_dims(1, 2) };
        let shared = |x_bkte: Tensor<4>| -> Tensor<4> {
            let x_bkgte: Tensor<5> = x_bkte.reshape([b, k, 1, t, e]);
            x_bkgte.expand([b, k, g, t, e]).reshape([b, h, t, e])
        };
        let q_bhte = rope.rotate(heads(linear(x_btd.clone(), self.q_proj.val()), h));
        let k_bkte = rope.rotate(heads(linear(x_btd.clone(), self.k_proj.val()), k));
        let v_bkte = heads(linear(x_btd, self.v_proj.val()), k);

        let scores_bhts = q_bhte.matmul(shared(k_bkte).swap_dims(2, 3)) / head_scale(e);
        let scores_bhts = scores_bhts.mask_fill(hidden_from.clone().expand([b, h, t, t]), f32::NEG_INFINITY);
        let mixed_bhte = activation::softmax(scores_bhts, 3).matmul(shared(v_bkte));
        linear(mixed_bhte.swap_dims(1, 2).reshape([b, t, h * e]), self.o_proj.val())
    }
}

/// True where position t must not look at position s: later ones, and other segments. `[b, 1, t, s]`.
pub(crate) fn hidden_from(segments_bt: Tensor<2, Int>) -> Tensor<4, Bool> {
    let [b, t] = segments_bt.dims();
    let device = segments_bt.device();
    let mine: Tensor<4, Int> = segments_bt.clone().reshape([b, 1, t, 1]);
    let theirs: Tensor<4, Int> = segments_bt.reshape([b, 1, 1, t]);
    let elsewhere = mine.expand([b, 1, t, t]).not_equal(theirs.expand([b, 1, t, t]));
    let later: Tensor<2, Bool> = Tensor::tril_mask([t, t], 0, &device);
    elsewhere.bool_or(later.reshape([1, 1, t, t]).expand([b, 1, t, t]))
}

#[expect(clippy::cast_precision_loss, reason = "a head width")]
fn head_scale(head_dim: usize) -> f64 {
    (head_dim as f64).sqrt()
}

/// `x · wᵀ`.
pub(crate) fn linear(x_btd: Tensor<3>, weight_oi: Tensor<2>) -> Tensor<3> {
    let [b, t, d] = x_btd.dims();
    let out = weight_oi.dims()[0];
    let x: Tensor<2> = x_btd.reshape([b * t, d]);
    x.matmul(weight_oi.transpose()).reshape([b, t, out])
}

/// `x / sqrt(mean(x²) + eps) · weight`.
///
/// # Source
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4, with eps inside the root as Llama has it.
pub(crate) fn rms_norm(x_btd: Tensor<3>, weight_d: Tensor<1>, eps: f64) -> Tensor<3> {
    let mean_square = x_btd.clone().square().mean_dim(2);
    let root = (mean_square + eps).sqrt();
    let d = weight_d.dims()[0];
    x_btd / root * weight_d.reshape([1, 1, d])
}

/// Reads a vector parameter.
pub(crate) fn vector(
    parameters: &Parameters<'_>,
    name: &str,
    device: &Device,
) -> Result<Param<Tensor<1>>, ModelError> {
    let values = parameters.read(name)?;
    let size = values.len();
    Ok(Param::from_data(TensorData::new(values, [size]), device))
}

/// Reads a matrix parameter.
pub(crate) fn matrix(
    parameters: &Parameters<'_>,
    name: &str,
    shape: [usize; 2],
    device: &Device,
) -> Result<Param<Tensor<2>>, ModelError> {
    Ok(Param::from_data(TensorData::new(parameters.read(name)?, shape), device))
}
