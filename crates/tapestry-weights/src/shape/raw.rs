//! `config.json` as it is written, and what it means.

use super::{DecoderShape, Family, MAX_LAYERS, RopeScaling};
use serde::Deserialize;
use serde_json::Value;

/// `config.json`, as far as it matters here.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Where version 5 of `transformers` keeps theta and scaling: one object, or one for each type of layer.
    rope_parameters: Option<Value>,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

pub(super) fn parse(text: &str) -> Result<DecoderShape, String> {
    let raw: RawConfig = serde_json::from_str(text).map_err(|e| format!("the configuration cannot be read: {e}"))?;
    let family = family(raw.model_type.as_deref())?;
    if raw.attention_bias || raw.mlp_bias {
        return Err("biases (attention_bias, mlp_bias) are not supported; the biases of Qwen2 are".into());
    }
    if let Some(other) = raw.hidden_act.as_deref().filter(|name| *name != "silu") {
        return Err(format!("hidden_act {other:?} is not supported; \"silu\" is"));
    }
    if raw.num_hidden_layers > MAX_LAYERS {
        return Err(format!("num_hidden_layers is {}; from 1 to {MAX_LAYERS} is accepted", raw.num_hidden_layers));
    }
    let layer_windows = layer_windows(&raw, family)?;
    let max_position_embeddings = raw.max_position_embeddings.unwrap_or(2048);
    let (rope_theta, rope_scaling) = rope(&raw, &layer_windows, max_position_embeddings)?;
    Ok(DecoderShape {
        family,
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
        vocab_size: raw.vocab_size,
        rms_norm_eps: raw.rms_norm_eps,
        rope_theta,
        rope_scaling,
        max_position_embeddings,
        tie_word_embeddings: raw.tie_word_embeddings,
        layer_windows,
    })
}

fn family(model_type: Option<&str>) -> Result<Family, String> {
    // Old configurations of Llama models name no type.
    let name = model_type.unwrap_or("llama");
    Family::of_model_type(name).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|family| format!("{:?}", family.traits().model_type)).collect();
        format!("model_type {name:?} is not supported; {} are", known.join(", "))
    })
}

fn layer_windows(raw: &RawConfig, family: Family) -> Result<Vec<Option<usize>>, String> {
    let layers = 0..raw.num_hidden_layers;
    let slides: Vec<bool> = match (&raw.layer_types, family) {
        (Some(types), _) => types
            .iter()
            .map(|name| match name.as_str() {
                FULL => Ok(false),
                SLIDING => Ok(true),
                other => Err(format!("layer type {other:?} is not supported; {FULL:?} and {SLIDING:?} are")),
            })
            .collect::<Result<_, _>>()?,
        (None, Family::Mistral) => layers.map(|_| raw.sliding_window.is_some()).collect(),
        (None, Family::Qwen2 | Family::Qwen3) => {
            let is_used = raw.use_sliding_window.unwrap_or(false) && raw.sliding_window.is_some();
            // `transformers` writes the number out; 28 is its default.
            let first = raw.max_window_layers.unwrap_or(28);
            layers.map(|layer| is_used && layer >= first).collect()
        }
        // Three of four layers slide; the fourth sees everything.
        (None, Family::Olmo3) => layers.map(|layer| (layer + 1) % 4 != 0).collect(),
        (None, Family::Llama | Family::Olmo2) => layers.map(|_| false).collect(),
    };
    let window = match (raw.sliding_window, family) {
        (None, Family::Olmo3) => Some(4096),
        (window, _) => window,
    };
    if slides.contains(&true) && window.is_none() {
        return Err("layer_types names layers with a sliding window, but sliding_window is missing".into());
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Base and scaling of the rotary frequencies.
fn rope(raw: &RawConfig, windows: &[Option<usize>], context: usize) -> Result<(f64, RopeScaling), String> {
    let mut theta = raw.rope_theta;
    let mut scaling = RopeScaling::None;
    let mut read = |value: &Value| -> Result<RopeScaling, String> {
        let rope: RawRope =
            serde_json::from_value(value.clone()).map_err(|e| format!("the rope parameters cannot be read: {e}"))?;
        match (theta, rope.rope_theta) {
            (Some(one), Some(other)) if (one - other).abs() > 0.0 => {
                return Err(format!("two values of rope_theta, {one} and {other}: one for all layers is supported"));
            }
            (None, Some(_)) => theta = rope.rope_theta,
            _ => {}
        }
        rope.scaling(context)
    };
    match &raw.rope_parameters {
        Some(Value::Object(types)) if types.contains_key(FULL) || types.contains_key(SLIDING) => {
            if let Some(sliding) = types.get(SLIDING)
                && read(sliding)? != RopeScaling::None
                && windows.iter().any(Option::is_some)
            {
                return Err("rope scaling of layers with a sliding window is not supported".into());
            }
            if let Some(full) = types.get(FULL) {
                scaling = read(full)?;
            }
        }
        Some(value @ Value::Object(_)) => scaling = read(value)?,
        _ => {}
    }
    if let Some(value @ Value::Object(_)) = &raw.rope_scaling {
        scaling = read(value)?;
    }
    Ok((theta.unwrap_or(10_000.0), scaling))
}

impl RawRope {
    fn scaling(&self, context: usize) -> Result<RopeScaling, String> {
        if self.partial_rotary_factor.is_some_and(|factor| (factor - 1.0).abs() > 0.0) {
            return Err("partial_rotary_factor is not supported".into());
        }
        let name = self.rope_type.as_deref().or(self.older_type.as_deref()).unwrap_or("default");
        let due = |entry: &str| format!("rope scaling {name:?} has no {entry}");
        let number = |entry: &str, value: Option<f64>| value.ok_or_else(|| due(entry));
        let original = self.original_max_position_embeddings;
        Ok(match name {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor", self.factor)? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor", self.factor)?,
                low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: original.ok_or_else(|| due("original_max_position_embeddings"))?,
            },
            "yarn" => {
                if self.mscale.is_some() || self.mscale_all_dim.is_some() {
                    return Err("rope scaling \"yarn\" with mscale is not supported".into());
                }
                RopeScaling::Yarn {
                    factor: number("factor", self.factor)?,
                    attention_factor: self.attention_factor,
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    truncate: self.truncate.unwrap_or(true),
                    original_max_position_embeddings: original.unwrap_or(context),
                }
            }
            other => {
                return Err(format!(
                    "rope scaling {other:?} is not supported; \"linear\", \"llama3\" and \"yarn\" are"
                ));
            }
        })
    }
}
