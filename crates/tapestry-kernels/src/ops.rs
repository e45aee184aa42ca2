//! The half-blocks as operations of Burn, with hand-written gradients.
//!
//! Burn's backend extension: a trait over backends, implemented for `Flex` (forward) and for `Autodiff<Flex>` (forward that
//! keeps what the gradient needs, and the gradient).
#![expect(clippy::too_many_arguments, reason = "an extension of Burn takes tensors one by one")]

use crate::backward::{attention_backward, mlp_backward};
use crate::cross_entropy::linear_cross_entropy as cross_entropy;
use crate::forward::{AttentionSaved, AttentionWeights, MlpSaved, MlpWeights, attention_saved, mlp_saved};
use crate::norm;
use crate::plan::{AttentionPlan, MlpPlan};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};
use std::sync::Arc;

/// The fused operations.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// See [`attention_block`].
    fn fused_attention(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        o: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        k_bias: FloatTensor<Self>,
        v_bias: FloatTensor<Self>,
        q_norm: FloatTensor<Self>,
        k_norm: FloatTensor<Self>,
        plan: Arc<AttentionPlan>,
    ) -> FloatTensor<Self>;

    /// See [`mlp_block`].
    fn fused_mlp(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: MlpPlan,
    ) -> FloatTensor<Self>;

    /// See [`rms_norm`].
    fn fused_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// See [`embed`].
    fn fused_embed(table: FloatTensor<Self>, ids: Arc<Vec<u32>>) -> FloatTensor<Self>;

    /// See [`linear_log_probs`].
    fn fused_log_probs(x: FloatTensor<Self>, head: FloatTensor<Self>, targets: Arc<Vec<u32>>) -> FloatTensor<Self>;

    /// See [`linear_cross_entropy`].
    fn fused_cross_entropy(
        x: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
        weights: Arc<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

/// The parameters of an attention half-block as tensors; shapes as in [`AttentionWeights`].
#[derive(Debug)]
pub struct AttentionParameters {
    /// The block's norm.
    pub norm: Tensor<1>,
    /// The matrices of queries, keys, values and of the output.
    pub matrices: [Tensor<2>; 4],
    /// Biases of queries, keys and values, where the model has them.
    pub biases: Option<[Tensor<1>; 3]>,
    /// Norms of queries and keys, where the model has them.
    pub qk_norms: Option<[Tensor<1>; 2]>,
}

/// `x + attention(norm(x))` or `x + norm(attention(x))`. x `[b, t, d]`.
#[must_use]
pub fn attention_block(x: Tensor<3>, parameters: AttentionParameters, plan: Arc<AttentionPlan>) -> Tensor<3> {
    let AttentionParameters { norm, matrices, biases, qk_norms } = parameters;
    let absent = || Tensor::<1>::empty([0], &norm.device());
    let biases = biases.unwrap_or_else(|| std::array::from_fn(|_| absent()));
    let qk_norms = qk_norms.unwrap_or_else(|| std::array::from_fn(|_| absent()));
    let [q, k, v, o] = matrices.map(Tensor::into_dispatch);
    let [q_bias, k_bias, v_bias] = biases.map(Tensor::into_dispatch);
    let [q_norm, k_norm] = qk_norms.map(Tensor::into_dispatch);
    let (x, norm) = (x.into_dispatch(), norm.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_attention(x, norm, q, k, v, o, q_bias, k_bias, v_bias, q_norm, k_norm, plan))
}

/// `x + mlp(norm(x))` or `x + norm(mlp(x))`. x `[b, t, d]`; the parameters as in [`MlpWeights`].
#[must_use]
pub fn mlp_block(x: Tensor<3>, norm: Tensor<1>, [gate, up, down]: [Tensor<2>; 3], plan: MlpPlan) -> Tensor<3> {
    let [gate, up, down] = [gate, up, down].map(Tensor::into_dispatch);
    let (x, norm) = (x.into_dispatch(), norm.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_mlp(x, norm, gate, up, down, plan))
}

/// The root-mean-square norm over the last dimension.
#[must_use]
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::fused_norm(x.into_dispatch(), weight.into_dispatch(), eps))
}

/// Rows of `table` `[v, d]`; the result is `[ids, d]`. Its gradient is added into the table's gradient where one is there
/// already (a tied head), without a second table.
///
/// # Panics
/// Where an id is beyond the table's rows: a defect of the caller.
#[must_use]
pub fn embed(table: Tensor<2>, ids: Arc<Vec<u32>>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused_embed(table.into_dispatch(), ids))
}

/// `sum_i weights_i * -ln p(targets_i)` under `softmax(x head^T)`, one value. x `[n, d]`, head `[v, d]`. The gradients are
/// computed with the forward pass, so measure on a device without automatic differentiation.
///
/// # Panics
/// Where there is no token, not one weight for each target, or a target beyond the head's rows: a defect of the caller.
#[must_use]
pub fn linear_cross_entropy(
    x: Tensor<2>,
    head: Tensor<2>,
    targets: Arc<Vec<u32>>,
    weights: Arc<Vec<f32>>,
) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::fused_cross_entropy(x.into_dispatch(), head.into_dispatch(), targets, weights))
}

/// `ln p(targets_i)` under `softmax(x head^T)` for each row, `[n]`. x `[n, d]`, head `[v, d]`. What losses on whole answers are made of;
/// the logits are computed again for the gradient.
///
/// # Panics
/// Where there is no token, or a target beyond the head's rows: a defect of the caller.
#[must_use]
pub fn linear_log_probs(x: Tensor<2>, head: Tensor<2>, targets: Arc<Vec<u32>>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::fused_log_probs(x.into_dispatch(), head.into_dispatch(), targets))
}

/// The same values without gaps; no copy where they lie so already.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous tensor of f32")
}

/// Values become a tensor's storage, without a copy.
fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

fn like(values: Vec<f32>, other: &FlexTensor) -> FlexTensor {
    tensor(values, other.layout().shape().clone())
}

/// Rows and columns of a matrix.
fn dims(matrix: &FlexTensor) -> (usize, usize) {
    let shape = matrix.layout().shape();
    (shape[0], shape[1])
}

/// Input, norm, q, k, v, o, the three biases, the two norms of queries and keys.
type AttentionTensors = [FlexTensor; 11];

fn attention_weights(tensors: &AttentionTensors) -> AttentionWeights<'_> {
    let [_, norm, q, k, v, o, q_bias, k_bias, v_bias, q_norm, k_norm] = tensors.each_ref().map(values);
    AttentionWeights { norm, q, k, v, o, biases: [q_bias, k_bias, v_bias], qk_norms: [q_norm, k_norm] }
}

fn attention_forward(tensors: &AttentionTensors, plan: &AttentionPlan) -> (FlexTensor, AttentionSaved) {
    let (y, saved) = attention_saved(values(&tensors[0]), &attention_weights(tensors), plan);
    (like(y, &tensors[0]), saved)
}

fn mlp_forward([x, norm, gate, up, down]: &[FlexTensor; 5], plan: MlpPlan) -> (FlexTensor, MlpSaved) {
    let weights = MlpWeights { norm: values(norm), gate: values(gate), up: values(up), down: values(down) };
    let (y, saved) = mlp_saved(values(x), &weights, plan.norm_eps, plan.norm_order);
    (like(y, x), saved)
}

fn gather(table: &FlexTensor, ids: &[u32]) -> FlexTensor {
    let (_, d) = dims(table);
    let rows = values(table);
    let out = ids.iter().flat_map(|id| &rows[*id as usize * d..][..d]).copied().collect();
    tensor(out, Shape::from([ids.len(), d]))
}

impl FusedOps for Flex {
    fn fused_attention(
        x: FlexTensor,
        norm: FlexTensor,
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        o: FlexTensor,
        q_bias: FlexTensor,
        k_bias: FlexTensor,
        v_bias: FlexTensor,
        q_norm: FlexTensor,
        k_norm: FlexTensor,
        plan: Arc<AttentionPlan>,
    ) -> FlexTensor {
        let tensors = [x, norm, q, k, v, o, q_bias, k_bias, v_bias, q_norm, k_norm];
        attention_forward(&tensors.map(contiguous), &plan).0
    }

    fn fused_mlp(
        x: FlexTensor,
        norm: FlexTensor,
        gate: FlexTensor,
        up: FlexTensor,
        down: FlexTensor,
        plan: MlpPlan,
    ) -> FlexTensor {
        mlp_forward(&[x, norm, gate, up, down].map(contiguous), plan).0
    }

    fn fused_norm(x: FlexTensor, weight: FlexTensor, eps: f32) -> FlexTensor {
        let [x, weight] = [x, weight].map(contiguous);
        like(norm::forward(values(&x), values(&weight), eps).0, &x)
    }

    fn fused_embed(table: FlexTensor, ids: Arc<Vec<u32>>) -> FlexTensor {
        gather(&contiguous(table), &ids)
    }

    fn fused_log_probs(x: FlexTensor, head: FlexTensor, targets: Arc<Vec<u32>>) -> FlexTensor {
        let [x, head] = [x, head].map(contiguous);
        log_probs(&x, &head, &targets)
    }

    fn fused_cross_entropy(
        x: FlexTensor,
        head: FlexTensor,
        targets: Arc<Vec<u32>>,
        weights: Arc<Vec<f32>>,
    ) -> FlexTensor {
        let [x, head] = [x, head].map(contiguous);
        let result = cross_entropy(values(&x), values(&head), &targets, &weights, false);
        tensor(vec![result.loss], Shape::from([1]))
    }
}

fn log_probs(x: &FlexTensor, head: &FlexTensor, targets: &[u32]) -> FlexTensor {
    let nll = crate::forward::token_nll(values(x), values(head), targets);
    let n = nll.len();
    tensor(nll.into_iter().map(|nats| -nats).collect(), Shape::from([n]))
}

#[derive(Debug)]
struct LogProbsBackward;

impl Backward<Flex, 2> for LogProbsBackward {
    type State = (FlexTensor, FlexTensor, Arc<Vec<u32>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, head, targets) = ops.state;
        // Cross entropy with these weights has the same gradient.
        let weights: Vec<f32> = values(&dy).iter().map(|gradient| -gradient).collect();
        let result = cross_entropy(values(&x), values(&head), &targets, &weights, true);
        let [x_node, head_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, like(result.dx, &x));
        }
        if let Some(node) = head_node {
            grads.register::<Flex>(node.id, like(result.d_head, &head));
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 11> for AttentionBackward {
    /// What the forward pass made is not there where it is to be made again.
    type State = (AttentionTensors, Option<Arc<AttentionSaved>>, Arc<AttentionPlan>);

    fn backward(self, ops: Ops<Self::State, 11>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (tensors, saved, plan) = ops.state;
        let saved = saved.unwrap_or_else(|| Arc::new(attention_forward(&tensors, &plan).1));
        let x = values(&tensors[0]);
        let gradients = attention_backward(values(&dy), x, &attention_weights(&tensors), &saved, &plan);
        for ((parent, gradient), of) in ops.parents.into_iter().zip(gradients).zip(&tensors) {
            if let Some(node) = parent
                && !gradient.is_empty()
            {
                grads.register::<Flex>(node.id, like(gradient, of));
            }
        }
    }
}

#[derive(Debug)]
struct MlpBackward;

impl Backward<Flex, 5> for MlpBackward {
    /// What the forward pass made is not there where it is to be made again.
    type State = ([FlexTensor; 5], Option<Arc<MlpSaved>>, MlpPlan);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (tensors, saved, plan) = ops.state;
        let saved = saved.unwrap_or_else(|| Arc::new(mlp_forward(&tensors, plan).1));
        // The state is only shared where a graph is walked twice.
        let saved = Arc::try_unwrap(saved).unwrap_or_else(|saved| MlpSaved {
            stream: saved.stream.clone(),
            factors: saved.factors.clone(),
            gate: saved.gate.clone(),
            up: saved.up.clone(),
        });
        let [x, norm, gate, up, down] = tensors.each_ref().map(values);
        let gradients = mlp_backward(values(&dy), x, &MlpWeights { norm, gate, up, down }, saved, plan.norm_order);
        for ((parent, gradient), of) in ops.parents.into_iter().zip(gradients).zip(&tensors) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, like(gradient, of));
            }
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 2> for NormBackward {
    type State = (FlexTensor, FlexTensor, Arc<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, weight, factors) = ops.state;
        let residual = vec![0.0; values(&x).len()];
        let (dx, d_weight) = norm::backward(values(&dy), values(&x), values(&weight), &factors, &residual);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, like(dx, &x));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, like(d_weight, &weight));
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl Backward<Flex, 2> for CrossEntropyBackward {
    /// The gradients for an upstream gradient of one.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = values(&contiguous(grads.consume::<Flex>(&ops.node)))[0];
        let (mut dx, mut d_head) = ops.state;
        if (upstream - 1.0).abs() > 0.0 {
            for gradient in [&mut dx, &mut d_head] {
                gradient.storage_mut::<f32>().iter_mut().for_each(|g| *g *= upstream);
            }
        }
        let [x_node, head_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, dx);
        }
        if let Some(node) = head_node {
            grads.register::<Flex>(node.id, d_head);
        }
    }
}

#[derive(Debug)]
struct EmbedBackward;

impl Backward<Flex, 1> for EmbedBackward {
    type State = (FloatTensor<Autodiff<Flex>>, Arc<Vec<u32>>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (table, ids) = ops.state;
        let [parent] = ops.parents;
        let Some(node) = parent else { return };
        let (_, d) = dims(table.primitive());
        let existing = grads.remove::<Flex>(&table).map(contiguous);
        let mut gradient =
            existing.unwrap_or_else(|| like(vec![0.0; values(table.primitive()).len()], table.primitive()));
        let rows = gradient.storage_mut::<f32>();
        for (id, row) in ids.iter().zip(values(&dy).chunks_exact(d)) {
            crate::elementwise::add(&mut rows[*id as usize * d..][..d], row);
        }
        grads.register::<Flex>(node.id, gradient);
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_attention(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        o: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        k_bias: FloatTensor<Self>,
        v_bias: FloatTensor<Self>,
        q_norm: FloatTensor<Self>,
        k_norm: FloatTensor<Self>,
        plan: Arc<AttentionPlan>,
    ) -> FloatTensor<Self> {
        let tensors = [x, norm, q, k, v, o, q_bias, k_bias, v_bias, q_norm, k_norm];
        let nodes = tensors.each_ref().map(|tensor| tensor.node());
        let tensors = tensors.map(|tensor| contiguous(tensor.into_primitive()));
        let (y, saved) = attention_forward(&tensors, &plan);
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let saved = (!plan.recompute).then(|| Arc::new(saved));
                prepared.finish((tensors, saved, plan), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn fused_mlp(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        plan: MlpPlan,
    ) -> FloatTensor<Self> {
        let tensors = [x, norm, gate, up, down];
        let nodes = tensors.each_ref().map(|tensor| tensor.node());
        let tensors = tensors.map(|tensor| contiguous(tensor.into_primitive()));
        let (y, saved) = mlp_forward(&tensors, plan);
        match MlpBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let saved = (!plan.recompute).then(|| Arc::new(saved));
                prepared.finish((tensors, saved, plan), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn fused_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let [x, weight] = [x, weight].map(|tensor| contiguous(tensor.into_primitive()));
        let (y, factors) = norm::forward(values(&x), values(&weight), eps);
        let y = like(y, &x);
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((x, weight, Arc::new(factors)), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn fused_embed(table: FloatTensor<Self>, ids: Arc<Vec<u32>>) -> FloatTensor<Self> {
        let out = gather(&contiguous(table.primitive().clone()), &ids);
        match EmbedBackward.prepare::<C>([table.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((table, ids), out),
            OpsKind::UnTracked(prepared) => prepared.finish(out),
        }
    }

    fn fused_log_probs(x: FloatTensor<Self>, head: FloatTensor<Self>, targets: Arc<Vec<u32>>) -> FloatTensor<Self> {
        let nodes = [x.node(), head.node()];
        let [x, head] = [x, head].map(|tensor| contiguous(tensor.into_primitive()));
        let y = log_probs(&x, &head, &targets);
        match LogProbsBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((x, head, targets), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn fused_cross_entropy(
        x: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Arc<Vec<u32>>,
        weights: Arc<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), head.node()];
        let [x, head] = [x, head].map(|tensor| contiguous(tensor.into_primitive()));
        let evaluate = |with_gradients| cross_entropy(values(&x), values(&head), &targets, &weights, with_gradients);
        match CrossEntropyBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let result = evaluate(true);
                let state = (like(result.dx, &x), like(result.d_head, &head));
                prepared.finish(state, tensor(vec![result.loss], Shape::from([1])))
            }
            OpsKind::UnTracked(prepared) => {
                let loss = evaluate(false).loss;
                prepared.finish(tensor(vec![loss], Shape::from([1])))
            }
        }
    }
}

/// The sum of squares of a gradient on the `Flex` device, without automatic differentiation.
///
/// # Panics
/// Where the tensor is on another device: a defect of the caller.
#[must_use]
pub fn sum_of_squares<const D: usize>(gradient: &Tensor<D>) -> f64 {
    crate::adamw::sum_of_squares(values(&contiguous(flex(gradient.clone()))))
}

/// One AdamW update of a parameter in place ([`crate::adamw::update`]); `weights` and `gradient` without automatic
/// differentiation.
///
/// # Panics
/// Where the tensors are on another device than `Flex`, or differ in size: a defect of the caller.
#[must_use]
pub fn adamw_update<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<D>,
    (m, v): (&mut [f32], &mut [f32]),
    factor: f32,
    settings: &crate::adamw::AdamW,
) -> Tensor<D> {
    // `storage_mut` ignores the layout, so it is only called on what lies without gaps.
    let mut weights = contiguous(flex(weights));
    let gradient = contiguous(flex(gradient));
    crate::adamw::update(weights.storage_mut::<f32>(), values(&gradient), m, v, factor, settings);
    Tensor::from_primitive::<Flex>(weights)
}

fn flex<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("a tensor on the Flex device")
}
