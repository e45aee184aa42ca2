//! Weights in memory, and a byte-level tokenizer.

use std::collections::BTreeMap;
use std::path::Path;
use tapestry_core::TensorSpec;
use tapestry_model::DecoderConfig;
use tapestry_weights::{WeightSource, WeightsError, expected_tensors};

/// Weights that can be changed before they are used.
#[derive(Clone)]
pub(crate) struct MemoryWeights {
    pub(crate) tensors: Vec<TensorSpec>,
    pub(crate) values: Vec<Vec<f32>>,
}

impl MemoryWeights {
    /// The weights that `tests/golden/make.py` makes from the same seed.
    pub(crate) fn generate(config: &DecoderConfig, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let tensors = expected_tensors(config);
        let values = tensors.iter().map(|spec| {
            let is_norm = spec.shape.len() == 1 && !spec.name.ends_with("bias");
            let shift = if is_norm { 1.0 } else { 0.0 };
            (0..spec.num_elements().unwrap()).map(|_| numbers.next() + shift).collect()
        });
        Self { values: values.collect(), tensors }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Vec<f32> {
        let index = self.index_of(name).unwrap();
        &mut self.values[index]
    }
}

impl WeightSource for MemoryWeights {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let (first, count) = (usize::try_from(first).unwrap(), usize::try_from(count).unwrap());
        Ok(self.values[tensor][first..first + count].to_vec())
    }
}

/// A linear congruential generator of numbers from -0.5 to 0.5.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    #[expect(clippy::cast_precision_loss, reason = "24 bits are kept exactly")]
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / 16_777_216.0 - 0.5
    }
}

/// A byte-level BPE tokenizer with a few merges; 256 bytes, the merges, and `<|endoftext|>`.
pub(crate) fn tokenizer_json() -> String {
    let merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["i", "n"], ["Ã", "©"], ["Ġ", "a"], ["Ġ", "Ġ"], ["Ġ", "Ċ"]];
    let mut alphabet: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().iter().map(ToString::to_string).collect();
    alphabet.sort();
    alphabet.extend(merges.iter().map(|pair| pair.concat()));
    let mut vocab: BTreeMap<String, usize> = alphabet.into_iter().zip(1..).collect();
    vocab.insert("<|endoftext|>".into(), 0);
    let level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges,
        },
    })
    .to_string()
}

pub(crate) const TOKENIZER_SIZE: usize = 256 + 8 + 1;

/// A model's folder with random weights.
pub(crate) fn model_dir(dir: &Path, seed: u64) -> DecoderConfig {
    let tokenizer = dir.with_extension("tokenizer.json");
    std::fs::write(&tokenizer, tokenizer_json()).unwrap();
    let config = DecoderConfig::tiny(TOKENIZER_SIZE);
    tapestry_model::init_model(dir, &config, &tokenizer, seed).unwrap();
    config
}
