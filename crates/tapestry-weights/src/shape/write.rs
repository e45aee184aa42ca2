//! A `config.json` that `transformers` reads, in the form that its versions 4 and 5 both know.

use super::{DecoderShape, Family, RopeScaling};
use serde_json::{Value, json};

pub(super) fn config(shape: &DecoderShape) -> Value {
    let traits = shape.family.traits();
    let mut config = json!({
        "architectures": [traits.architecture],
        "model_type": traits.model_type,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": scaling(&shape.rope_scaling),
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "use_cache": true,
    });
    let window = shape.layer_windows.iter().flatten().next();
    let layer_types = || {
        let name = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        shape.layer_windows.iter().map(name).collect::<Vec<_>>()
    };
    match shape.family {
        Family::Llama => config["mlp_bias"] = json!(false),
        Family::Mistral => config["sliding_window"] = json!(window),
        Family::Qwen2 | Family::Qwen3 => {
            config["use_sliding_window"] = json!(window.is_some());
            config["sliding_window"] = json!(window);
            config["max_window_layers"] =
                json!(shape.layer_windows.iter().position(Option::is_some).unwrap_or(shape.num_hidden_layers));
            config["layer_types"] = json!(layer_types());
        }
        Family::Olmo2 => {}
        Family::Olmo3 => {
            config["sliding_window"] = json!(window);
            config["layer_types"] = json!(layer_types());
        }
    }
    config
}

fn scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Yarn { .. } | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {
            let mut value = serde_json::to_value(scaling).expect("numbers and texts always serialise");
            // `transformers` takes an entry that is null for one that is there.
            if let Value::Object(entries) = &mut value {
                entries.retain(|_, value| !value.is_null());
            }
            value
        }
    }
}
