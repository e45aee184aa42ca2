//! Text to tokens, and how much text each token stands for.

use crate::{DecoderConfig, ModelError};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

/// Why a text cannot be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content describes no tokenizer.
    #[error("tokenizer.json is not a tokenizer: {reason}; copy it again from the model's origin")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// More bytes than any real tokenizer has.
    #[error("tokenizer.json has {found} bytes; at most {limit} are read")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The tokenizer refused the text.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// What it said.
        reason: String,
    },
    /// The tokens do not stand for exactly the bytes of the text.
    #[error(
        "the tokens stand for {found} bytes, the text has {expected}: this tokenizer is not a byte-level one without normalisation, and bits per byte would be wrong"
    )]
    NotByteLevel {
        /// Bytes of the text.
        expected: usize,
        /// Sum over its tokens.
        found: usize,
    },
}

/// A text as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids, in the order of the text.
    pub ids: Vec<u32>,
    /// How many bytes of the text each of them stands for; they add up to the text.
    pub byte_lengths: Vec<u32>,
}

/// A byte-level BPE tokenizer, as `tokenizer.json` describes it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each token stands for, by id; empty for ids that are not used.
    pieces: Vec<Box<[u8]>>,
    /// Ids that mark something instead of standing for text.
    special_ids: BTreeSet<u32>,
    eos_id: Option<u32>,
}

/// The largest real files have about 30 MB.
const MAX_FILE_BYTES: usize = 256 << 20;
/// Text is given to the tokenizer in pieces of about this many bytes, so that its working memory stays small.
const PIECE_BYTES: usize = 64 << 10;
/// Names that families of models give to the token that ends a text, the ones meant for documents first.
const EOS_NAMES: [&str; 4] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>"];

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Io`], or as [`Tokenizer::from_bytes`].
    pub fn read(path: &Path) -> Result<Self, TokenizerError> {
        let io = |source| TokenizerError::Io { path: path.to_path_buf(), source };
        let size = usize::try_from(std::fs::metadata(path).map_err(io)?.len()).unwrap_or(usize::MAX);
        check_size(size)?;
        Self::from_bytes(&std::fs::read(path).map_err(io)?)
    }

    /// Parses the content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Malformed`] with what the parser said.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        check_size(json.len())?;
        let malformed = |e: tokenizers::Error| TokenizerError::Malformed { reason: e.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(malformed)?;
        // A tokenizer.json may ask for cutting and padding, which would lose text.
        inner.with_truncation(None).map_err(malformed)?;
        inner.with_padding(None);

        let added = inner.get_added_tokens_decoder();
        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        if size > 1 << 24 {
            let reason = format!("it has token id {}, and more than 2^24 are not accepted", size - 1);
            return Err(TokenizerError::Malformed { reason });
        }
        let mut pieces = vec![Box::default(); size];
        for (token, id) in &vocabulary {
            // In a byte-level vocabulary every byte is written as one character; added tokens are written as they are.
            let bytes = if added.contains_key(id) { token.as_bytes().into() } else { byte_level(token) };
            pieces[*id as usize] = bytes;
        }
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let eos_id = EOS_NAMES.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self { inner, pieces, special_ids, eos_id })
    }

    /// How many ids there are, including unused ones below the largest.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The token that ends a document, where the vocabulary has one under a usual name.
    #[must_use]
    pub const fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The id of a token by its text, as the vocabulary writes it.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether a token marks something (an end, a turn) instead of standing for text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The bytes that a token stands for; none for an id that the vocabulary does not have.
    #[must_use]
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], |piece| piece)
    }

    /// The text of tokens; special ones are left out. Bytes that are no UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let text = ids.iter().filter(|id| !self.is_special(**id)).flat_map(|id| self.bytes_of(*id)).copied();
        String::from_utf8_lossy(&text.collect::<Vec<u8>>()).into_owned()
    }

    /// Checks that a model knows every token.
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn check_fits(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        if self.vocab_size() <= config.vocab_size {
            return Ok(());
        }
        let (found, known) = (self.vocab_size(), config.vocab_size);
        Err(ModelError::Config {
            reason: format!("the tokenizer has {found} tokens, the model a vocabulary of {known}"),
        })
    }

    /// Tokenises a prompt with what the tokenizer puts before and after a text (for some families a token that begins it).
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding.map_err(|e| TokenizerError::Encode { reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokenises a whole text, without adding special tokens. Where the tokenizer brings text into one of Unicode's forms (Qwen's NFC), the tokens
    /// stand for the bytes of that form.
    ///
    /// # Errors
    /// [`TokenizerError::NotByteLevel`] where the tokens do not stand for exactly the bytes of the text.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        self.encode_first(text, usize::MAX)
    }

    /// The first tokens of [`Tokenizer::encode`], at least `num_tokens` of them where the text has so many, without
    /// looking at much more of the text than they need.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the part that was looked at.
    pub fn encode_first(&self, text: &str, num_tokens: usize) -> Result<Encoded, TokenizerError> {
        // A tokenizer that brings a text into one of Unicode's forms stands for the text in that form.
        let normalized = self.normalized(text)?;
        let mut encoded = Encoded::default();
        let mut rest = normalized.as_ref();
        while !rest.is_empty() && encoded.ids.len() < num_tokens {
            let (piece, after) = rest.split_at(self.piece_end(rest));
            let encoding = self.inner.encode_fast(piece, false);
            let encoding = encoding.map_err(|e| TokenizerError::Encode { reason: e.to_string() })?;
            let lengths =
                encoding.get_ids().iter().map(|id| u32::try_from(self.bytes_of(*id).len()).unwrap_or(u32::MAX));
            let before = encoded.byte_lengths.len();
            encoded.byte_lengths.extend(lengths);
            encoded.ids.extend(encoding.get_ids());
            let found = encoded.byte_lengths[before..].iter().map(|length| *length as usize).sum();
            if found != piece.len() {
                return Err(TokenizerError::NotByteLevel { expected: piece.len(), found });
            }
            rest = after;
        }
        Ok(encoded)
    }

    /// The text in the form of Unicode that the tokenizer brings it into.
    fn normalized<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, TokenizerError> {
        // Unicode's canonical form means the same text; what else may be done to a text would not.
        let Some(normalizer @ NormalizerWrapper::NFC(_)) = self.inner.get_normalizer() else {
            return Ok(Cow::Borrowed(text));
        };
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized).map_err(|e| TokenizerError::Encode { reason: e.to_string() })?;
        Ok(Cow::Owned(normalized.get().to_owned()))
    }

    /// Where to cut so that the pieces give the same tokens as the whole.
    ///
    /// Pre-tokenizers of byte-level vocabularies never join a letter with white space that follows it, so that is where a
    /// text may be cut. A tokenizer without pre-tokenizer gets the whole text.
    fn piece_end(&self, text: &str) -> usize {
        if self.inner.get_pre_tokenizer().is_none() || text.len() <= PIECE_BYTES {
            return text.len();
        }
        let start = text.ceil_char_boundary(PIECE_BYTES);
        let mut previous = ' ';
        for (at, character) in text[start..].char_indices() {
            if previous.is_alphabetic() && character.is_whitespace() {
                return start + at;
            }
            previous = character;
        }
        text.len()
    }
}

/// The bytes of a token in a byte-level vocabulary, where printable bytes are written as themselves and the others as the characters from
/// U+0100 on, in their order. What is not written so (in a vocabulary of another kind) is taken as it is.
///
/// # Source
/// Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.2; the table is that of the released code.
fn byte_level(token: &str) -> Box<[u8]> {
    let byte = |character: char| match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

fn check_size(found: usize) -> Result<(), TokenizerError> {
    if found > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { found, limit: MAX_FILE_BYTES });
    }
    Ok(())
}
