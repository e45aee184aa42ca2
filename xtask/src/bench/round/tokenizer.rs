//! A tokenizer with one token for each byte, so that any model can be measured on any text.

use serde_json::{Map, Value, json};

/// Its file in a model's folder.
pub(super) const FILE: &str = "tokenizer.json";

/// Byte-level BPE without merges: token `b` is byte `b`.
pub(super) fn json() -> String {
    let vocab: Map<String, Value> =
        characters().into_iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
    .to_string()
}

/// How byte-level vocabularies write each byte: printable Latin-1 as itself, the others as U+0100 onwards.
fn characters() -> Vec<char> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = (0x100..).filter_map(char::from_u32);
    (0..=255).filter_map(|byte| if is_itself(byte) { Some(char::from(byte)) } else { others.next() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let characters = characters();
        assert_eq!((characters[0], characters[32], characters[b'a' as usize], characters[0xAD]), ('Ā', 'Ġ', 'a', 'Ń'));
        assert_eq!(characters.iter().collect::<std::collections::BTreeSet<_>>().len(), 256);
    }
}
