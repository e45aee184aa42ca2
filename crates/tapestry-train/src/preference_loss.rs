//! The losses on preferences, and their gradients through Burn.
//!
//! Letters: `p` and `r` are log-probabilities of whole answers under the model and under the reference (the model that training started from), `c` and `l` (lost)
//! mark chosen and rejected answers, `n` is an answer's number of tokens, sigma the logistic function.

use crate::job::{Preference, PreferenceMethod};
use burn::tensor::{Tensor, activation};

/// What a batch of preferences gives.
#[derive(Debug)]
pub struct PreferenceLoss {
    /// The mean loss, one value.
    pub loss: Tensor<1>,
    /// The implicit reward of each first answer: `beta (p - r)`, for SimPO `beta p / n`.
    pub first_rewards: Vec<f32>,
    /// Of each second answer.
    pub second_rewards: Vec<f32>,
}

/// The answers of a batch: log-probabilities summed over their tokens, `[b]` each.
#[derive(Debug)]
pub struct Answers {
    /// Under the model.
    pub policy: Tensor<1>,
    /// Under the reference.
    pub reference: Tensor<1>,
    /// Tokens of each.
    pub lengths: Tensor<1>,
}

/// The loss of pairs (`first` chosen, `second` rejected), or for KTO of answers (`first`, of which `is_wanted` says whether they are wanted) and of
/// other prompts' answers (`second`).
///
/// * DPO: `-(1-e) ln sigma(m) - e ln sigma(-m)`, `m = beta ((p_c - r_c) - (p_l - r_l))`, `e` the label smoothing. Rafailov et al., equation 7; with
///   smoothing Mitchell, "A note on DPO with noisy preferences", equation 3.
/// * IPO: `(((p_c - r_c)/n_c - (p_l - r_l)/n_l) - 1/(2 beta))^2`. Azar et al., equation 17, with means over tokens as `trl` has it.
/// * SimPO: `-ln sigma(beta p_c/n_c - beta p_l/n_l - gamma)`. Meng et al., equation 6.
/// * KTO: `1 - sigma(beta (p - r) - z)` for what is wanted, `1 - sigma(z - beta (p - r))` for what is not, with
///   `z = max(0, beta mean(p - r))` over other prompts' answers, through which no gradient goes. Ethayarajh et al., equation 8.
///
/// # Panics
/// Where the lists differ in length: a defect of the caller.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "settings as the arithmetic has them")]
pub fn preference_loss(settings: &Preference, first: &Answers, second: &Answers, is_wanted: &[bool]) -> PreferenceLoss {
    let beta = settings.beta as f32;
    let smoothing = settings.label_smoothing.unwrap_or(0.0) as f32;
    let ratio = |answers: &Answers| answers.policy.clone() - answers.reference.clone();
    let per_token = |answers: &Answers| answers.policy.clone() / answers.lengths.clone();
    let smooth = |margin: Tensor<1>| {
        let right = activation::log_sigmoid(margin.clone()).mul_scalar(1.0 - smoothing);
        (right + activation::log_sigmoid(margin.neg()).mul_scalar(smoothing)).neg()
    };
    let (losses, rewards) = match settings.method {
        PreferenceMethod::Dpo => {
            let rewards = [first, second].map(|answers| ratio(answers).mul_scalar(beta));
            (smooth(rewards[0].clone() - rewards[1].clone()), rewards)
        }
        PreferenceMethod::Ipo => {
            let rewards = [first, second].map(|answers| ratio(answers).mul_scalar(beta));
            let mean = |answers: &Answers| ratio(answers) / answers.lengths.clone();
            let margin = mean(first) - mean(second) - 1.0 / (2.0 * beta);
            (margin.clone() * margin, rewards)
        }
        PreferenceMethod::SimPo => {
            let rewards = [first, second].map(|answers| per_token(answers).mul_scalar(beta));
            let margin = rewards[0].clone() - rewards[1].clone() - settings.gamma.unwrap_or(0.5) as f32;
            (smooth(margin), rewards)
        }
        PreferenceMethod::Kto => {
            let rewards = [first, second].map(|answers| ratio(answers).mul_scalar(beta));
            let moved = rewards[1].clone().detach().mean().clamp_min(0.0);
            let sign: Vec<f32> = is_wanted.iter().map(|is_wanted| if *is_wanted { 1.0 } else { -1.0 }).collect();
            let sign = Tensor::<1>::from_floats(sign.as_slice(), &first.policy.device());
            let gain = activation::sigmoid((rewards[0].clone() - moved) * sign);
            (gain.neg().add_scalar(1.0), rewards)
        }
    };
    let [first_rewards, second_rewards] = rewards.map(|rewards| values(&rewards));
    PreferenceLoss { loss: losses.mean(), first_rewards, second_rewards }
}

fn values(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.to_data().try_to_vec().expect("a tensor of f32")
}
