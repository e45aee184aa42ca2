#![expect(clippy::float_cmp, reason = "values that are exact in binary")]

use super::*;
use crate::{HfDir, SafetensorsFile, WeightSource as _, adopt_gguf};
use half::f16;
use std::fs;

/// Writes GGUF files, good and bad.
#[derive(Default)]
struct Writer {
    metadata: Vec<u8>,
    num_entries: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn entry(&mut self, name: &str, kind: u32, value: &[u8]) {
        text(&mut self.metadata, name);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.num_entries += 1;
    }

    fn text(&mut self, name: &str, value: &str) {
        let mut bytes = vec![];
        text(&mut bytes, value);
        self.entry(name, 8, &bytes);
    }

    fn u32(&mut self, name: &str, value: u32) {
        self.entry(name, 4, &value.to_le_bytes());
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.entry(name, 6, &value.to_le_bytes());
    }

    fn texts(&mut self, name: &str, values: &[&str]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut bytes, value));
        self.entry(name, 9, &bytes);
    }

    /// `shape` as the file has it: innermost first.
    fn describe(&mut self, name: &str, shape: &[u64], code: u32, offset: u64) {
        text(&mut self.tensors, name);
        self.tensors.extend(u32::try_from(shape.len()).expect("few").to_le_bytes());
        shape.iter().for_each(|n| self.tensors.extend(n.to_le_bytes()));
        self.tensors.extend(code.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.num_tensors += 1;
    }

    fn tensor(&mut self, name: &str, shape: &[u64], code: u32, content: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.describe(name, shape, code, self.data.len() as u64);
        self.data.extend(content);
    }

    fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_entries.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

const WIDTH: u64 = 32;
const VOCABULARY: [&str; 6] = ["a", "b", "c", "ab", "<|end|>", "d"];

/// A model with one layer, two heads of width 16, and tensors of several types.
fn tiny_model() -> Writer {
    let mut file = Writer::default();
    file.text("general.architecture", "llama");
    file.text("general.name", "tiny");
    for (name, value) in
        [("embedding_length", 32), ("feed_forward_length", 64), ("block_count", 1), ("context_length", 99)]
    {
        file.u32(&format!("llama.{name}"), value);
    }
    file.u32("llama.attention.head_count", 2);
    file.u32("llama.attention.head_count_kv", 1);
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    file.texts("tokenizer.ggml.tokens", &VOCABULARY);
    file.texts("tokenizer.ggml.merges", &["a b"]);
    let mut types = 5u32.to_le_bytes().to_vec();
    types.extend((VOCABULARY.len() as u64).to_le_bytes());
    [1i32, 1, 1, 1, 3, 1].iter().for_each(|kind| types.extend(kind.to_le_bytes()));
    file.entry("tokenizer.ggml.token_type", 9, &types);
    file.u32("tokenizer.ggml.eos_token_id", 4);
    let floats =
        |count: u64, from: f32| -> Vec<u8> { (0..count).flat_map(|i| (from + i as f32).to_le_bytes()).collect() };
    let q4_1 = |count: u64| -> Vec<u8> {
        let block: Vec<u8> = [f16::from_f32(0.5).to_le_bytes(), f16::from_f32(-1.0).to_le_bytes()]
            .concat()
            .into_iter()
            .chain((0..16).map(|i| i | (15 - i) << 4))
            .collect();
        block.repeat(usize::try_from(count / 32).expect("small"))
    };
    file.tensor("token_embd.weight", &[WIDTH, 6], 3, &q4_1(WIDTH * 6));
    file.tensor("output_norm.weight", &[WIDTH], 0, &floats(WIDTH, 1.0));
    file.tensor("blk.0.attn_norm.weight", &[WIDTH], 0, &floats(WIDTH, 1.0));
    file.tensor("blk.0.ffn_norm.weight", &[WIDTH], 0, &floats(WIDTH, 1.0));
    file.tensor("blk.0.attn_q.weight", &[WIDTH, 32], 0, &floats(WIDTH * 32, 0.0));
    file.tensor("blk.0.attn_k.weight", &[WIDTH, 16], 0, &floats(WIDTH * 16, 0.0));
    file.tensor("blk.0.attn_v.weight", &[WIDTH, 16], 0, &floats(WIDTH * 16, 0.0));
    file.tensor("blk.0.attn_output.weight", &[32, WIDTH], 0, &floats(WIDTH * 32, 0.0));
    file.tensor("blk.0.ffn_gate.weight", &[WIDTH, 64], 3, &q4_1(WIDTH * 64));
    file.tensor("blk.0.ffn_up.weight", &[WIDTH, 64], 3, &q4_1(WIDTH * 64));
    file.tensor("blk.0.ffn_down.weight", &[64, WIDTH], 3, &q4_1(WIDTH * 64));
    file
}

#[test]
fn a_model_is_adopted_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let (gguf, out) = (dir.path().join("tiny.gguf"), dir.path().join("hf"));
    fs::write(&gguf, tiny_model().finish()).expect("writes");
    let report = adopt_gguf(&gguf, &out, &mut |_, _| {}).expect("adopts");
    assert_eq!(report.stored_as["Q4_1"], 4);
    let hf = HfDir::open(&out).expect("opens");
    assert!(hf.shape.tie_word_embeddings && hf.shape.head_dim == 16 && hf.shape.rms_norm_eps == 1e-5);
    let weights = SafetensorsFile::open(&hf.weights_path).expect("opens");
    // Row 1 of a head of width 16 in pairs is the first of the second half; in halves that is row 8.
    let rows: Vec<f32> = weights
        .read_named("model.layers.0.self_attn.q_proj.weight")
        .expect("reads")
        .chunks(32)
        .map(|r| r[0] / 32.0)
        .collect();
    let head: Vec<f32> = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15].map(|i| i as f32).to_vec();
    assert_eq!(rows[..16], head);
    assert_eq!(rows[16], 16.0);
    // d*q + m: low halves first, then high halves.
    let embedding = weights.read_named("model.embed_tokens.weight").expect("reads");
    assert_eq!(embedding[..3], [-1.0, -0.5, 0.0]);
    assert_eq!(embedding[16..19], [6.5, 6.0, 5.5]);
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("tokenizer.json")).expect("reads")).expect("JSON");
    assert_eq!(tokenizer["added_tokens"][0]["content"], "<|end|>");
    assert_eq!(tokenizer["model"]["vocab"]["ab"], 3);
    assert!(matches!(adopt_gguf(&gguf, &out, &mut |_, _| {}), Err(WeightsError::Exists { .. })));
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
}

#[test]
fn blocks_follow_their_formulas() {
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    let mut q8: Vec<u8> = half(0.25).to_vec();
    q8.extend((0..32u8).map(|i| (i.cast_signed() - 16).cast_unsigned()));
    let values = GgmlType::Q8_0.dequantize(&q8);
    assert_eq!((values[0], values[16], values[31]), (-4.0, 0.0, 3.75));
    let mut q4: Vec<u8> = half(2.0).to_vec();
    q4.extend([0x80; 16]);
    let values = GgmlType::Q4_0.dequantize(&q4);
    assert_eq!((values[0], values[16]), (-16.0, 0.0));
    assert_eq!(GgmlType::BF16.dequantize(&[0x80, 0x3f]), [1.0]);
    assert_eq!(GgmlType::F16.dequantize(&half(-1.5)), [-1.5]);
}

fn refused(content: &[u8], expected: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("bad.gguf");
    fs::write(&path, content).expect("writes");
    let message = adopt_gguf(&path, &dir.path().join("out"), &mut |_, _| {}).expect_err("refused").to_string();
    assert!(message.contains(expected), "{message}\nexpected {expected:?}");
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "nothing half-written");
}

#[test]
fn files_that_lie_are_refused() {
    refused(b"GG", "ends at byte 2");
    refused(b"ABCDEFGH", "does not begin with");
    let good = tiny_model().finish();
    refused(&good[..good.len() - 1], "does not lie inside the file");
    refused(&good[..200], "ends at byte 200");
    let mut many = good.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&many, "at most 1048576 are read");
    let with = |name: &str, shape: &[u64], code: u32, offset: u64| {
        let mut file = tiny_model();
        file.describe(name, shape, code, offset);
        file.finish()
    };
    refused(&with("extra", &[32, 1 << 40], 0, 0), "does not lie inside the file");
    refused(&with("extra", &[u64::MAX, u64::MAX], 0, 0), "does not lie inside the file");
    refused(&with("extra", &[32], 0, u64::MAX - 31), "does not lie inside the file");
    refused(&with("extra", &[32], 0, 7), "not a multiple of 32");
    refused(&with("extra", &[32], 0, 0), "overlap");
    refused(&with("extra", &[31], 3, 0), "cannot be cut into blocks");
    refused(&with("extra", &[32], 10, 0), "element type 10 (Q2_K) is not read");
    refused(&with("output_norm.weight", &[32], 0, 0), "there twice");
    let mut other = tiny_model();
    other.text("general.alignment", "x");
    refused(&other.finish(), "general.alignment");
    let mut renamed = good.clone();
    let at = renamed.windows(9).position(|w| w == b"attn_norm").expect("there");
    renamed[at] = b'x';
    refused(&renamed, "is missing");
    let mut nan = good;
    let at = nan.len() - 20;
    nan[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
    refused(&nan, "NaN or infinite");
}

/// A list of small numbers takes more memory than bytes of the file.
#[test]
fn lists_are_bounded_all_together() {
    let mut file = tiny_model();
    let mut list = 0u32.to_le_bytes().to_vec();
    list.extend((1u64 << 21).to_le_bytes());
    list.resize(list.len() + (1 << 21), 7);
    file.entry("first", 9, &list);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("long.gguf");
    fs::write(&path, file.finish()).expect("writes");
    let opened = GgufFile::open(&path).expect("one is read");
    assert!(matches!(&opened.metadata()["first"], Value::List(values) if values.len() == 1 << 21));
    file.entry("second", 9, &list);
    refused(&file.finish(), "2097152 elements of lists; at most 2097139 are read");
    let mut bomb = tiny_model();
    bomb.entry("bomb", 9, &[0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0]);
    refused(&bomb.finish(), "2097152 more bytes are due");
    assert!(GgufFile::open(Path::new("/dev/zero")).expect_err("refused").to_string().contains("not a regular file"));
}

/// Texts that are all of zeros, of which the disk holds nothing.
#[test]
fn the_description_is_bounded_as_a_whole() {
    const TEXT_BYTES: u64 = 1 << 24;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("long.gguf");
    let mut file = tiny_model();
    file.num_entries += 9;
    let full = file.finish();
    let start = 24 + file.metadata.len();
    fs::write(&path, &full[..start]).expect("writes");
    let sparse = File::options().write(true).open(&path).expect("opens");
    let mut at = start as u64;
    for n in 0..9 {
        let mut entry = vec![];
        text(&mut entry, &n.to_string());
        entry.extend(8u32.to_le_bytes());
        entry.extend(TEXT_BYTES.to_le_bytes());
        sparse.write_all_at(&entry, at).expect("writes");
        at += entry.len() as u64 + TEXT_BYTES;
    }
    sparse.set_len(at).expect("grows");
    let message = GgufFile::open(&path).expect_err("refused").to_string();
    assert!(message.contains("longer than 134217728 bytes"), "{message}");
}

/// Thousands of damaged files: each is read or refused, none panics.
#[test]
fn damaged_files_never_panic() {
    let good = tiny_model().finish();
    let header = good.len() - tiny_model().data.len();
    let mut state = 1u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % bound
    };
    for _ in 0..5_000 {
        let mut bad = good.clone();
        for _ in 0..=random(3) {
            bad[random(header)] = u8::try_from(random(256)).expect("a byte");
        }
        if random(4) == 0 {
            bad.truncate(random(bad.len()));
        }
        let _ = parse(bad.as_slice(), bad.len() as u64);
    }
}

/// Bit for bit what the `ggml` project's own package gives.
#[test]
fn blocks_of_every_type_give_the_reference_values() {
    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Block>,
    }
    #[derive(serde::Deserialize)]
    struct Block {
        r#type: String,
        block: String,
        bits: Vec<u32>,
    }
    let golden: Golden = serde_json::from_str(include_str!("golden/blocks.json")).expect("a golden value");
    let types = [2, 3, 6, 7, 8, 12, 13, 14].map(|code| GgmlType::from_code(code).expect("a golden value"));
    for kind in types {
        let cases: Vec<&Block> = golden.cases.iter().filter(|case| case.r#type == format!("{kind:?}")).collect();
        assert_eq!(cases.len(), 4, "{kind:?}");
        for case in cases {
            let bytes: Vec<u8> = (0..case.block.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&case.block[at..at + 2], 16).expect("a golden value"))
                .collect();
            assert_eq!(kind.size_bytes(case.bits.len() as u64, 256), Some(bytes.len() as u64));
            let found: Vec<u32> = kind.dequantize(&bytes).iter().map(|value| value.to_bits()).collect();
            assert!(found == case.bits, "{kind:?}");
        }
    }
    let error = GgmlType::from_code(23).expect_err("not read");
    assert!(error.contains("23 (IQ4_XS) is not read") && error.contains("Q6_K"), "{error}");
}
