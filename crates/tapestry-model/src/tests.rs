#![expect(clippy::unwrap_used, reason = "tests")]
//! The fused form of the model against the composed one.

use crate::{Batch, Decoder, DecoderConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use tapestry_core::TensorSpec;
use tapestry_weights::{DecoderShape, Family, RopeScaling, WeightSource, WeightsError, expected_tensors};

/// Weights computed from their place.
struct Waves(Vec<TensorSpec>);

impl WeightSource for Waves {
    fn tensors(&self) -> &[TensorSpec] {
        &self.0
    }

    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let shift = if self.0[tensor].shape.len() == 1 { 1.0 } else { 0.0 };
        let wave = |at: u64| ((at * 7919 + tensor as u64 * 104_729) % 1_000_003) as f32 * 0.37;
        Ok((first..first + count).map(|at| wave(at).sin() * 0.25 + shift).collect())
    }
}

fn model_of(family: Family, tie_word_embeddings: bool) -> Decoder {
    let window = |layer: usize| match family {
        Family::Mistral => Some(7),
        Family::Olmo3 => (layer == 0).then_some(5),
        _ => None,
    };
    let rope_scaling = match family {
        Family::Olmo3 => RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_max_position_embeddings: 16,
        },
        _ => RopeScaling::None,
    };
    let shape = DecoderShape {
        family,
        hidden_size: 48,
        intermediate_size: 72,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 10,
        vocab_size: 90,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling,
        max_position_embeddings: 64,
        tie_word_embeddings,
        layer_windows: vec![window(0), window(1)],
    };
    let config = DecoderConfig::try_from(shape).unwrap();
    Decoder::from_source(&Waves(expected_tensors(&config)), &config, &Device::flex().autodiff()).unwrap()
}

fn model(tie_word_embeddings: bool) -> Decoder {
    model_of(Family::Llama, tie_word_embeddings)
}

fn batch() -> Batch {
    let token = |i: u32| i * i * 13 % 90;
    let tokens: Vec<u32> = (0..60).map(token).collect();
    let targets = (1..61).map(token).collect();
    let segments: Vec<u32> = (0..60).map(|i| i / 13).collect();
    let counts: Vec<bool> = (0..60).map(|i| i % 13 != 12).collect();
    Batch::new(3, 20, tokens, targets, &segments, &counts).unwrap()
}

/// Every gradient, in the order of the module.
struct Collect<'a>(&'a Gradients, Vec<Vec<f32>>);

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.0).unwrap();
        self.1.push(gradient.try_into_vec_as().unwrap());
    }
}

fn gradients(model: &Decoder, loss: Tensor<1>) -> Vec<Vec<f32>> {
    let gradients = loss.backward();
    let mut collect = Collect(&gradients, vec![]);
    model.visit(&mut collect);
    collect.1
}

#[test]
fn fused_and_composed_agree_in_loss_and_in_every_gradient() {
    for (family, is_tied) in Family::ALL.into_iter().flat_map(|family| [(family, true), (family, false)]) {
        let model = model_of(family, is_tied);
        let (fused, composed) = (model.loss(&batch()).unwrap(), model.loss_composed(&batch()));
        let difference = fused.clone().into_scalar::<f32>() - composed.clone().into_scalar::<f32>();
        assert!(difference.abs() < 1e-5, "{family:?}, tied {is_tied}: the losses differ by {difference}");
        let (fused, composed) = (gradients(&model, fused), gradients(&model, composed));
        assert_eq!(fused.len(), expected_tensors(model.config()).len());
        for (number, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let distance = norm(&mut fused.iter().zip(composed).map(|(a, b)| a - b));
            let length = norm(&mut composed.iter().copied());
            // A bias of the keys moves all scores of a query alike, so that its gradient is close to zero.
            let what = format!("{family:?}, tied {is_tied}, parameter {number}: {distance} of {length}");
            assert!(distance < 2e-5 * length + 1e-6, "{what}");
        }
    }
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bits() {
    for family in Family::ALL {
        let model = model_of(family, true);
        let kept = gradients(&model, model.loss(&batch()).unwrap());
        let again = model.with_recomputation(true);
        assert!(gradients(&again, again.loss(&batch()).unwrap()) == kept, "{family:?}");
    }
}

#[test]
fn log_probabilities_make_the_loss() {
    let model = model(true);
    let log_probs: Vec<f32> = model.log_probs(&batch()).unwrap().try_into_vec_as().unwrap();
    let counted = log_probs.iter().zip(batch().counts()).filter(|(_, counts)| *counts).map(|(p, _)| *p);
    let counted: Vec<f32> = counted.collect();
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let expected = -counted.iter().sum::<f32>() / counted.len() as f32;
    let found = model.loss(&batch()).unwrap().into_scalar::<f32>();
    assert!((found - expected).abs() < 1e-5, "{found} {expected}");
}

#[test]
fn what_does_not_count_does_not_move_the_loss() {
    let model = model(true);
    let token = |i: u32| i * 7 % 90;
    let tokens: Vec<u32> = (0..10).map(token).collect();
    let mut targets: Vec<u32> = (1..11).map(token).collect();
    let counts: Vec<bool> = (0..10).map(|i| i != 4).collect();
    let mut loss = |target| {
        targets[4] = target;
        let batch = Batch::new(1, 10, tokens.clone(), targets.clone(), [0; 10], &counts).unwrap();
        assert_eq!(batch.num_counted(), 9);
        model.loss(&batch).unwrap().into_scalar::<f32>().to_bits()
    };
    assert_eq!(loss(3), loss(60));
}

#[test]
fn a_document_does_not_see_the_one_before_it() {
    let model = model(true);
    let second: Vec<u32> = (0..6).map(|i| i * 11 % 90).collect();
    let loss = |before: u32| {
        let tokens: Vec<u32> = (0..5).map(|_| before).chain(second[..5].iter().copied()).collect();
        let targets: Vec<u32> = (0..5).map(|_| 1).chain(second[1..].iter().copied()).collect();
        let segments: Vec<u32> = (0..10).map(|i| i / 5).collect();
        let counts: Vec<bool> = (0..10).map(|i| i >= 5).collect();
        let batch = Batch::new(1, 10, tokens, targets, &segments, &counts).unwrap();
        model.loss(&batch).unwrap().into_scalar::<f32>().to_bits()
    };
    assert_eq!(loss(2), loss(77));
}

#[test]
fn the_loss_and_its_gradients_are_the_same_bits_every_time() {
    let model = model(true);
    let run = || gradients(&model, model.loss(&batch()).unwrap());
    assert_eq!(run(), run());
}
