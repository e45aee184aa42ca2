//! The model with all its parameters in memory.
//!
//! Shape letters: b batch, t time, d width, v vocabulary, n = b*t.

use crate::block::{matrix, vector};
use crate::parameters::{EMBEDDING, FINAL_NORM, HEAD, Parameters};
use crate::{Batch, Block, DecoderConfig, ModelError};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use std::path::Path;
use tapestry_core::TensorSpec;
use tapestry_kernels::ops;
use tapestry_weights::{HfDir, SafetensorsModel, WeightSource, expected_tensors, save_safetensors};

/// The files of a model's folder that do not change with its weights; those that exist are carried along by
/// [`Decoder::save`].
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// A dense decoder-only model of one of the families of [`tapestry_weights::Family`].
///
/// On a device with automatic differentiation ([`Device::autodiff`]) it can be trained: [`Decoder::loss`], `backward`, then
/// [`Module::map`] over the parameters. Matrices are parameters of rank 2, norms of rank 1.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[v, d]`; also the output matrix where that is tied.
    pub embed_tokens: Param<Tensor<2>>,
    /// The decoder layers, first to last.
    pub layers: Vec<Block>,
    /// `[d]`
    pub norm: Param<Tensor<1>>,
    /// `[v, d]`, where the output is not tied to the embedding.
    pub lm_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    recompute: bool,
}

impl Decoder {
    /// Loads a model's folder in Hugging Face layout. Weights of 16 bits are widened to `f32`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file or tensor that is missing, of another shape, or not finite.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let files = HfDir::open(dir)?;
        let config = DecoderConfig::try_from(files.shape)?;
        Self::from_source(&SafetensorsModel::open(&files.weights_path)?, &config, device)
    }

    /// Builds a model from weights wherever they are.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn from_source(source: &dyn WeightSource, config: &DecoderConfig, device: &Device) -> Result<Self, ModelError> {
        let parameters = Parameters::check(config, source)?;
        let shape = [config.vocab_size, config.hidden_size];
        let layers = (0..config.num_hidden_layers).map(|layer| Block::read(config, layer, &parameters, device));
        let has_head = !config.tie_word_embeddings;
        Ok(Self {
            embed_tokens: matrix(&parameters, EMBEDDING, shape, device)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: vector(&parameters, FINAL_NORM, device)?,
            lm_head: has_head.then(|| matrix(&parameters, HEAD, shape, device)).transpose()?,
            config: config.clone(),
            recompute: false,
        })
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Computes each block again for its gradient instead of keeping what it made: less memory, more time, the same bits.
    #[must_use]
    pub fn with_recomputation(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// The mean of `-ln p(target)` over the positions of the batch that count. One value, in nats per token.
    ///
    /// # Errors
    /// [`ModelError::TokenOutsideVocabulary`] or [`ModelError::ContextOverflow`]; checked before anything is computed.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor<1>, ModelError> {
        let hidden_nd = self.hidden(batch)?;
        Ok(ops::linear_cross_entropy(hidden_nd, self.head_vd(), batch.targets(), batch.shares()))
    }

    /// `ln p(target)` at each position of the batch, whether it counts or not: `[n]`, row-major.
    ///
    /// # Errors
    /// As [`Decoder::loss`].
    pub fn log_probs(&self, batch: &Batch) -> Result<Tensor<1>, ModelError> {
        let hidden_nd = self.hidden(batch)?;
        Ok(ops::linear_log_probs(hidden_nd, self.head_vd(), batch.targets()))
    }

    fn head_vd(&self) -> Tensor<2> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).val()
    }

    /// What the last layer gives behind the final norm, `[n, d]`.
    fn hidden(&self, batch: &Batch) -> Result<Tensor<2>, ModelError> {
        batch.check(&self.config)?;
        let (b, t, d) = (batch.num_windows(), batch.window(), self.config.hidden_size);
        let plans = self.config.attention_plans(b, t, &batch.starts(), self.recompute);
        let x_nd = ops::embed(self.embed_tokens.val(), batch.tokens());
        let layers = self.layers.iter().zip(&plans);
        let x_btd = layers.fold(x_nd.reshape([b, t, d]), |x, (block, plan)| block.forward(x, plan));
        Ok(ops::rms_norm(x_btd, self.norm.val(), self.config.norm_eps()).reshape([b * t, d]))
    }

    /// Saves the model as a folder: the weights as canonical safetensors in `f32`, and the files beside them (configuration,
    /// tokenizer) as they are in `base_dir`. Every file appears whole or not at all, the weights last.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Weights`] where a file cannot be read or written.
    pub fn save(&self, base_dir: &Path, dir: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(dir).map_err(ModelError::io("create", dir))?;
        for name in COMPANIONS {
            let from = base_dir.join(name);
            if from.is_file() {
                let content = std::fs::read(&from).map_err(ModelError::io("read", &from))?;
                write_file(&dir.join(name), &content)?;
            }
        }
        save_safetensors(&dir.join("model.safetensors"), expected_tensors(&self.config), |spec| self.values(spec))
    }

    /// The values of a parameter by its Hugging Face name.
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>, ModelError> {
        let data = self.find(&spec.name).ok_or_else(|| ModelError::MissingTensor { name: spec.name.clone() })?;
        let values: Result<Vec<f32>, _> = data.try_into_vec();
        values.map_err(|e| ModelError::Device { name: spec.name.clone(), reason: format!("{e:?}") })
    }

    fn find(&self, name: &str) -> Option<TensorData> {
        if name == EMBEDDING {
            return Some(self.embed_tokens.val().into_data());
        }
        if name == FINAL_NORM {
            return Some(self.norm.val().into_data());
        }
        if name == HEAD {
            return self.lm_head.as_ref().map(|head| head.val().into_data());
        }
        let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
        self.layers.get(layer.parse::<usize>().ok()?)?.find(&self.config, part)
    }
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), ModelError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        std::io::Write::write_all(&mut file, content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        ModelError::io("write", path)(error)
    })
}
