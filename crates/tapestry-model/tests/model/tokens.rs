//! Tokens and the bytes that they stand for.

use crate::fixture::tokenizer_json;
use tapestry_model::{TextStream, Tokenizer, TokenizerError};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer_json().as_bytes()).unwrap()
}

const TEXT: &str =
    "the théâtre in the rain;  تو را من چشم در راهم\n\n子曰：「學而時習之，不亦說乎？」 \t the 😀\r\nend ";

#[test]
fn tokens_stand_for_all_bytes_of_the_text() {
    let encoded = tokenizer().encode(TEXT).unwrap();
    assert_eq!(encoded.ids.len(), encoded.byte_lengths.len());
    assert_eq!(encoded.byte_lengths.iter().sum::<u32>() as usize, TEXT.len());
    // "the" is one token of three bytes, a Chinese character three tokens of one byte each.
    assert_eq!(encoded.byte_lengths[0], 3);
    assert_eq!(tokenizer().encode("子").unwrap().byte_lengths, [1, 1, 1]);
}

#[test]
fn a_special_token_in_the_text_is_one_token_of_its_length() {
    let encoded = tokenizer().encode("in<|endoftext|>in").unwrap();
    assert_eq!(encoded.byte_lengths, [2, 13, 2]);
    assert_eq!(Some(encoded.ids[1]), tokenizer().eos_id());
}

#[test]
fn pieces_give_the_tokens_of_the_whole() {
    // Far beyond one piece, with every kind of neighbourhood where a cut might fall.
    let mut text = String::new();
    for i in 0..4000 {
        text.push_str(&TEXT.repeat(1 + i % 3)[TEXT.floor_char_boundary(i % 90)..]);
    }
    let mut whole = tokenizers::Tokenizer::from_bytes(tokenizer_json().as_bytes()).unwrap();
    whole.with_truncation(None).unwrap();
    let whole = whole.encode_fast(&*text, false);
    let encoded = tokenizer().encode(&text).unwrap();
    assert!(text.len() > 500_000);
    assert_eq!(encoded.ids, whole.unwrap().get_ids());
}

#[test]
fn the_first_tokens_are_those_of_the_whole() {
    let text = TEXT.repeat(3000);
    let whole = tokenizer().encode(&text).unwrap();
    let first = tokenizer().encode_first(&text, 1000).unwrap();
    assert!(first.ids.len() >= 1000 && first.ids.len() < whole.ids.len());
    assert_eq!(first.ids[..], whole.ids[..first.ids.len()]);
}

#[test]
fn a_text_without_a_place_to_cut_goes_whole() {
    let text = "子曰".repeat(40_000);
    assert_eq!(tokenizer().encode(&text).unwrap().ids.len(), text.len());
}

#[test]
fn a_tokenizer_that_normalises_is_refused() {
    let json = tokenizer_json()
        .replace(r#""normalizer":null"#, r#""normalizer":{"type":"Replace","pattern":{"String":"x"},"content":"yy"}"#);
    let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert!(tokenizer.encode("the").is_ok());
    assert!(matches!(tokenizer.encode("ax"), Err(TokenizerError::NotByteLevel { expected: 2, found: 3 })));
}

#[test]
fn broken_files_are_refused() {
    for json in ["", "{}", "[1]", &tokenizer_json()[..1000]] {
        assert!(matches!(Tokenizer::from_bytes(json.as_bytes()), Err(TokenizerError::Malformed { .. })), "{json:.20}");
    }
    let missing = Tokenizer::read(std::path::Path::new("/nonexistent/tokenizer.json"));
    assert!(matches!(missing, Err(TokenizerError::Io { .. })));
}

#[test]
fn tokens_become_the_text_again_piece_by_piece_and_whole() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(TEXT).unwrap().ids;
    assert_eq!(tokenizer.decode(&ids), TEXT);
    let mut stream = TextStream::default();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(pieces.concat() + &stream.finish(), TEXT);
    // The three bytes of a character come out together.
    let zi = tokenizer.encode("子").unwrap().ids;
    let mut stream = TextStream::default();
    let pieces: Vec<String> = zi.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(pieces, ["", "", "子"]);
    // Every byte has its token, and every token its byte.
    let all: Vec<u8> = (0..=255).collect();
    let found: Vec<u8> = all
        .iter()
        .map(|byte| {
            let mut ids =
                (0..u32::try_from(tokenizer.vocab_size()).unwrap()).filter(|id| tokenizer.bytes_of(*id) == [*byte]);
            let id = ids.next().unwrap();
            assert!(ids.next().is_none());
            tokenizer.bytes_of(id)[0]
        })
        .collect();
    assert_eq!(found, all);
}

#[test]
fn what_is_no_utf8_is_marked_and_special_tokens_are_left_out() {
    let tokenizer = tokenizer();
    let zi = tokenizer.encode("子").unwrap().ids;
    let a = tokenizer.encode("a").unwrap().ids[0];
    let ids = [zi[0], a, tokenizer.eos_id().unwrap(), zi[0], zi[1]];
    assert_eq!(tokenizer.decode(&ids), "\u{fffd}a\u{fffd}");
    let mut stream = TextStream::default();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(pieces, ["", "\u{fffd}a", "", "", ""]);
    assert_eq!(stream.finish(), "\u{fffd}");
    assert!(tokenizer.bytes_of(1_000_000).is_empty());
}
