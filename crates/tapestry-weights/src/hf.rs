//! A model's folder in Hugging Face layout.

use crate::{DecoderShape, SafetensorsModel, WeightSource as _, WeightsError, expected_tensors};
use std::path::{Path, PathBuf};
use tapestry_core::{Blob, TensorSpec, WeightsManifest};

/// A folder with `config.json`, `tokenizer.json` and weights that belong together.
#[derive(Debug, Clone)]
pub struct HfDir {
    /// The configuration.
    pub config_path: PathBuf,
    /// The weights: `model.safetensors`, or the index of shards; [`SafetensorsModel::open`] opens either.
    pub weights_path: PathBuf,
    /// The tokenizer.
    pub tokenizer_path: PathBuf,
    /// What the configuration says.
    pub shape: DecoderShape,
}

impl HfDir {
    /// Opens a folder and checks that its weights are those that its configuration describes. Any float type will do.
    ///
    /// # Errors
    /// [`WeightsError`] naming the file and the first fault.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let file = |name: &str| {
            let path = dir.join(name);
            let found = std::fs::metadata(&path).map_err(WeightsError::io("open", &path));
            found.map(|_| path)
        };
        let (config_path, tokenizer_path) = (file("config.json")?, file("tokenizer.json")?);
        let shape = DecoderShape::read(&config_path)?;
        let weights = SafetensorsModel::open(dir)?;
        let weights_path = weights.path().to_path_buf();
        let manifest =
            |tensors: Vec<TensorSpec>| WeightsManifest { tensors, data: Blob { size_bytes: 0, chunks: vec![] } };
        let mut expected = expected_tensors(&shape);
        for spec in &mut expected {
            if let Some(index) = weights.index_of(&spec.name) {
                spec.dtype = weights.tensors()[index].dtype;
            }
        }
        let found = manifest(weights.tensors().to_vec());
        let fits = found.check_matches(&manifest(expected));
        fits.map_err(|source| WeightsError::Mismatch { path: weights_path.clone(), source })?;
        Ok(Self { config_path, weights_path, tokenizer_path, shape })
    }
}
