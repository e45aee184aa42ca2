//! Log-probabilities of answers under the model that training starts from: computed once, kept beside the checkpoints.

use crate::preferences::{Choice, ChoiceBatch, Preferences};
use crate::{TrainError, TrainJob};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_model::Decoder;

/// One pair of numbers for each preference, those that are set aside last.
const FILE: &str = "reference.json";

/// Fills the references in, from the file where an earlier run left it. `model` is that at the start, without gradients.
pub(crate) fn fill(
    preferences: &mut Preferences,
    start: impl FnOnce() -> Result<Decoder, TrainError>,
    job: &TrainJob,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let path = job.out_dir.join(FILE);
    let num_trained = preferences.choices.len();
    let num_all = num_trained + preferences.set_aside.len();
    let kept: Option<Vec<[f32; 2]>> = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let values = match kept.filter(|kept| kept.len() == num_all) {
        Some(kept) => kept,
        None => {
            let model = start()?;
            let mut values = vec![];
            let all: Vec<&Choice> = preferences.choices.iter().chain(&preferences.set_aside).collect();
            for choices in all.chunks(job.batch_windows) {
                if stop.load(Ordering::Relaxed) {
                    return Err(TrainError::Stopped { step: 0 });
                }
                let (sums, _) = ChoiceBatch::of(choices, job.window)?.log_probs(&model)?;
                let sums: Vec<f32> = sums.to_data().try_to_vec().expect("a tensor of f32");
                let (first, second) = sums.split_at(choices.len());
                values.extend(first.iter().zip(second).map(|(a, b)| [*a, *b]));
            }
            if let Some(at) = values.iter().flatten().position(|value| !value.is_finite()) {
                return Err(TrainError::ReferenceNotFinite { number: at / 2 + 1 });
            }
            crate::run::write_json(&path, &values)?;
            values
        }
    };
    let all = preferences.choices.iter_mut().chain(&mut preferences.set_aside);
    all.zip(values).for_each(|(choice, value)| choice.reference = value);
    Ok(())
}
