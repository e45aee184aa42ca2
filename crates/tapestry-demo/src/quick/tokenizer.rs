//! A tokenizer with one token per byte, in the form of Hugging Face's `tokenizer.json`.

use serde_json::{Map, Value, json};

/// Special tokens; they have the first ids, in this order. The first ends a document.
pub const BYTE_TOKENIZER_SPECIALS: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"];

/// Number of tokens: the specials and one per byte.
pub const BYTE_TOKENIZER_VOCAB_SIZE: usize = BYTE_TOKENIZER_SPECIALS.len() + 256;

/// The text of `tokenizer.json`: byte-level BPE without merges, so that token `4 + b` is byte `b`.
#[must_use]
pub fn byte_tokenizer_json() -> String {
    let special = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let specials: Vec<Value> = BYTE_TOKENIZER_SPECIALS.iter().enumerate().map(special).collect();
    let mut vocab: Map<String, Value> =
        BYTE_TOKENIZER_SPECIALS.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    for (byte, shown) in byte_characters().into_iter().enumerate() {
        vocab.insert(shown.to_string(), json!(BYTE_TOKENIZER_SPECIALS.len() + byte));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    serde_json::to_string_pretty(&tokenizer).expect("JSON values serialise")
}

/// The character that stands for each byte in a byte-level vocabulary: itself where it is printable Latin-1, else the next
/// unused character from U+0100 on.
///
/// # Source
/// The byte encoder of the GPT-2 tokenizer.
fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).expect("an index below 256");
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("far below the surrogates")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_published_characters_and_no_two_share_one() {
        let characters = byte_characters();
        assert_eq!((characters[0], characters[10], characters[32]), ('Ā', 'Ċ', 'Ġ'));
        assert_eq!((characters[b'a' as usize], characters[0xE9], characters[0xAD]), ('a', 'é', 'Ń'));
        let different: std::collections::HashSet<_> = characters.iter().collect();
        assert_eq!(different.len(), 256);
    }

    #[test]
    fn every_token_has_its_id() {
        let tokenizer: Value = serde_json::from_str(&byte_tokenizer_json()).expect("JSON");
        let vocab = tokenizer["model"]["vocab"].as_object().expect("an object");
        assert_eq!(vocab.len(), BYTE_TOKENIZER_VOCAB_SIZE);
        let mut ids: Vec<u64> = vocab.values().filter_map(Value::as_u64).collect();
        ids.sort_unstable();
        assert!(ids.iter().enumerate().all(|(i, id)| i as u64 == *id));
        assert_eq!(vocab["a"], 4 + u64::from(b'a'));
    }
}
