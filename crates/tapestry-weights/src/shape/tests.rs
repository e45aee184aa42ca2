//! Configurations as they are found in the wild, and bad ones.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::{DecoderShape, Family, RopeScaling, expected_tensors};
use serde_json::{Value, json};

fn config(model_type: &str, more: Value) -> String {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

fn shape(model_type: &str, more: Value) -> DecoderShape {
    DecoderShape::parse(&config(model_type, more)).unwrap()
}

#[test]
fn sliding_windows_are_those_of_the_family() {
    let windows = |model_type, more| shape(model_type, more).layer_windows;
    assert_eq!(windows("mistral", json!({"sliding_window": 8})), [Some(8); 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 4]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 8, "use_sliding_window": false})), [None; 4]);
    let two_slide = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2});
    assert_eq!(windows("qwen3", two_slide), [None, None, Some(8), Some(8)]);
    assert_eq!(windows("olmo3", json!({})), [Some(4096), Some(4096), Some(4096), None]);
    let types = ["full_attention", "sliding_attention", "full_attention", "full_attention"];
    assert_eq!(windows("olmo3", json!({"sliding_window": 5, "layer_types": types})), [None, Some(5), None, None]);
    // What a family does not use is not used.
    assert_eq!(windows("llama", json!({"sliding_window": 8})), [None; 4]);
}

#[test]
fn old_and_new_ways_to_write_rope_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 32});
    let old = shape("llama", json!({"rope_theta": 5e5, "rope_scaling": llama3}));
    let mut new = llama3.clone();
    new["rope_theta"] = json!(5e5);
    assert_eq!(shape("llama", json!({"rope_parameters": new})), old);
    assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { .. }));
    let older = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    assert_eq!(shape("llama", older).rope_scaling, RopeScaling::Linear { factor: 2.0 });
    let yarn = json!({"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
                           "original_max_position_embeddings": 32}}});
    let olmo = shape("olmo3", yarn);
    assert!((olmo.rope_theta - 5e5).abs() < 1e-9);
    assert!(matches!(olmo.rope_scaling_of(3), RopeScaling::Yarn { .. }));
    assert_eq!(olmo.rope_scaling_of(0), &RopeScaling::None, "a layer with a sliding window is not stretched");
}

#[test]
fn what_is_written_is_read_again() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    for shape in [
        shape("llama", json!({"tie_word_embeddings": true, "head_dim": 16})),
        shape("mistral", json!({"sliding_window": 8})),
        shape("qwen2", json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2})),
        shape("qwen2", json!({})),
        shape("qwen3", json!({"rope_scaling": yarn})),
        shape("olmo2", json!({"rope_theta": 5e5})),
        shape("olmo3", json!({"rope_scaling": yarn, "sliding_window": 16})),
    ] {
        assert_eq!(DecoderShape::parse(&shape.to_config().to_string()).unwrap(), shape);
    }
}

#[test]
fn tensors_are_those_of_the_family() {
    let names = |model_type| -> Vec<String> {
        let tensors = expected_tensors(&shape(model_type, json!({})));
        let of_layer = |name: &str| name.strip_prefix("model.layers.1.").map(str::to_owned);
        tensors.iter().filter_map(|spec| of_layer(&spec.name)).collect()
    };
    let llama = names("llama");
    assert_eq!(llama.len(), 9);
    assert_eq!(names("mistral"), llama);
    let has = |names: &[String], name: &str| names.iter().any(|found| found == name);
    let (qwen2, qwen3, olmo) = (names("qwen2"), names("qwen3"), names("olmo2"));
    assert!(qwen2.len() == 12 && has(&qwen2, "self_attn.k_proj.bias") && !has(&qwen2, "self_attn.o_proj.bias"));
    assert!(qwen3.len() == 11 && has(&qwen3, "self_attn.q_norm.weight"));
    assert!(
        olmo.len() == 11 && has(&olmo, "post_feedforward_layernorm.weight") && !has(&olmo, "input_layernorm.weight")
    );
    assert_eq!(names("olmo3"), olmo);
    for family in Family::ALL {
        assert_eq!(Family::of_model_type(family.traits().model_type), Some(family));
    }
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let cases = [
        ("gemma2", json!({}), "model_type \"gemma2\" is not supported; \"llama\", \"mistral\""),
        ("llama", json!({"rope_scaling": {"rope_type": "longrope"}}), "rope scaling \"longrope\" is not supported"),
        ("llama", json!({"rope_scaling": {"rope_type": "llama3", "factor": 8}}), "has no low_freq_factor"),
        ("llama", json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}), "factor is 0"),
        ("llama", json!({"attention_bias": true}), "biases"),
        ("llama", json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
        ("llama", json!({"num_hidden_layers": 1_000_000_000_000_u64}), "num_hidden_layers is 1000000000000"),
        ("olmo3", json!({"layer_types": ["full_attention"]}), "layer_types names 1 layers of 4"),
        ("olmo3", json!({"layer_types": ["chunked_attention"]}), "layer type \"chunked_attention\""),
        ("mistral", json!({"sliding_window": 0}), "sliding_window is 0"),
        ("qwen2", json!({"layer_types": vec!["sliding_attention"; 4]}), "sliding_window is missing"),
        (
            "llama",
            json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
            "partial_rotary_factor",
        ),
        ("llama", json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}), "two values of rope_theta"),
    ];
    for (model_type, more, expected) in cases {
        let error = DecoderShape::parse(&config(model_type, more)).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
