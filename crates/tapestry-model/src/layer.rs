//! The parameters of one layer on plain slices, for what runs without gradients.

use crate::block::PartNames;
use crate::parameters::{Parameters, layer_name};
use crate::{DecoderConfig, ModelError};
use std::collections::BTreeMap;
use tapestry_kernels::AttentionPlan;
use tapestry_kernels::forward::{AttentionWeights, MlpWeights, attention_block, mlp_block};

/// The parameters of one layer.
pub(crate) struct Layer {
    norms: [Vec<f32>; 2],
    /// q, k, v, o, gate, up, down.
    matrices: [Vec<f32>; 7],
    biases: [Vec<f32>; 3],
    qk_norms: [Vec<f32>; 2],
}

impl Layer {
    pub(crate) fn read(parameters: &Parameters<'_>, config: &DecoderConfig, layer: usize) -> Result<Self, ModelError> {
        let names = PartNames::of(config);
        let norms = names.norms.iter().map(String::as_str);
        let vectors = names.biases.iter().chain(names.qk_norms).copied();
        let mut parts: Vec<&str> = norms.chain(names.matrices).chain(vectors).collect();
        // Two halves of about one size beside each other, each in the order of the names, which is that of the bytes: a source of chunks
        // that keeps two of them reads each chunk once.
        parts.sort_unstable();
        let middle = parts.partition_point(|part| *part < "mlp.up_proj");
        let all = |parts: &[&str]| -> Result<Vec<(String, Vec<f32>)>, ModelError> {
            parts.iter().map(|part| Ok(((*part).to_owned(), parameters.read(&layer_name(layer, part))?))).collect()
        };
        let (first, second) = rayon::join(|| all(&parts[..middle]), || all(&parts[middle..]));
        let mut found: BTreeMap<String, Vec<f32>> = first?.into_iter().chain(second?).collect();
        let mut take = |name: &str| found.remove(name).unwrap_or_default();
        Ok(Self {
            norms: names.norms.each_ref().map(|name| take(name)),
            matrices: names.matrices.map(&mut take),
            biases: std::array::from_fn(|at| names.biases.get(at).map(|name| take(name)).unwrap_or_default()),
            qk_norms: std::array::from_fn(|at| names.qk_norms.get(at).map(|name| take(name)).unwrap_or_default()),
        })
    }

    pub(crate) fn attention(&self) -> AttentionWeights<'_> {
        let [q, k, v, o, ..] = self.matrices.each_ref().map(Vec::as_slice);
        AttentionWeights {
            norm: &self.norms[0],
            q,
            k,
            v,
            o,
            biases: self.biases.each_ref().map(Vec::as_slice),
            qk_norms: self.qk_norms.each_ref().map(Vec::as_slice),
        }
    }

    pub(crate) fn mlp(&self) -> MlpWeights<'_> {
        let [.., gate, up, down] = self.matrices.each_ref().map(Vec::as_slice);
        MlpWeights { norm: &self.norms[1], gate, up, down }
    }

    pub(crate) fn forward(&self, stream: &[f32], plan: &AttentionPlan) -> Vec<f32> {
        let stream = attention_block(stream, &self.attention(), plan);
        mlp_block(&stream, &self.mlp(), plan.norm_eps, plan.norm_order)
    }
}
