//! Models out to GGUF and back, with their tokenizers.

use crate::fixture::{TOKENIZER_SIZE, tokenizer_json};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tapestry_model::{DecoderConfig, Tokenizer, init_model};
use tapestry_weights::gguf::{GgufStorage, export_gguf};
use tapestry_weights::{DecoderShape, Family, HfDir, RopeScaling, SafetensorsModel, WeightSource as _, adopt_gguf};

const TEXTS: [&str; 24] = [
    "The weaver's 1234 threads, aren't they?  Three spaces   follow.\r\n\r\n\tAnd a tab.",
    "La tisserande a compté 12 345 fils — n'est-ce pas ?",
    "Die Weberin zählt Fäden; größtenteils über Nacht.",
    "La tejedora contó ¡mil! hilos. ¿Verdad?",
    "A tecelã não contou os fios.",
    "Ткачиха считает нити 42 раза.",
    "Ткаля лічить нитки під ґанком.",
    "بافنده ۱۲۳ نخ را می‌شمارد.",
    "النسّاجة تَعُدُّ الخيوط ٣ مرات.",
    "האורגת סופרת חוטים.",
    "बुनकर १२३ धागे गिनता है।",
    "তাঁতি সুতো গোনে।",
    "நெசவாளர் நூல்களை எண்ணுகிறார்.",
    "ช่างทอผ้านับเส้นด้าย ๑๒๓ เส้น",
    "織り手は糸を123本数える。カタカナも。",
    "织工数了一百二十三根线。",
    "직공이 실을 셉니다.",
    "Thợ dệt đếm từng sợi chỉ. Nguye\u{302}\u{303}n",
    "Dokumacı iplikleri sayıyor, İstanbul'da ığdır.",
    "Ο υφαντής μετρά τις κλωστές.",
    "ሸማኔው ክሮችን ይቆጥራል።",
    "Ọ̀nà àti òwú: aṣọ òfì.",
    "fn main() { let x: [u8; 3] = *b\"abc\"; println!(\"{x:?}\"); } // ünïcode",
    "👩🏽‍🏫 weaves 🧵🧶; e\u{301} and \u{0}\u{7f}\u{85} \u{fffd} <|endoftext|> ok",
];

/// The fixture's tokenizer, cut as a family cuts.
fn tokenizer_of(pre: &str) -> Value {
    let mut tokenizer: Value = serde_json::from_str(&tokenizer_json()).unwrap();
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |numbers: &str| {
        let pattern = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, byte_level(false)]})
    };
    match pre {
        "gpt-2" => {}
        "smollm" => {
            tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, byte_level(true)]});
        }
        "llama-bpe" => {
            tokenizer["pre_tokenizer"] = split(r"\p{N}{1,3}");
            tokenizer["model"]["ignore_merges"] = true.into();
        }
        _ => {
            tokenizer["pre_tokenizer"] = split(r"\p{N}");
            tokenizer["normalizer"] = json!({"type": "NFC"});
        }
    }
    tokenizer
}

fn model(dir: &Path, family: Family, pre: &str) -> DecoderShape {
    let tokenizer = dir.with_extension("tokenizer.json");
    fs::write(&tokenizer, tokenizer_of(pre).to_string()).unwrap();
    let tiny = DecoderConfig::tiny_of(family, TOKENIZER_SIZE + 7);
    let mut shape = DecoderShape::clone(&tiny);
    if family == Family::Llama {
        shape.tie_word_embeddings = false;
        shape.rope_scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
    }
    init_model(dir, &DecoderConfig::try_from(shape.clone()).unwrap(), &tokenizer, 5).unwrap();
    shape
}

const CASES: [(Family, &str); 5] = [
    (Family::Llama, "llama-bpe"),
    (Family::Mistral, "gpt-2"),
    (Family::Qwen2, "qwen2"),
    (Family::Qwen3, "qwen2"),
    (Family::Olmo2, "smollm"),
];

#[test]
fn a_model_comes_back_from_gguf_to_the_bit_with_its_tokens() {
    for (family, pre) in CASES {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, file, back) =
            (temporary.path().join("m"), temporary.path().join("m.gguf"), temporary.path().join("back"));
        let shape = model(&dir, family, pre);
        fs::write(dir.join("chat_template.jinja"), "{{ messages }}").unwrap();
        export_gguf(&dir, &file, GgufStorage::F32, &mut |_, _| {}).unwrap();
        adopt_gguf(&file, &back, &mut |_, _| {}).unwrap();
        assert_eq!(HfDir::open(&back).unwrap().shape, shape, "{family:?}");
        assert!(fs::read(dir.join("model.safetensors")).unwrap() == fs::read(back.join("model.safetensors")).unwrap());
        let read = |dir: &Path| Tokenizer::read(&dir.join("tokenizer.json")).unwrap();
        let (before, after) = (read(&dir), read(&back));
        for text in TEXTS {
            assert_eq!(before.encode(text).unwrap(), after.encode(text).unwrap(), "{family:?}: {text}");
            assert_eq!(before.encode_prompt(text).unwrap(), after.encode_prompt(text).unwrap(), "{family:?}: {text}");
        }
        let settings: Value = serde_json::from_slice(&fs::read(back.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(settings["chat_template"], "{{ messages }}");
        // The same folder gives the same bytes.
        let again = temporary.path().join("again.gguf");
        export_gguf(&dir, &again, GgufStorage::F32, &mut |_, _| {}).unwrap();
        assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap());
    }
}

#[test]
fn fewer_bits_lose_no_more_than_they_must() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("m");
    model(&dir, Family::Qwen2, "qwen2");
    let values = |dir: &Path| -> Vec<Vec<f32>> {
        let weights = SafetensorsModel::open(dir).unwrap();
        let tensors = weights.tensors().iter().enumerate();
        tensors.map(|(at, spec)| weights.read_f32(at, 0, spec.num_elements().unwrap()).unwrap()).collect()
    };
    let before = values(&dir);
    for (storage, relative) in [(GgufStorage::F16, 5e-4), (GgufStorage::BF16, 4e-3), (GgufStorage::Q8_0, 4.5e-3)] {
        let (file, back) =
            (temporary.path().join(format!("{storage:?}.gguf")), temporary.path().join(format!("{storage:?}")));
        export_gguf(&dir, &file, storage, &mut |_, _| {}).unwrap();
        adopt_gguf(&file, &back, &mut |_, _| {}).unwrap();
        for (before, after) in before.iter().zip(values(&back)) {
            // A value's own size for floats, the largest of its block for Q8_0: half a step of 1/127, and the rounding of the scale.
            for (a, b) in before.chunks(32).zip(after.chunks(32)) {
                let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                for (a, b) in a.iter().zip(b) {
                    let scale = if storage == GgufStorage::Q8_0 { largest } else { a.abs() };
                    assert!((a - b).abs() <= relative * scale + 6e-8, "{storage:?}: {a} {b}");
                }
            }
        }
    }
    let sizes = ["F16", "Q8_0"].map(|name| fs::metadata(temporary.path().join(format!("{name}.gguf"))).unwrap().len());
    assert!(sizes[1] < sizes[0] * 6 / 10, "{sizes:?}");
}

#[test]
fn what_gguf_has_no_form_for_is_refused_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("m");
    let out = temporary.path().join("m.gguf");
    let refused = || {
        let error = export_gguf(&dir, &out, GgufStorage::F16, &mut |_, _| {}).unwrap_err().to_string();
        let left = fs::read_dir(temporary.path()).unwrap().flatten();
        assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().contains("gguf")));
        error
    };
    model(&dir, Family::Olmo3, "gpt-2");
    assert!(refused().contains("GGUF has no settled form for OLMo 3"));
    fs::remove_dir_all(&dir).unwrap();
    model(&dir, Family::Llama, "gpt-2");
    let mut tokenizer = tokenizer_of("gpt-2");
    tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"});
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    assert!(refused().contains("gpt-2, smollm, llama-bpe, qwen2"));
    fs::write(dir.join("tokenizer.json"), tokenizer_json()).unwrap();
    let weights = dir.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    assert!(refused().contains("NaN"));
    fs::write(&out, "mine").unwrap();
    let error = export_gguf(&dir, &out, GgufStorage::F16, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("exists") && fs::read(&out).unwrap() == b"mine");
}
