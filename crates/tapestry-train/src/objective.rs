//! What a job learns from, as one stream of work for the engine.

use crate::conversations::{ConversationBatches, Conversations, in_order};
use crate::corpus::{Batches, Corpus};
use crate::job::{Preference, Stage};
use crate::preference_loss::{Answers, preference_loss};
use crate::preferences::{Choice, ChoiceBatch, ChoiceBatches, Preferences};
use crate::{TrainError, TrainJob};
use burn::tensor::{Tensor, TensorData};
use tapestry_model::{Batch, Decoder, Tokenizer};

/// Batches of a measurement, where the job does not say.
const MAX_VALIDATION_BATCHES: usize = 16;

/// The data of a job, read and split.
pub(crate) enum Data {
    Texts { trained: Corpus, validation: Vec<Work> },
    Conversations { all: Conversations, validation: Vec<Work> },
    Preferences { all: Preferences, settings: Preference },
}

/// One part of an update.
pub(crate) enum Work {
    Tokens(Batch),
    Choices(ChoiceBatch, Preference),
}

/// What a part of an update gave, beside its gradient.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Margins {
    /// Mean reward of chosen answers minus that of rejected ones.
    pub(crate) margin: f64,
    /// Share of pairs whose chosen answer has the larger reward; KTO: of answers whose reward has the sign of their label.
    pub(crate) accuracy: f64,
}

impl Data {
    pub(crate) fn read(job: &TrainJob, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let limit = job.validation.as_ref().and_then(|v| v.max_batches).unwrap_or(MAX_VALIDATION_BATCHES);
        let tokens = |batches: Vec<Batch>| batches.into_iter().map(Work::Tokens).collect();
        Ok(match job.stage()? {
            Stage::Cpt => {
                let read = || Corpus::read(&job.parts(), job.validation.as_ref());
                let validation = match &job.validation {
                    None => vec![],
                    Some(_) => {
                        let aside = read()?.into_set_aside();
                        // One order for ever: measurements of different seeds compare.
                        tokens(Batches::new(&aside, tokenizer, 0, job.window).of_one_pass(job.batch_windows, limit)?)
                    }
                };
                Self::Texts { trained: read()?, validation }
            }
            Stage::Sft => {
                let all = Conversations::read(job, tokenizer)?;
                let validation = match all.set_aside.is_empty() {
                    true => vec![],
                    false => tokens(in_order(&all.set_aside, job.batch_windows, job.window, limit)?),
                };
                Self::Conversations { all, validation }
            }
            Stage::Preference => {
                let all = Preferences::read(job, tokenizer)?;
                let settings = job.preference.ok_or(TrainError::NothingSetAside)?;
                Self::Preferences { all, settings }
            }
        })
    }

    /// Samples that were left out because they are longer than a window.
    pub(crate) const fn num_left_out(&self) -> u64 {
        match self {
            Self::Texts { .. } => 0,
            Self::Conversations { all, .. } => all.num_left_out,
            Self::Preferences { all, .. } => all.num_left_out,
        }
    }

    pub(crate) fn stream<'a>(&'a self, job: &TrainJob, tokenizer: &'a Tokenizer) -> Stream<'a> {
        match self {
            Self::Texts { trained, .. } => Stream::Texts(Batches::new(trained, tokenizer, job.seed, job.window)),
            Self::Conversations { all, .. } => Stream::Conversations(all.stream(job.seed)),
            Self::Preferences { all, settings } => {
                Stream::Choices(ChoiceBatches::new(&all.choices, job.seed), *settings)
            }
        }
    }

    /// The work of a measurement.
    pub(crate) fn validation(&self, job: &TrainJob) -> Result<Vec<Work>, TrainError> {
        let Self::Preferences { all, settings } = self else { return Ok(vec![]) };
        let limit = job.validation.as_ref().and_then(|v| v.max_batches).unwrap_or(MAX_VALIDATION_BATCHES);
        let batches = all.set_aside.chunks(job.batch_windows).take(limit).map(|choices| {
            let choices: Vec<&Choice> = choices.iter().collect();
            ChoiceBatch::of(&choices, job.window).map(|batch| Work::Choices(batch, *settings))
        });
        batches.collect()
    }

    /// The work of a measurement that does not depend on a reference.
    pub(crate) fn take_validation(&mut self) -> Vec<Work> {
        match self {
            Self::Texts { validation, .. } | Self::Conversations { validation, .. } => std::mem::take(validation),
            Self::Preferences { .. } => vec![],
        }
    }
}

/// An endless stream of work. Its state follows from the seed and from how much was taken.
pub(crate) enum Stream<'a> {
    Texts(Batches<'a>),
    Conversations(ConversationBatches<'a>),
    Choices(ChoiceBatches<'a>, Preference),
}

impl Stream<'_> {
    pub(crate) fn next(&mut self, job: &TrainJob) -> Result<Work, TrainError> {
        Ok(match self {
            Self::Texts(batches) => Work::Tokens(batches.next(job.batch_windows)?),
            Self::Conversations(batches) => Work::Tokens(batches.next(job.batch_windows, job.window)?),
            Self::Choices(batches, settings) => Work::Choices(batches.next(job.batch_windows, job.window)?, *settings),
        })
    }

    /// Passes over what was trained on before the last checkpoint.
    pub(crate) fn skip(&mut self, job: &TrainJob) -> Result<(), TrainError> {
        match self {
            Self::Texts(batches) => batches.skip(job.batch_windows),
            _ => self.next(job).map(drop),
        }
    }
}

impl Work {
    /// Its share of an update: the positions that count, or the preferences.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Tokens(batch) => batch.num_counted(),
            Self::Choices(choices, _) => choices.num_choices(),
        }
    }

    /// Tokens that go through the model.
    pub(crate) const fn num_tokens(&self) -> usize {
        let batch = match self {
            Self::Tokens(batch) => batch,
            Self::Choices(choices, _) => &choices.batch,
        };
        batch.num_windows() * batch.window()
    }

    /// The mean loss over what counts, one value, and how rewards differ where there are any.
    pub(crate) fn loss(&self, model: &Decoder) -> Result<(Tensor<1>, Option<Margins>), TrainError> {
        match self {
            Self::Tokens(batch) => Ok((model.loss(batch)?, None)),
            Self::Choices(choices, settings) => choices.loss(model, settings),
        }
    }
}

impl ChoiceBatch {
    /// Log-probabilities of the answers, `[answers]`, and how many tokens each has.
    pub(crate) fn log_probs(&self, model: &Decoder) -> Result<(Tensor<1>, Vec<f32>), TrainError> {
        let log_probs_n = model.log_probs(&self.batch)?;
        let (counts, n) = (self.batch.counts(), self.batch.num_windows() * self.batch.window());
        let mut places = vec![0.0_f32; self.places.len() * n];
        let mut lengths = vec![0.0; self.places.len()];
        for (at, place) in self.places.iter().enumerate() {
            for position in place.clone().filter(|position| counts[*position]) {
                places[at * n + position] = 1.0;
                lengths[at] += 1.0;
            }
        }
        let shape = [self.places.len(), n];
        let places_an = Tensor::<2>::from_data(TensorData::new(places, shape), &log_probs_n.device());
        let sums: Tensor<1> = places_an.matmul(log_probs_n.reshape([n, 1])).reshape([shape[0]]);
        Ok((sums, lengths))
    }

    fn loss(&self, model: &Decoder, settings: &Preference) -> Result<(Tensor<1>, Option<Margins>), TrainError> {
        let (policy, lengths) = self.log_probs(model)?;
        let (num, device) = (self.num_choices(), policy.device());
        let constant = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
        let side = |side: usize| Answers {
            policy: policy.clone().narrow(0, side * num, num),
            reference: constant(&self.reference[side * num..][..num]),
            lengths: constant(&lengths[side * num..][..num]),
        };
        let result = preference_loss(settings, &side(0), &side(1), &self.is_wanted);
        let margins = Margins::of(settings, &result.first_rewards, &result.second_rewards, &self.is_wanted);
        Ok((result.loss, Some(margins)))
    }
}

impl Margins {
    /// A weighted sum gone on with.
    pub(crate) fn added(sum: Option<Self>, more: Option<Self>, weight: f64) -> Option<Self> {
        let more = more?.scaled(weight);
        let sum = sum.unwrap_or_default();
        Some(Self { margin: sum.margin + more.margin, accuracy: sum.accuracy + more.accuracy })
    }

    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self { margin: self.margin * factor, accuracy: self.accuracy * factor }
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of preferences")]
    fn of(settings: &Preference, first: &[f32], second: &[f32], is_wanted: &[bool]) -> Self {
        let margins: Vec<f64> = match settings.method {
            crate::PreferenceMethod::Kto => {
                let signed = first.iter().zip(is_wanted);
                signed.map(|(reward, is_wanted)| f64::from(if *is_wanted { *reward } else { -reward })).collect()
            }
            _ => first.iter().zip(second).map(|(first, second)| f64::from(first - second)).collect(),
        };
        let count = margins.len().max(1) as f64;
        let right = margins.iter().filter(|margin| **margin > 0.0).count() as f64;
        Self { margin: margins.iter().sum::<f64>() / count, accuracy: right / count }
    }
}
