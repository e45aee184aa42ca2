//! From the tokenizer in a GGUF file to `tokenizer.json` and `tokenizer_config.json`.

use super::token_id;
use crate::WeightsError;
use crate::gguf::pre_tokenizer::PreTokenizer;
use crate::gguf::{GgufFile, Value};
use serde_json::{Value as Json, json};

/// What puts the token that begins a text before it, where the file asks for that.
fn post_processor(file: &GgufFile, tokens: &[&str]) -> Json {
    let is_asked = file.metadata().get("tokenizer.ggml.add_bos_token") == Some(&Value::Bool(true));
    let id = token_id(file, "bos").filter(|_| is_asked);
    let Some((id, token)) = id.and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?))) else {
        return Json::Null;
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |part: &str, type_id: u8| json!({"Sequence": {"id": part, "type_id": type_id}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {*token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// The types of tokens are those of the `ggml` project. Control tokens are special.
const CONTROL: i128 = 3;
/// Added by the model's makers, and found in a text before it is cut into pieces.
const USER_DEFINED: i128 = 4;

/// Tokens of one type with their ids.
fn tokens_of_type(file: &GgufFile, tokens: &[&str], wanted: i128) -> Result<Vec<(usize, String)>, WeightsError> {
    let name = "tokenizer.ggml.token_type";
    let Value::List(types) = file.get(name)? else { return Err(file.malformed(format!("{name} is not a list"))) };
    if types.len() != tokens.len() {
        return Err(file.malformed(format!("{} token types belong to {} tokens", types.len(), tokens.len())));
    }
    let special = types.iter().enumerate().filter(|(_, kind)| **kind == Value::Integer(wanted));
    Ok(special.map(|(id, _)| (id, tokens[id].to_owned())).collect())
}

/// `tokenizer.json` for byte-level BPE.
pub(super) fn tokenizer(file: &GgufFile, tokens: &[&str]) -> Result<Json, WeightsError> {
    let model = file.get_text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(file.malformed(format!("tokenizer {model:?} is not supported; byte-level BPE (\"gpt2\") is")));
    }
    let name = file.get_text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let known = || PreTokenizer::ALL.iter().map(|pre| format!("{:?}", pre.name())).collect::<Vec<_>>().join(", ");
    let pre_tokenizer = PreTokenizer::of_name(name)
        .ok_or_else(|| file.malformed(format!("pre-tokenizer {name:?} is not supported; {} are", known())))?;
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    if vocabulary.len() != tokens.len() {
        return Err(file.malformed("two tokens are the same"));
    }
    let merges: Vec<Json> = file
        .get_texts("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((a, b)) => Ok(json!([a, b])),
            None => Err(file.malformed(format!("merge {merge:?} has no two parts"))),
        })
        .collect::<Result<_, _>>()?;
    let mut added: Vec<(usize, Json)> = vec![];
    for (kind, is_special) in [(CONTROL, true), (USER_DEFINED, false)] {
        added.extend(tokens_of_type(file, tokens, kind)?.into_iter().map(|(id, content)| {
            let entry = json!({
                "id": id, "content": content, "special": is_special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            });
            (id, entry)
        }));
    }
    added.sort_by_key(|(id, _)| *id);
    let added: Vec<Json> = added.into_iter().map(|(_, entry)| entry).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pre_tokenizer.normalizer(),
        "pre_tokenizer": pre_tokenizer.to_json(),
        "post_processor": post_processor(file, tokens),
        "decoder": PreTokenizer::byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignores_merges(),
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}

pub(super) fn tokenizer_config(file: &GgufFile, tokens: &[&str], context: usize) -> Result<Json, WeightsError> {
    let token = |name: &str| {
        let id = token_id(file, name).and_then(|id| usize::try_from(id).ok());
        id.and_then(|id| tokens.get(id)).map(|token| (*token).to_owned())
    };
    let special: Vec<_> = tokens_of_type(file, tokens, CONTROL)?.into_iter().map(|(_, token)| token).collect();
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "additional_special_tokens": special,
        "chat_template": file.get_text("tokenizer.chat_template").ok(),
    }))
}
