//! A model of the 135M shape with made-up weights.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use std::sync::Arc;
use std::time::Instant;
use tapestry_kernels::adamw::AdamW;
use tapestry_kernels::forward::{self, AttentionWeights, MlpWeights};
use tapestry_kernels::ops::AttentionParameters;
use tapestry_kernels::{AttentionPlan, NormOrder, RopeTables, ops};

/// Tokens of one window.
pub(crate) const NUM_TOKENS: usize = 256;
pub(crate) const WIDTH: usize = 576;
pub(crate) const NUM_HEADS: usize = 9;
pub(crate) const NUM_KV_HEADS: usize = 3;
pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const EPS: f32 = 1e-5;
const FFN: usize = 1536;
const VOCAB: usize = 49152;
const NUM_LAYERS: usize = 30;

/// Which operations a step is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// This crate's.
    Fused,
    /// Burn's own.
    Composed,
}

/// The parameters of one layer; matrices are `[out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor<1>,
    /// q, k, v, o.
    pub(crate) attention: [Tensor<2>; 4],
    pub(crate) mlp_norm: Tensor<1>,
    /// gate, up, down.
    pub(crate) mlp: [Tensor<2>; 3],
}

/// A whole model and its optimiser.
pub(crate) struct Model {
    pub(crate) table: Tensor<2>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<1>,
    pub(crate) ids: Arc<Vec<u32>>,
    pub(crate) targets: Arc<Vec<u32>>,
    plan: Arc<AttentionPlan>,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
    step: u32,
}

/// Numbers in [-1, 1) that look random and are always the same.
#[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
fn numbers(count: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Model {
    /// The same numbers each time.
    pub(crate) fn new() -> Self {
        let device = Device::flex().autodiff();
        let mut state = 7;
        let mut matrix = |rows: usize, cols: usize| {
            let values = numbers(rows * cols, &mut state).iter().map(|x| x * 0.035).collect::<Vec<_>>();
            Tensor::<2>::from_data(TensorData::new(values, [rows, cols]), &device).require_grad()
        };
        let scale = || Tensor::<1>::ones([WIDTH], &device).require_grad();
        let kv_width = NUM_KV_HEADS * HEAD_DIM;
        let layer = |matrix: &mut dyn FnMut(usize, usize) -> Tensor<2>| Layer {
            attention_norm: scale(),
            attention: [WIDTH, kv_width, kv_width, WIDTH].map(|rows| matrix(rows, WIDTH)),
            mlp_norm: scale(),
            mlp: [(FFN, WIDTH), (FFN, WIDTH), (WIDTH, FFN)].map(|(rows, cols)| matrix(rows, cols)),
        };
        let ids = |factor: u32| Arc::new((1..=256_u32).map(|i| i * factor % 49_152).collect::<Vec<u32>>());
        Self {
            table: matrix(VOCAB, WIDTH),
            layers: (0..NUM_LAYERS).map(|_| layer(&mut matrix)).collect(),
            norm: scale(),
            ids: ids(7919),
            targets: ids(104_729 % 49_152),
            plan: Arc::new(AttentionPlan {
                batch: 1,
                time: NUM_TOKENS,
                num_heads: NUM_HEADS,
                num_kv_heads: NUM_KV_HEADS,
                head_dim: HEAD_DIM,
                norm_eps: EPS,
                norm_order: NormOrder::Before,
                window: None,
                recompute: false,
                rope: Arc::new(RopeTables::new(100_000.0, HEAD_DIM, NUM_TOKENS)),
                starts: [].into(),
            }),
            moments: vec![],
            step: 0,
        }
    }

    /// One step of training; the loss before it, and the seconds of its three phases.
    pub(crate) fn train_step(&mut self, form: Form) -> (f32, [f64; 3]) {
        let start = Instant::now();
        let loss = match form {
            Form::Fused => self.fused_loss(),
            Form::Composed => self.composed_loss(),
        };
        let value = loss.clone().into_scalar::<f32>();
        let forward = start.elapsed().as_secs_f64();
        let mut gradients = loss.backward();
        let backward = start.elapsed().as_secs_f64();
        self.update(&mut gradients);
        (value, [forward, backward - forward, start.elapsed().as_secs_f64() - backward])
    }

    #[expect(clippy::cast_precision_loss, reason = "a few hundred tokens")]
    fn fused_loss(&self) -> Tensor<1> {
        let mut x = ops::embed(self.table.clone(), Arc::clone(&self.ids)).reshape([1, NUM_TOKENS, WIDTH]);
        for Layer { attention_norm, attention, mlp_norm, mlp } in &self.layers {
            x = ops::attention_block(
                x,
                AttentionParameters {
                    norm: attention_norm.clone(),
                    matrices: attention.clone(),
                    biases: None,
                    qk_norms: None,
                },
                Arc::clone(&self.plan),
            );
            x = ops::mlp_block(x, mlp_norm.clone(), mlp.clone(), self.plan.mlp());
        }
        let x = ops::rms_norm(x.reshape([NUM_TOKENS, WIDTH]), self.norm.clone(), EPS);
        let weights = Arc::new(vec![1.0 / NUM_TOKENS as f32; NUM_TOKENS]);
        ops::linear_cross_entropy(x, self.table.clone(), Arc::clone(&self.targets), weights)
    }

    fn update(&mut self, gradients: &mut Gradients) {
        self.step += 1;
        let settings =
            AdamW { learning_rate: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: self.step };
        let mut update = Update { settings, moments: &mut self.moments, index: 0, gradients };
        update.tensor(&mut self.table);
        update.tensor(&mut self.norm);
        for layer in &mut self.layers {
            update.tensor(&mut layer.attention_norm);
            update.tensor(&mut layer.mlp_norm);
            layer.attention.iter_mut().chain(&mut layer.mlp).for_each(|matrix| update.tensor(matrix));
        }
    }

    /// The weights and the plan without Burn.
    pub(crate) fn to_slices(&self) -> Slices {
        let layer = |layer: &Layer| SliceLayer {
            attention_norm: values(&layer.attention_norm),
            attention: layer.attention.each_ref().map(values),
            mlp_norm: values(&layer.mlp_norm),
            mlp: layer.mlp.each_ref().map(values),
        };
        Slices {
            table: values(&self.table),
            layers: self.layers.iter().map(layer).collect(),
            norm: values(&self.norm),
            ids: Arc::clone(&self.ids),
            targets: Arc::clone(&self.targets),
            plan: Arc::clone(&self.plan),
        }
    }
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec().expect("f32")
}

/// A layer as plain numbers.
struct SliceLayer {
    attention_norm: Vec<f32>,
    attention: [Vec<f32>; 4],
    mlp_norm: Vec<f32>,
    mlp: [Vec<f32>; 3],
}

/// A model as plain numbers.
pub(crate) struct Slices {
    table: Vec<f32>,
    layers: Vec<SliceLayer>,
    norm: Vec<f32>,
    ids: Arc<Vec<u32>>,
    targets: Arc<Vec<u32>>,
    plan: Arc<AttentionPlan>,
}

impl Slices {
    /// `-ln p` of each target.
    pub(crate) fn score(&self) -> Vec<f32> {
        let rows = self.ids.iter().flat_map(|id| &self.table[*id as usize * WIDTH..][..WIDTH]);
        let mut x: Vec<f32> = rows.copied().collect();
        for SliceLayer { attention_norm, attention: [q, k, v, o], mlp_norm, mlp: [gate, up, down] } in &self.layers {
            x = forward::attention_block(
                &x,
                &AttentionWeights { norm: attention_norm, q, k, v, o, biases: [&[]; 3], qk_norms: [&[]; 2] },
                &self.plan,
            );
            x = forward::mlp_block(&x, &MlpWeights { norm: mlp_norm, gate, up, down }, EPS, NormOrder::Before);
        }
        forward::token_nll(&forward::rms_norm(&x, &self.norm, EPS), &self.table, &self.targets)
    }
}

struct Update<'a> {
    settings: AdamW,
    moments: &'a mut Vec<(Vec<f32>, Vec<f32>)>,
    index: usize,
    gradients: &'a mut Gradients,
}

impl Update<'_> {
    fn tensor<const D: usize>(&mut self, tensor: &mut Tensor<D>) {
        let size = tensor.shape().num_elements();
        if self.moments.len() == self.index {
            self.moments.push((vec![0.0; size], vec![0.0; size]));
        }
        let (m, v) = &mut self.moments[self.index];
        self.index += 1;
        let gradient = tensor.grad_remove(self.gradients).expect("every parameter has a gradient");
        // Taken out and put back, so that the update finds the storage unshared and works in place.
        let placeholder = Tensor::empty([1; D], &Device::flex());
        let weights = std::mem::replace(tensor, placeholder).inner();
        let weights = ops::adamw_update(weights, gradient, (m, v), 1.0, &self.settings);
        *tensor = Tensor::from_inner(weights).require_grad();
    }
}
