//! One decoder layer: its parameters, and the fused operations that it is made of.
//!
//! Shape letters: b batch, t time, d width, f feed-forward width, h query heads, k key/value heads, e head width.

use crate::parameters::{Parameters, layer_name};
use crate::{LlamaConfig, ModelError};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;
use tapestry_kernels::{AttentionPlan, ops};

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
        })
    }

    /// The parameters with the part of their Hugging Face name that is the same in every layer.
    pub(crate) fn vectors(&self) -> [(&'static str, &Param<Tensor<1>>); 2] {
        [("input_layernorm", &self.input_layernorm), ("post_attention_layernorm", &self.post_attention_layernorm)]
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

    /// The layer's output for its input.
    pub(crate) fn forward(&self, x_btd: Tensor<3>, plan: &Arc<AttentionPlan>) -> Tensor<3> {
        let attention = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj].map(Param::val);
        let x_btd = ops::attention_block(x_btd, self.input_layernorm.val(), attention, plan.clone());
        let mlp = [&self.gate_proj, &self.up_proj, &self.down_proj].map(Param::val);
        ops::mlp_block(x_btd, self.post_attention_layernorm.val(), mlp, plan.norm_eps)
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
