//! Every family against `transformers`: logits, gradients and greedy generation. `tests/golden/families.py` makes the values.

use crate::fixture::MemoryWeights;
use burn::tensor::{Device, Gradients, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use tapestry_eval::TokenScorer as _;
use tapestry_model::{
    AnswerEnd, Batch, Decoder, DecoderConfig, GenerateOptions, Generator, ModelError, Sampling, StreamingScorer,
};
use tapestry_weights::Family;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    seed: u64,
    window: Vec<u32>,
    loss: f64,
    logits: Vec<Vec<f32>>,
    gradients: Vec<Gradient>,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Gradient {
    name: String,
    norm: f64,
    along: f64,
}

macro_rules! cases {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../golden/families/", $name, ".json")))),*]
    };
}

fn cases() -> Vec<(&'static str, Case, DecoderConfig, MemoryWeights)> {
    let texts = cases!(
        "llama2",
        "llama3",
        "llama_linear",
        "smollm2",
        "mistral",
        "qwen2",
        "qwen2_sliding",
        "qwen3",
        "qwen3_yarn",
        "olmo2",
        "olmo3"
    );
    let read = |(name, text): (&'static str, &str)| {
        let case: Case = serde_json::from_str(text).unwrap();
        let config = DecoderConfig::from_json(&case.config.to_string()).unwrap();
        let weights = MemoryWeights::generate(&config, case.seed);
        (name, case, config, weights)
    };
    texts.into_iter().map(read).collect()
}

#[test]
fn every_family_has_a_case() {
    let found: Vec<Family> = cases().iter().map(|(_, _, config, _)| config.family).collect();
    assert!(Family::ALL.iter().all(|family| found.contains(family)), "{found:?}");
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures, with --nocapture")]
fn logits_are_those_of_transformers() {
    for (name, case, config, weights) in cases() {
        let generator = Generator::new(&weights, &config, 64).unwrap();
        let tokens = &case.window[..case.window.len() - 1];
        let mut sequence = generator.sequence();
        let whole = generator.logits(&generator.read(&mut [&mut sequence], &[tokens]).unwrap());
        // Token by token, through the cache, beside another sequence.
        let (mut one, mut other) = (generator.sequence(), generator.sequence());
        let mut stepped = vec![];
        for at in 0..tokens.len() {
            let (token, unlike) = ([tokens[at]], [tokens[tokens.len() - 1 - at]]);
            let hidden = generator.read(&mut [&mut one, &mut other], &[&token, &unlike]).unwrap();
            stepped.extend(generator.logits(&hidden[..config.hidden_size]));
        }
        let expected: Vec<f32> = case.logits.concat();
        for (how, found) in [("whole", whole), ("stepped", stepped)] {
            assert_eq!(found.len(), expected.len(), "{name}");
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name}, {how}: logits differ by at most {worst:e}");
            assert!(worst <= 1e-4, "{name}, {how}: logits differ by {worst:e}");
        }
    }
}

#[test]
fn scores_of_the_streaming_scorer_follow_from_the_same_logits() {
    for (name, case, config, weights) in cases() {
        let found = StreamingScorer::new(&weights, &config).unwrap().score(&[&case.window]).unwrap().concat();
        for ((logits, target), found) in case.logits.iter().zip(&case.window[1..]).zip(found) {
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            let expected = total.ln() - f64::from(logits[*target as usize]);
            assert!((f64::from(found) - expected).abs() < 1e-4, "{name}: {found} {expected}");
        }
    }
}

fn gradients(model: &Decoder, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
    fn values<const D: usize>(tensor: Tensor<D>, gradients: &Gradients) -> Vec<f32> {
        tensor.grad(gradients).unwrap().try_into_vec_as().unwrap()
    }
    let traits = model.config().family.traits();
    let [attention_norm, mlp_norm] = tapestry_weights::norm_names(model.config().family);
    let mut all = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), values(model.embed_tokens.val(), gradients)),
        ("model.norm.weight".to_owned(), values(model.norm.val(), gradients)),
    ]);
    if let Some(head) = &model.lm_head {
        all.insert("lm_head.weight".into(), values(head.val(), gradients));
    }
    for (number, block) in model.layers.iter().enumerate() {
        let mut add = |part: &str, values| all.insert(format!("model.layers.{number}.{part}"), values);
        add(&format!("{attention_norm}.weight"), values(block.attention_norm.val(), gradients));
        add(&format!("{mlp_norm}.weight"), values(block.mlp_norm.val(), gradients));
        for (part, matrix) in [
            ("self_attn.q_proj", &block.q_proj),
            ("self_attn.k_proj", &block.k_proj),
            ("self_attn.v_proj", &block.v_proj),
            ("self_attn.o_proj", &block.o_proj),
            ("mlp.gate_proj", &block.gate_proj),
            ("mlp.up_proj", &block.up_proj),
            ("mlp.down_proj", &block.down_proj),
        ] {
            add(&format!("{part}.weight"), values(matrix.val(), gradients));
        }
        assert_eq!(block.biases.is_empty(), !traits.has_qkv_biases);
        for (part, bias) in ["q", "k", "v"].iter().zip(&block.biases) {
            add(&format!("self_attn.{part}_proj.bias"), values(bias.val(), gradients));
        }
        for (part, norm) in ["q", "k"].iter().zip(&block.qk_norms) {
            add(&format!("self_attn.{part}_norm.weight"), values(norm.val(), gradients));
        }
    }
    all
}

/// Against the norm of each gradient, and its product with a vector of sines: an error of one element shows in one of them.
#[test]
#[expect(clippy::print_stdout, reason = "the figures, with --nocapture")]
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn every_gradient_is_that_of_transformers() {
    for (name, case, config, weights) in cases() {
        let model = Decoder::from_source(&weights, &config, &Device::flex().autodiff()).unwrap();
        let loss = model.loss(&Batch::from_windows(&[&case.window]).unwrap()).unwrap();
        let value = f64::from(loss.clone().into_scalar::<f32>());
        assert!((value - case.loss).abs() < 1e-5, "{name}: the loss is {value}, not {}", case.loss);
        let found = gradients(&model, &loss.backward());
        assert_eq!(found.len(), case.gradients.len(), "{name}");
        let largest = case.gradients.iter().map(|gradient| gradient.norm).fold(0.0, f64::max);
        let mut worst: f64 = 0.0;
        for Gradient { name: parameter, norm, along } in &case.gradients {
            let values = &found[parameter];
            let length = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            let product: f64 = values.iter().enumerate().map(|(at, x)| f64::from(*x) * (at as f64 * 0.37).sin()).sum();
            // The bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
            let scale = norm.max(1e-6 * largest);
            let difference = ((length - norm).abs().max((product - along).abs())) / scale;
            worst = worst.max(if *norm > 1e-6 * largest { difference } else { 0.0 });
            assert!(difference <= 1e-3, "{name}, {parameter}: {length} {norm}, {product} {along}");
        }
        println!("{name}: gradients differ by at most {worst:e} of their norm");
    }
}

#[test]
fn greedy_generation_is_that_of_transformers() {
    for (name, case, config, weights) in cases() {
        let generator = Generator::new(&weights, &config, 64).unwrap();
        let options =
            GenerateOptions { max_new_tokens: case.greedy.len(), sampling: Sampling::default(), end_ids: vec![] };
        // Another prompt beside it that begins alike.
        let other: Vec<u32> = case.prompt.iter().take(4).copied().chain([3, 1, 4]).collect();
        let prompts = [&case.prompt[..], &other, &case.prompt[..2]];
        let answers = generator.generate(&prompts, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let found: Vec<u32> = answers[0].tokens.iter().map(|drawn| drawn.token).collect();
        assert_eq!(found, case.greedy, "{name}");
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let alone = generator.generate(&[prompt], &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let tokens = |answer: &tapestry_model::Answer| answer.tokens.iter().map(|d| d.token).collect::<Vec<_>>();
            assert_eq!(tokens(&alone[0]), tokens(answer), "{name}: as alone");
            assert_eq!(answer.prompt_log_probs.len(), prompt.len() - 1);
        }
        for (at, log_prob) in answers[0].prompt_log_probs.iter().enumerate() {
            let logits = &case.logits[at];
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            let expected = f64::from(logits[case.prompt[at + 1] as usize]) - total.ln();
            assert!((f64::from(*log_prob) - expected).abs() < 1e-4, "{name}: {log_prob} {expected}");
        }
    }
}

#[test]
fn a_session_answers_as_if_it_read_everything_again() {
    for (name, case, config, weights) in cases() {
        let generator = Generator::new(&weights, &config, 64).unwrap();
        let options = GenerateOptions { max_new_tokens: 6, sampling: Sampling::default(), end_ids: vec![] };
        let mut session = generator.session();
        let mut prompt = case.prompt.clone();
        for turn in 0..4 {
            let listen = &mut |_| ControlFlow::Continue(());
            let answer = generator.answer(&mut session, &prompt, &options, listen).unwrap();
            let fresh = generator.answer(&mut generator.session(), &prompt, &options, listen).unwrap();
            let tokens = |answer: &tapestry_model::Answer| answer.tokens.iter().map(|d| d.token).collect::<Vec<_>>();
            assert_eq!(tokens(&answer), tokens(&fresh), "{name}, turn {turn}");
            // The next turn follows, forgets a part, or changes nothing.
            match turn {
                0 => prompt.extend(tokens(&answer).into_iter().chain([5, 6])),
                1 => prompt.truncate(5),
                _ => {}
            }
        }
    }
}

#[test]
fn answers_end_where_they_must() {
    let (_, case, config, weights) = cases().remove(0);
    let generator = Generator::new(&weights, &config, 12).unwrap();
    let run = |max_new_tokens, end_ids: &[u32], stop_after: usize| {
        let options = GenerateOptions { max_new_tokens, sampling: Sampling::default(), end_ids: end_ids.to_vec() };
        let mut heard = 0;
        let mut listen = |_, _| {
            heard += 1;
            if heard == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let answer = generator.generate(&[&case.prompt], &options, &mut listen).unwrap().remove(0);
        (answer.tokens.len(), answer.end)
    };
    assert_eq!(run(3, &[], 0), (3, AnswerEnd::Length));
    assert_eq!(run(0, &[], 0), (0, AnswerEnd::Length));
    assert_eq!(run(30, &[], 0), (6, AnswerEnd::Context), "12 tokens: 7 of the prompt, 5 read, and one more");
    assert_eq!(run(30, &[case.greedy[2]], 0), (2, AnswerEnd::EndOfText));
    assert_eq!(run(30, &[], 4), (4, AnswerEnd::Stopped));
    let options = GenerateOptions { max_new_tokens: 1, sampling: Sampling::default(), end_ids: vec![] };
    let fails =
        |prompt: &[u32]| generator.generate(&[prompt], &options, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(fails(&[]), ModelError::EmptyPrompt { number: 0 }));
    assert!(matches!(fails(&[1; 13]), ModelError::ContextOverflow { tokens: 13, limit: 12 }));
    assert!(matches!(fails(&[1, 101]), ModelError::TokenOutsideVocabulary { id: 101, .. }));
}
