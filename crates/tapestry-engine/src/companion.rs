//! The small files beside the weights: configuration and tokenizer.

use crate::EngineError;
use crate::file::replace_file;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tapestry_core::{Digest, Dtype};

/// Companions are small; a larger file is none.
const MAX_COMPANION_BYTES: u64 = 256 << 20;
/// What goes with the weights to the output. A model card stays: it speaks of another model.
const EXTENSIONS: [&str; 4] = ["json", "txt", "model", "jinja"];
/// Fields of `config.json` that say nothing about what the weights mean.
const FREE_FIELDS: [&str; 7] = [
    "_name_or_path",
    "dtype",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "quantization_config",
];

/// Checks that all folders hold models of one architecture with one tokenizer. Files given alone have no companions.
pub(crate) fn check_companions(folders: &[&Path]) -> Result<(), EngineError> {
    let folders: Vec<&Path> = folders.iter().copied().filter(|folder| folder.is_dir()).collect();
    let Some((first, rest)) = folders.split_first() else { return Ok(()) };
    let (config, tokenizer) = (read_config(first)?, digest(&first.join("tokenizer.json"))?);
    for folder in rest {
        let differs = |what: &str, detail: String| EngineError::Companion {
            what: what.into(),
            first: first.display().to_string(),
            second: folder.display().to_string(),
            detail,
        };
        if let (Some(expected), Some(found)) = (&config, &read_config(folder)?) {
            let names = expected.keys().chain(found.keys()).filter(|name| !FREE_FIELDS.contains(&name.as_str()));
            for name in names {
                let (expected, found) = (expected.get(name), found.get(name));
                if expected != found {
                    let show =
                        |value: Option<&Value>| value.map_or_else(|| "absent".into(), |v| shorten(&v.to_string()));
                    let detail = format!("`{name}` is {} there and {} here", show(expected), show(found));
                    return Err(differs("config.json", detail));
                }
            }
        }
        if let (Some(expected), Some(found)) = (tokenizer, digest(&folder.join("tokenizer.json"))?)
            && expected != found
        {
            return Err(differs(
                "tokenizer.json",
                format!("BLAKE3 {} there and {} here", expected.short(), found.short()),
            ));
        }
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    if text.chars().count() > 80 { text.chars().take(80).chain("…".chars()).collect() } else { text.to_string() }
}

fn read_config(folder: &Path) -> Result<Option<serde_json::Map<String, Value>>, EngineError> {
    let path = folder.join("config.json");
    let Some(content) = read(&path)? else { return Ok(None) };
    match serde_json::from_slice(&content) {
        Ok(Value::Object(config)) => Ok(Some(config)),
        other => {
            let reason = other.map_or_else(|e| e.to_string(), |_| "it is not an object".into());
            Err(EngineError::io("understand", &path)(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)))
        }
    }
}

fn digest(path: &Path) -> Result<Option<Digest>, EngineError> {
    Ok(read(path)?.map(|content| Digest::of(&content)))
}

/// A small file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EngineError::io("read", path)(error)),
        Ok(facts) if facts.len() > MAX_COMPANION_BYTES => {
            let reason = format!("it has {} bytes; at most {MAX_COMPANION_BYTES} are read", facts.len());
            return Err(EngineError::io("read", path)(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason)));
        }
        Ok(_) => {}
    }
    fs::read(path).map(Some).map_err(EngineError::io("read", path))
}

/// Copies configuration and tokenizer to the output; the configuration states the output's type of element.
pub(crate) fn copy_companions(from: &Path, to: &Path, dtype: Option<Dtype>) -> Result<(), EngineError> {
    if !from.is_dir() {
        return Ok(());
    }
    let mut paths: Vec<PathBuf> = vec![];
    for entry in fs::read_dir(from).map_err(EngineError::io("read", from))? {
        paths.push(entry.map_err(EngineError::io("read", from))?.path());
    }
    for path in paths {
        let (Some(name), Some(extension)) = (path.file_name(), path.extension()) else { continue };
        let is_companion = EXTENSIONS.iter().any(|known| extension == *known);
        let is_record = name.to_string_lossy().ends_with(".index.json") || name == "merge.json";
        if !is_companion || is_record || !path.is_file() {
            continue;
        }
        let Some(content) = read(&path)? else { continue };
        let content = if name == "config.json" { with_dtype(content, dtype) } else { content };
        replace_file(&to.join(name), &content)?;
    }
    Ok(())
}

/// The configuration with the type of element that the output has.
fn with_dtype(content: Vec<u8>, dtype: Option<Dtype>) -> Vec<u8> {
    let Some(dtype) = dtype else { return content };
    let Ok(Value::Object(mut config)) = serde_json::from_slice(&content) else { return content };
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
    };
    for field in ["torch_dtype", "dtype"] {
        if let Some(value) = config.get_mut(field) {
            *value = name.into();
        }
    }
    serde_json::to_vec_pretty(&config).unwrap_or(content)
}
