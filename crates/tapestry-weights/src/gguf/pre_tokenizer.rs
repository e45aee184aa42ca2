//! How a byte-level tokenizer cuts a text before its merges, by the names that GGUF has for it.
//!
//! Source: the patterns are those of the published tokenizers of the families.

use serde_json::{Value as Json, json};

/// A way to cut a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    /// GPT-2.
    Gpt2,
    /// SmolLM: digits by themselves, then as GPT-2.
    SmolLm,
    /// Llama 3: digits in threes, line ends with what is before them.
    Llama3,
    /// Qwen2, Qwen2.5 and Qwen3: digits by themselves, text in Unicode's form C.
    Qwen2,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    pub(crate) const ALL: [Self; 4] = [Self::Gpt2, Self::SmolLm, Self::Llama3, Self::Qwen2];

    /// The name in `tokenizer.ggml.pre`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        // The other names are of tokenizers that cut in the same way.
        match name {
            "gpt2" => Some(Self::Gpt2),
            "llama3" | "llama-v3" => Some(Self::Llama3),
            _ => Self::ALL.into_iter().find(|pre| pre.name() == name),
        }
    }

    /// That of a `tokenizer.json`, where it is one of these.
    pub(crate) fn of_tokenizer(tokenizer: &Json) -> Option<Self> {
        let found = &tokenizer["pre_tokenizer"];
        let parts = match found["type"].as_str()? {
            "Sequence" => found["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(found),
        };
        let byte_level = parts.last().filter(|part| part["type"] == "ByteLevel" && part["add_prefix_space"] != true)?;
        let has_pattern = byte_level["use_regex"] != false;
        match (&parts[..parts.len() - 1], has_pattern) {
            ([], true) => Some(Self::Gpt2),
            ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => Some(Self::SmolLm),
            ([split], false)
                if split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true =>
            {
                match split["pattern"]["Regex"].as_str()? {
                    LLAMA3 => Some(Self::Llama3),
                    QWEN2 => Some(Self::Qwen2),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    pub(crate) fn byte_level(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    /// As `tokenizer.json` has it.
    pub(crate) fn to_json(self) -> Json {
        let split = |pattern: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                Self::byte_level(false),
            ]})
        };
        match self {
            Self::Gpt2 => Self::byte_level(true),
            Self::SmolLm => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, Self::byte_level(true),
            ]}),
            Self::Llama3 => split(LLAMA3),
            Self::Qwen2 => split(QWEN2),
        }
    }

    pub(crate) fn normalizer(self) -> Json {
        if self == Self::Qwen2 { json!({"type": "NFC"}) } else { Json::Null }
    }

    /// Whether a piece that is a token as it is becomes that token, whatever the merges say.
    pub(crate) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }
}
