//! One decoder layer: its parameters, and the fused operations that it is made of.
//!
//! Shape letters: b batch, t time, d width, f feed-forward width, h query heads, k key/value heads, e head width.

use crate::parameters::{Parameters, layer_name};
use crate::{DecoderConfig, ModelError};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;
use tapestry_kernels::ops::{self, AttentionParameters};
use tapestry_kernels::{AttentionPlan, NormOrder};
use tapestry_weights::{DecoderShape, QkNorm, norm_names};

/// One decoder layer: attention and feed-forward, each around a residual and with a root-mean-square norm.
///
/// All matrices are stored as Hugging Face stores them, `[out, in]`.
#[derive(Module, Debug)]
pub struct Block {
    /// The norm of attention, `[d]`; before or after it, as the family has it.
    pub attention_norm: Param<Tensor<1>>,
    /// `[h*e, d]`
    pub q_proj: Param<Tensor<2>>,
    /// `[k*e, d]`
    pub k_proj: Param<Tensor<2>>,
    /// `[k*e, d]`
    pub v_proj: Param<Tensor<2>>,
    /// `[d, h*e]`
    pub o_proj: Param<Tensor<2>>,
    /// The norm of the feed-forward block, `[d]`.
    pub mlp_norm: Param<Tensor<1>>,
    /// `[f, d]`
    pub gate_proj: Param<Tensor<2>>,
    /// `[f, d]`
    pub up_proj: Param<Tensor<2>>,
    /// `[d, f]`
    pub down_proj: Param<Tensor<2>>,
    /// Biases of queries, keys and values, `[h*e]`, `[k*e]`, `[k*e]`; empty where the family has none.
    pub biases: Vec<Param<Tensor<1>>>,
    /// Norms of queries and keys, `[e]` each or `[h*e]` and `[k*e]`; empty where the family has none.
    pub qk_norms: Vec<Param<Tensor<1>>>,
}

const MATRICES: [&str; 7] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
];
const BIASES: [&str; 3] = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
const QK_NORMS: [&str; 2] = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];

/// Where the family has the norms of its blocks.
pub(crate) const fn norm_order(shape: &DecoderShape) -> NormOrder {
    if shape.family.traits().has_norms_after { NormOrder::After } else { NormOrder::Before }
}

/// The names of a layer's parts, without the layer's own: norms of the two blocks, matrices, biases, norms of queries and keys. Lists that the
/// family does not have are empty.
pub(crate) struct PartNames {
    pub(crate) norms: [String; 2],
    pub(crate) matrices: [&'static str; 7],
    pub(crate) biases: &'static [&'static str],
    pub(crate) qk_norms: &'static [&'static str],
}

impl PartNames {
    pub(crate) fn of(shape: &DecoderShape) -> Self {
        let traits = shape.family.traits();
        Self {
            norms: norm_names(shape.family).map(|name| format!("{name}.weight")),
            matrices: MATRICES,
            biases: if traits.has_qkv_biases { &BIASES } else { &[] },
            qk_norms: if traits.qk_norm == QkNorm::None { &[] } else { &QK_NORMS },
        }
    }
}

impl Block {
    /// Reads layer `layer`.
    pub(crate) fn read(
        config: &DecoderConfig,
        layer: usize,
        parameters: &Parameters<'_>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let names = PartNames::of(config);
        let vector = |part: &str| vector(parameters, &layer_name(layer, part), device);
        let matrix = |part: usize, out, width| {
            matrix(parameters, &layer_name(layer, names.matrices[part]), [out, width], device)
        };
        let vectors = |parts: &[&str]| parts.iter().map(|part| vector(part)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            attention_norm: vector(&names.norms[0])?,
            q_proj: matrix(0, q, d)?,
            k_proj: matrix(1, kv, d)?,
            v_proj: matrix(2, kv, d)?,
            o_proj: matrix(3, d, q)?,
            mlp_norm: vector(&names.norms[1])?,
            gate_proj: matrix(4, f, d)?,
            up_proj: matrix(5, f, d)?,
            down_proj: matrix(6, d, f)?,
            biases: vectors(names.biases)?,
            qk_norms: vectors(names.qk_norms)?,
        })
    }

    /// A parameter by the part of its Hugging Face name that is the same in every layer.
    pub(crate) fn find(&self, config: &DecoderConfig, part: &str) -> Option<TensorData> {
        let names = PartNames::of(config);
        let matrices =
            [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj];
        if let Some(at) = names.matrices.iter().position(|name| *name == part) {
            return Some(matrices[at].val().into_data());
        }
        let norms = names.norms.iter().map(String::as_str).zip([&self.attention_norm, &self.mlp_norm]);
        let biases = names.biases.iter().copied().zip(&self.biases);
        let qk_norms = names.qk_norms.iter().copied().zip(&self.qk_norms);
        let mut vectors = norms.chain(biases).chain(qk_norms);
        vectors.find(|(name, _)| *name == part).map(|(_, vector)| vector.val().into_data())
    }

    /// The layer's output for its input.
    pub(crate) fn forward(&self, x_btd: Tensor<3>, plan: &Arc<AttentionPlan>) -> Tensor<3> {
        let list = |params: &[Param<Tensor<1>>]| params.iter().map(Param::val).collect::<Vec<_>>();
        let attention = AttentionParameters {
            norm: self.attention_norm.val(),
            matrices: [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj].map(Param::val),
            biases: list(&self.biases).try_into().ok(),
            qk_norms: list(&self.qk_norms).try_into().ok(),
        };
        let x_btd = ops::attention_block(x_btd, attention, plan.clone());
        let mlp = [&self.gate_proj, &self.up_proj, &self.down_proj].map(Param::val);
        ops::mlp_block(x_btd, self.mlp_norm.val(), mlp, plan.mlp())
    }
}

/// Reads a vector parameter.
pub(crate) fn vector(parameters: &Parameters<'_>, name: &str, device: &Device) -> Result<Param<Tensor<1>>, ModelError> {
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
