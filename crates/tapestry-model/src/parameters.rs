//! The parameters of a Llama model: names, shapes, and tensors made from values.
//!
//! Names are those of Hugging Face. Everything that walks over parameters (loading, saving, initialising, streaming)
//! takes names and shapes from here.

use crate::{LlamaConfig, ModelError};
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

pub(crate) const INPUT_NORM: &str = "input_layernorm";
pub(crate) const Q: &str = "self_attn.q_proj";
pub(crate) const K: &str = "self_attn.k_proj";
pub(crate) const V: &str = "self_attn.v_proj";
pub(crate) const O: &str = "self_attn.o_proj";
pub(crate) const POST_ATTENTION_NORM: &str = "post_attention_layernorm";
pub(crate) const GATE: &str = "mlp.gate_proj";
pub(crate) const UP: &str = "mlp.up_proj";
pub(crate) const DOWN: &str = "mlp.down_proj";

const LAYER_PARTS: [&str; 9] = [
    INPUT_NORM,
    Q,
    K,
    V,
    O,
    POST_ATTENTION_NORM,
    GATE,
    UP,
    DOWN,
];

/// A parameter's name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// The Hugging Face name.
    pub name: String,
    /// Its dimensions, outermost first: one or two.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// How many numbers the parameter holds.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Gives the values of a parameter, exactly as many as its shape asks for.
pub(crate) type Values<'a> = dyn FnMut(&ParameterSpec) -> Result<Vec<f32>, ModelError> + 'a;

/// Every parameter of a model with this configuration: embedding, layers in order, final norm, and the output matrix
/// where it is not tied to the embedding.
#[must_use]
pub fn parameter_specs(config: &LlamaConfig) -> Vec<ParameterSpec> {
    let mut specs = vec![embedding(config)];
    for layer in 0..config.num_hidden_layers {
        specs.extend(LAYER_PARTS.map(|part| of_layer(config, layer, part)));
    }
    specs.push(final_norm(config));
    if !config.tie_word_embeddings {
        specs.push(head(config));
    }
    specs
}

pub(crate) fn embedding(config: &LlamaConfig) -> ParameterSpec {
    ParameterSpec {
        name: EMBEDDING.to_owned(),
        shape: vec![config.vocab_size, config.hidden_size],
    }
}

pub(crate) fn final_norm(config: &LlamaConfig) -> ParameterSpec {
    ParameterSpec {
        name: FINAL_NORM.to_owned(),
        shape: vec![config.hidden_size],
    }
}

/// The matrix that turns the last hidden state into logits: the embedding itself where the output is tied.
pub(crate) fn head(config: &LlamaConfig) -> ParameterSpec {
    let name = if config.tie_word_embeddings {
        EMBEDDING
    } else {
        HEAD
    };
    ParameterSpec {
        name: name.to_owned(),
        shape: vec![config.vocab_size, config.hidden_size],
    }
}

/// One part of one layer.
///
/// # Panics
/// When `part` is not one of this module's constants.
pub(crate) fn of_layer(config: &LlamaConfig, layer: usize, part: &str) -> ParameterSpec {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let shape = match part {
        INPUT_NORM | POST_ATTENTION_NORM => vec![d],
        Q => vec![q, d],
        K | V => vec![kv, d],
        O => vec![d, q],
        GATE | UP => vec![f, d],
        DOWN => vec![d, f],
        other => unreachable!("{other} is not a part of a layer"),
    };
    ParameterSpec {
        name: format!("model.layers.{layer}.{part}.weight"),
        shape,
    }
}

/// A matrix parameter from row-major values.
pub(crate) fn matrix(values: Vec<f32>, shape: &[usize], device: &Device) -> Param<Tensor<2>> {
    Param::from_data(TensorData::new(values, [shape[0], shape[1]]), device)
}

/// A vector parameter.
pub(crate) fn vector(values: Vec<f32>, shape: &[usize], device: &Device) -> Param<Tensor<1>> {
    Param::from_data(TensorData::new(values, [shape[0]]), device)
}
