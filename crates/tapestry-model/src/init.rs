//! A new model with random weights.

use crate::decoder::write_file;
use crate::parameters::EMBEDDING;
use crate::{DecoderConfig, ModelError, Tokenizer};
use std::f64::consts::TAU;
use std::path::Path;
use tapestry_core::TensorSpec;
use tapestry_weights::{expected_tensors, save_safetensors};

/// Standard deviation of the weights of a new model.
const INIT_STD: f64 = 0.02;

/// Writes a model's folder with random weights: norms are one, biases zero, matrices are normal with a standard deviation of 0.02, and
/// those that write into the residual stream are divided by the root of twice the number of layers.
///
/// The same arguments give the same bytes on every machine of the same floating-point library.
///
/// # Errors
/// [`ModelError::Config`] where the tokenizer has more tokens than the model, [`ModelError::Io`] and
/// [`ModelError::Weights`] where a file cannot be read or written.
///
/// # Source
/// Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3.
pub fn init_model(dir: &Path, config: &DecoderConfig, tokenizer_json: &Path, seed: u64) -> Result<(), ModelError> {
    let tokenizer = Tokenizer::read(tokenizer_json)?;
    tokenizer.check_fits(config)?;
    let tokenizer = std::fs::read(tokenizer_json).map_err(ModelError::io("read", tokenizer_json))?;
    std::fs::create_dir_all(dir).map_err(ModelError::io("create", dir))?;
    write_file(&dir.join("config.json"), config.to_json().as_bytes())?;
    write_file(&dir.join("tokenizer.json"), &tokenizer)?;
    let mut random = Normal { state: seed, spare: None };
    save_safetensors(&dir.join("model.safetensors"), expected_tensors(config), |spec| {
        Ok(initial_values(spec, config, &mut random))
    })
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small counts; f32 is the result")]
fn initial_values(spec: &TensorSpec, config: &DecoderConfig, random: &mut Normal) -> Vec<f32> {
    let num_elements = spec.shape.iter().product::<u64>();
    if spec.shape.len() == 1 {
        let value = if spec.name.ends_with(".bias") { 0.0 } else { 1.0 };
        return (0..num_elements).map(|_| value).collect();
    }
    let writes_to_residual = spec.name.contains("o_proj") || spec.name.contains("down_proj");
    let std = match writes_to_residual && spec.name != EMBEDDING {
        true => INIT_STD / (2.0 * config.num_hidden_layers as f64).sqrt(),
        false => INIT_STD,
    };
    (0..num_elements).map(|_| (random.next() * std) as f32).collect()
}

/// Normally distributed numbers from a seed: SplitMix64 and the Box-Muller transform.
///
/// # Source
/// Steele et al., "Fast Splittable Pseudorandom Number Generators", figure 17; Box and Muller, "A Note on the Generation
/// of Random Normal Deviates".
struct Normal {
    state: u64,
    spare: Option<f64>,
}

impl Normal {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept exactly")]
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // One minus a number below one is never zero.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let angle = TAU * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}
