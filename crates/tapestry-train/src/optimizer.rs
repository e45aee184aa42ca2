//! AdamW over all parameters of a model.

use crate::AdamWSettings;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use tapestry_kernels::adamw::AdamW;
use tapestry_kernels::ops;

/// The two moments of each parameter, in the order in which the model shows its parameters.
#[derive(Debug, Default)]
pub(crate) struct Moments(pub(crate) Vec<(Vec<f32>, Vec<f32>)>);

/// One update's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    /// From 1.
    pub(crate) step: u32,
    pub(crate) learning_rate: f32,
    pub(crate) weight_decay: f32,
    pub(crate) clip_norm: f64,
    pub(crate) adamw: AdamWSettings,
}

/// The L2 norm of all gradients together.
pub(crate) fn gradient_norm<M: Module>(model: &M, gradients: &Gradients) -> f64 {
    struct Sum<'a>(&'a Gradients, f64);
    impl ModuleVisitor for Sum<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.1 += ops::sum_of_squares(&gradient);
            }
        }
    }
    let mut sum = Sum(gradients, 0.0);
    model.visit(&mut sum);
    sum.1.sqrt()
}

/// Updates every parameter; gradients longer than the clip norm are scaled down to it.
pub(crate) fn update<M: Module>(
    model: M,
    gradients: &mut Gradients,
    norm: f64,
    moments: &mut Moments,
    update: &Update,
) -> M {
    #[expect(clippy::cast_possible_truncation, reason = "a factor from 0 to 1")]
    let factor = if norm > update.clip_norm { (update.clip_norm / norm) as f32 } else { 1.0 };
    model.map(&mut Step { gradients, moments, update, factor, index: 0 })
}

struct Step<'a> {
    gradients: &'a mut Gradients,
    moments: &'a mut Moments,
    update: &'a Update,
    factor: f32,
    index: usize,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.index;
        self.index += 1;
        let (id, tensor, mapper) = param.consume();
        let Some(gradient) = tensor.grad_remove(self.gradients) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let size = tensor.shape().num_elements();
        if self.moments.0.len() == index {
            self.moments.0.push((vec![0.0; size], vec![0.0; size]));
        }
        let (m, v) = &mut self.moments.0[index];
        let AdamWSettings { beta1, beta2, eps } = self.update.adamw;
        #[expect(clippy::cast_possible_truncation, reason = "settings as the arithmetic has them")]
        let [beta1, beta2, eps] = [beta1, beta2, eps].map(|value| value as f32);
        let settings = AdamW {
            learning_rate: self.update.learning_rate,
            beta1,
            beta2,
            eps,
            // Norms and biases are no connections: decaying them would only shrink the stream.
            weight_decay: if D >= 2 { self.update.weight_decay } else { 0.0 },
            step: self.update.step,
        };
        let weights = ops::adamw_update(tensor.inner(), gradient, (m, v), self.factor, &settings);
        Param::from_mapped_value(id, Tensor::from_inner(weights).require_grad(), mapper)
    }
}

/// Adds the gradients of one part of an update to those of the parts before it.
pub(crate) fn add_gradients<M: Module>(model: &M, mut before: Gradients, more: &Gradients) -> Gradients {
    struct Add<'a>(&'a mut Gradients, &'a Gradients);
    impl ModuleVisitor for Add<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let Some(more) = tensor.grad(self.1) else { return };
            let sum = match tensor.grad_remove(self.0) {
                Some(before) => before + more,
                None => more,
            };
            tensor.grad_replace(self.0, sum);
        }
    }
    model.visit(&mut Add(&mut before, more));
    before
}

/// The model without gradients, on the same memory.
pub(crate) fn without_gradients<M: Module>(model: M) -> M {
    struct Inner;
    impl ModuleMapper for Inner {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, mapper) = param.consume();
            Param::from_mapped_value(id, tensor.inner(), mapper)
        }
    }
    model.map(&mut Inner)
}
