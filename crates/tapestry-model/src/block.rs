//! One decoder layer, and the rotary positions that all layers share.
//!
//! [`Block`] is the only definition of a layer's arithmetic: the resident model holds all of them, the streaming scorer
//! holds one at a time.
//!
//! Shape letters: b batch, t time, d width, f feed-forward width, h query heads, k key/value heads, g query heads per
//! key/value head, e head width.

use crate::{LlamaConfig, ModelError, parameters};
use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor, TensorData, activation};

/// Cosines and sines of the rotary position embedding.
///
/// Half-rotated: dimension `i` of a head turns together with dimension `i + e/2`, as the Hugging Face layout has it.
///
/// # Source
/// Su et al., "RoFormer", equation 34, with the pairs laid out in halves.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[t, e/2]`
    cos_te: Tensor<2>,
    /// `[t, e/2]`
    sin_te: Tensor<2>,
}

impl Rope {
    /// The tables for positions `0..num_positions`.
    #[must_use]
    pub fn new(config: &LlamaConfig, num_positions: usize, device: &Device) -> Self {
        let half = config.head_dim / 2;
        let (cos, sin) = rope_tables(config.rope_theta, half, num_positions);
        let table = |values| Tensor::from_data(TensorData::new(values, [num_positions, half]), device);
        Self {
            cos_te: table(cos),
            sin_te: table(sin),
        }
    }

    /// Turns `x` by its positions. Composed of plain operations.
    fn rotate(&self, x_bhte: Tensor<4>) -> Tensor<4> {
        let [b, h, t, e] = x_bhte.dims();
        let half = e / 2;
        let cos = self.cos_te.clone().slice([0..t, 0..half]).reshape([1, 1, t, half]);
        let sin = self.sin_te.clone().slice([0..t, 0..half]).reshape([1, 1, t, half]);
        let first = x_bhte.clone().slice([0..b, 0..h, 0..t, 0..half]);
        let second = x_bhte.slice([0..b, 0..h, 0..t, half..e]);
        Tensor::cat(
            vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second * cos + first * sin,
            ],
            3,
        )
    }
}

/// Angles are computed in `f64`, so that a table does not depend on how many positions were asked for.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "positions and head widths are far below 2^52; rounding the tables to f32 is the point"
)]
fn rope_tables(theta: f64, half: usize, num_positions: usize) -> (Vec<f32>, Vec<f32>) {
    let angles = (0..num_positions).flat_map(|position| {
        (0..half).map(move |i| position as f64 * theta.powf(-(i as f64) / half as f64))
    });
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
    num_heads: usize,
    num_kv_heads: usize,
    norm_eps: f64,
}

impl Block {
    /// Builds layer `layer` from a function that gives a parameter's values by its full name.
    ///
    /// # Errors
    /// Those of `values`.
    pub(crate) fn build(
        config: &LlamaConfig,
        layer: usize,
        device: &Device,
        values: &mut parameters::Values<'_>,
    ) -> Result<Self, ModelError> {
        let mut read = |part: &str| {
            let spec = parameters::of_layer(config, layer, part);
            values(&spec).map(|values| (values, spec.shape))
        };
        let mut vector = |part: &str| {
            read(part).map(|(values, shape)| parameters::vector(values, &shape, device))
        };
        let input_layernorm = vector(parameters::INPUT_NORM)?;
        let post_attention_layernorm = vector(parameters::POST_ATTENTION_NORM)?;
        let mut matrix = |part: &str| {
            read(part).map(|(values, shape)| parameters::matrix(values, &shape, device))
        };
        Ok(Self {
            input_layernorm,
            q_proj: matrix(parameters::Q)?,
            k_proj: matrix(parameters::K)?,
            v_proj: matrix(parameters::V)?,
            o_proj: matrix(parameters::O)?,
            post_attention_layernorm,
            gate_proj: matrix(parameters::GATE)?,
            up_proj: matrix(parameters::UP)?,
            down_proj: matrix(parameters::DOWN)?,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            norm_eps: config.rms_norm_eps,
        })
    }

    /// The layer's output for its input, made of plain Burn operations: the reference for the fused form.
    #[must_use]
    pub fn forward_composed(&self, x_btd: Tensor<3>, rope: &Rope) -> Tensor<3> {
        let normed = rms_norm(x_btd.clone(), self.input_layernorm.val(), self.norm_eps);
        let x_btd = x_btd + self.attention(normed, rope);
        let normed = rms_norm(
            x_btd.clone(),
            self.post_attention_layernorm.val(),
            self.norm_eps,
        );
        let gate = activation::silu(linear(normed.clone(), self.gate_proj.val()));
        let up = linear(normed, self.up_proj.val());
        x_btd + linear(gate * up, self.down_proj.val())
    }

    /// Causal attention where `g` query heads share a key/value head.
    fn attention(&self, x_btd: Tensor<3>, rope: &Rope) -> Tensor<3> {
        let [b, t, _] = x_btd.dims();
        let (h, k) = (self.num_heads, self.num_kv_heads);
        let g = h / k;
        let heads = |x: Tensor<3>, n: usize| -> Tensor<4> {
            let e = x.dims()[2] / n;
            x.reshape([b, t, n, e]).swap_dims(1, 2)
        };
        let shared = |x_bkte: Tensor<4>| -> Tensor<4> {
            let e = x_bkte.dims()[3];
            x_bkte
                .reshape([b, k, 1, t, e])
                .expand([b, k, g, t, e])
                .reshape([b, h, t, e])
        };
        let q_bhte = rope.rotate(heads(linear(x_btd.clone(), self.q_proj.val()), h));
        let k_bkte = rope.rotate(heads(linear(x_btd.clone(), self.k_proj.val()), k));
        let v_bkte = heads(linear(x_btd, self.v_proj.val()), k);
        let e = q_bhte.dims()[3];

        let scores_bhtt = q_bhte.matmul(shared(k_bkte).swap_dims(2, 3)) / head_scale(e);
        let future: Tensor<2, Bool> = Tensor::tril_mask([t, t], 0, &scores_bhtt.device());
        let scores_bhtt = scores_bhtt.mask_fill(future.reshape([1, 1, t, t]), f32::NEG_INFINITY);
        let mixed_bhte = activation::softmax(scores_bhtt, 3).matmul(shared(v_bkte));
        linear(mixed_bhte.swap_dims(1, 2).reshape([b, t, h * e]), self.o_proj.val())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a head width")]
fn head_scale(head_dim: usize) -> f64 {
    (head_dim as f64).sqrt()
}

/// `x · wᵀ` for a weight stored `[out, in]`.
pub(crate) fn linear(x_btd: Tensor<3>, weight_oi: Tensor<2>) -> Tensor<3> {
    let [b, t, d] = x_btd.dims();
    let out = weight_oi.dims()[0];
    x_btd
        .reshape([b * t, d])
        .matmul(weight_oi.transpose())
        .reshape([b, t, out])
}

/// `x / sqrt(mean(x²) + eps) · weight`.
///
/// # Source
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4, with eps inside the root as Llama has it.
pub(crate) fn rms_norm(x_btd: Tensor<3>, weight_d: Tensor<1>, eps: f64) -> Tensor<3> {
    let mean_square = x_btd.clone().square().mean_dim(2);
    let root = (mean_square + eps).sqrt();
    x_btd / root * weight_d.reshape([1, 1, -1])
}
