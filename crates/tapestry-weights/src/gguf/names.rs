//! How the tensors of a model are called and laid out in GGUF.

use crate::Family;

/// The GGUF name of a Hugging Face tensor.
pub(crate) fn gguf_name(name: &str, family: Family) -> Option<String> {
    let norms = match family.traits().has_norms_after {
        false => [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")],
        true => [("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")],
    };
    Some(match name {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => {
            let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (part, kind) = part.rsplit_once('.')?;
            let part = match part {
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => norms.iter().find(|(hf, _)| *hf == part)?.1,
            };
            format!("blk.{layer}.{part}.{kind}")
        }
    })
}

/// Whether a tensor's rows lie otherwise in GGUF: those of Q and K of each head of the `llama` architecture in pairs (first, second half
/// interleaved), because its rotary positions turn neighbours.
pub(crate) fn is_interleaved(name: &str, family: Family) -> bool {
    let is_turned = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
    is_turned && matches!(family, Family::Llama | Family::Mistral)
}

/// From pairs to halves, as the Hugging Face layout keeps them. `values` are `num_heads` heads of rows.
pub(crate) fn separate_halves(values: &[f32], num_heads: usize, width: usize) -> Vec<f32> {
    reordered(values, num_heads, width, |half, at| if at < half { 2 * at } else { 2 * (at - half) + 1 })
}

/// From halves to pairs.
pub(crate) fn interleave_halves(values: &[f32], num_heads: usize, width: usize) -> Vec<f32> {
    reordered(values, num_heads, width, |half, at| at / 2 + at % 2 * half)
}

/// Rows of each head in another order: row `at` of the result is row `from(half, at)`.
fn reordered(values: &[f32], num_heads: usize, width: usize, from: impl Fn(usize, usize) -> usize) -> Vec<f32> {
    let rows = values.len() / width / num_heads;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..num_heads {
        for at in 0..rows {
            let row = head * rows + from(rows / 2, at);
            out.extend_from_slice(&values[row * width..(row + 1) * width]);
        }
    }
    out
}
