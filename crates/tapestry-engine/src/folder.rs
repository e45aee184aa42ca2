//! Merging local models: folders in Hugging Face layout in, a folder in Hugging Face layout out.

use crate::companion::{check_companions, copy_companions};
use crate::file::{Progress, Writing, replace_file, write_file};
use crate::merge::{Input, Merge, Output, Request, Rows};
use crate::sample::Sample;
use crate::{EngineError, FileReport, Recipe, TensorSource};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tapestry_core::{Digest, Dtype};
use tapestry_merge::Method;
use tapestry_weights::SafetensorsModel;

/// The weights of a model in its folder.
const WEIGHTS: &str = "model.safetensors";
/// The folder of a method's state within an output.
const STATE: &str = "optimizer_state";
/// The record of a merge within its output.
const RECORD: &str = "merge.json";
/// Elements of every tensor that are compared with the base's before anything is merged.
const DESCENT_SAMPLE: u64 = 4096;
/// Bytes of each model that a dry run merges to learn how long the whole takes.
const TIMING_SAMPLE_BYTES: u64 = 64 << 20;

/// How a merge of folders is to run.
pub struct Running<'a> {
    /// Set it to stop at the next safe place.
    pub stop: &'a AtomicBool,
    /// How many bytes are written between two safe places.
    pub sync_every: u64,
    /// Told what is being done, and how far it is.
    pub progress: &'a (dyn Fn(Stage, Progress) + Sync),
}

/// What a merge is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking at all values, as some methods ask for.
    Surveying,
    /// Merging and writing.
    Merging,
    /// Writing the method's state for the next merge.
    Keeping,
}

/// A merge that is done: the record in its folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FolderReport {
    /// The software that merged.
    pub tapestry: &'static str,
    /// The method with its parameters.
    pub method: Method,
    /// What the contributions were trained from.
    pub base: Option<PathBuf>,
    /// The contributions in the order of arithmetic.
    pub contributions: Vec<ContributionReport>,
    /// The merged weights.
    pub weights: FileReport,
    /// The method's state for the next merge.
    pub states: Vec<FileReport>,
}

/// How one contribution went in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContributionReport {
    /// Its name.
    pub name: String,
    /// Where it was.
    pub path: PathBuf,
    /// The share that it had; all shares sum to one.
    pub share: f64,
}

/// What a merge would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The contributions in the order of arithmetic.
    pub contributions: Vec<ContributionReport>,
    /// Tensors of the model.
    pub num_tensors: usize,
    /// Elements of the model.
    pub num_elements: u64,
    /// Bytes of all inputs.
    pub input_bytes: u64,
    /// Bytes of all results.
    pub output_bytes: u64,
    /// Bytes of memory, at most: they depend on threads and contributions, not on the model.
    pub memory_bytes: u64,
    /// Threads that work.
    pub num_threads: usize,
    /// How long it takes, judged by merging a sample.
    pub estimate: Duration,
}

/// The models that a recipe names, open and known to belong together.
struct Models {
    base: Option<SafetensorsModel>,
    contributions: Vec<SafetensorsModel>,
    states: Vec<SafetensorsModel>,
}

impl Models {
    fn open(recipe: &Recipe) -> Result<Self, EngineError> {
        let base = recipe.base.as_deref().map(SafetensorsModel::open_with_others).transpose()?;
        let contributions: Vec<_> = recipe
            .contributions
            .iter()
            .map(|c| SafetensorsModel::open_with_others(&c.path))
            .collect::<Result<_, _>>()?;
        let num_states = recipe.method.demands().num_states;
        let state =
            |previous: &PathBuf, index: usize| SafetensorsModel::open(&previous.join(STATE).join(state_name(index)));
        let states = match &recipe.previous {
            Some(previous) => (0..num_states).map(|index| state(previous, index)).collect::<Result<_, _>>()?,
            None => vec![],
        };
        Ok(Self { base, contributions, states })
    }

    fn all(&self) -> impl Iterator<Item = &SafetensorsModel> {
        self.base.iter().chain(&self.contributions).chain(&self.states)
    }

    /// Bytes of base and contributions, which a survey reads.
    fn input_bytes(&self) -> u64 {
        let models = self.base.iter().chain(&self.contributions);
        models.flat_map(TensorSource::tensors).filter_map(tapestry_core::TensorSpec::size_bytes).sum()
    }

    fn request<'a>(&'a self, recipe: &'a Recipe) -> Request<'a> {
        let input = |(c, source): (&crate::RecipeContribution, &'a SafetensorsModel)| Input {
            name: c.name.clone(),
            weight: c.weight,
            source,
        };
        Request {
            method: &recipe.method,
            base: self.base.as_ref().map(|base| base as &dyn TensorSource),
            inputs: recipe.contributions.iter().zip(&self.contributions).map(input).collect(),
            states: self.states.iter().map(|state| state as &dyn TensorSource).collect(),
            dtype: recipe.dtype,
        }
    }

    /// What a result follows from. Changed files are noticed by size and time.
    fn identity(&self, recipe: &Recipe) -> Digest {
        let names: Vec<_> = recipe.contributions.iter().map(|c| (&c.name, c.weight.to_bits().to_string())).collect();
        let facts: Vec<_> = self.all().map(SafetensorsModel::header_digest).collect();
        let files: Vec<_> = self.all().flat_map(SafetensorsModel::file_facts).collect();
        let method = serde_json::to_string(&recipe.method).expect("a method is plain data");
        let all = (env!("CARGO_PKG_VERSION"), method, names, recipe.dtype, facts, files);
        Digest::of(&serde_json::to_vec(&all).expect("plain data"))
    }
}

fn state_name(index: usize) -> String {
    format!("state-{index}.safetensors")
}

/// Checks that no contribution is farther from the base than a model that was trained from it can be.
fn check_descent(recipe: &Recipe, models: &Models) -> Result<(), EngineError> {
    let Some(base) = &models.base else { return Ok(()) };
    for (contribution, model) in recipe.contributions.iter().zip(&models.contributions) {
        let (mut change, mut length) = (0.0, 0.0);
        let mut rows = Rows::default();
        for (tensor, spec) in TensorSource::tensors(base).iter().enumerate() {
            let num = usize::try_from(spec.num_elements().unwrap_or(0).min(DESCENT_SAMPLE)).expect("a sample");
            if TensorSource::tensors(model)
                .get(tensor)
                .is_none_or(|other| other.name != spec.name || other.shape != spec.shape)
            {
                // The full comparison of tensors says this better.
                return Ok(());
            }
            rows.read(Some(base), &[model], tensor, 0, num)?;
            for (a, b) in rows.base.iter().zip(&rows.inputs[0]) {
                change += f64::from(b - a).powi(2);
                length += f64::from(*a).powi(2);
            }
        }
        let (found, limit) = ((change / length).sqrt(), recipe.max_relative_change);
        if length > 0.0 && found > limit {
            return Err(EngineError::NotFromBase { name: contribution.name.clone(), found, limit });
        }
    }
    Ok(())
}

fn contribution_reports(recipe: &Recipe, merge: &Merge<'_>) -> Vec<ContributionReport> {
    let pairs = recipe.contributions.iter().zip(merge.contributors());
    pairs
        .map(|(c, contributor)| ContributionReport {
            name: c.name.clone(),
            path: c.path.clone(),
            share: contributor.share,
        })
        .collect()
}

/// Everything that is checked before a byte is written.
fn open_checked(recipe: &Recipe) -> Result<Models, EngineError> {
    if fs::symlink_metadata(&recipe.output).is_ok() {
        return Err(EngineError::OutputExists { path: recipe.output.clone() });
    }
    let models = Models::open(recipe)?;
    let folders: Vec<&Path> =
        recipe.base.iter().chain(recipe.contributions.iter().map(|c| &c.path)).map(PathBuf::as_path).collect();
    check_companions(&folders)?;
    check_descent(recipe, &models)?;
    Ok(models)
}

/// Merges the models that `recipe` names into the folder that it names. The folder appears when everything in it is durable.
///
/// # Errors
/// [`EngineError`]. After [`EngineError::Stopped`] the folder's `.partial` twin is kept and continued by the next run; after any
/// other error nothing is left.
pub fn merge_folders(recipe: &Recipe, running: &Running<'_>) -> Result<FolderReport, EngineError> {
    let models = open_checked(recipe)?;
    let partial = with_suffix(&recipe.output, ".partial");
    fs::create_dir_all(&partial).map_err(EngineError::io("create", &partial))?;
    let lock = lock(&partial)?;
    let result = merge_into(recipe, &models, &partial, running);
    if !matches!(result, Ok(_) | Err(EngineError::Stopped { .. })) {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&partial);
    }
    drop(lock);
    result
}

fn merge_into(
    recipe: &Recipe,
    models: &Models,
    partial: &Path,
    running: &Running<'_>,
) -> Result<FolderReport, EngineError> {
    let identity = models.identity(recipe);
    let total = models.input_bytes();
    let looked_at = |done| (running.progress)(Stage::Surveying, Progress { done, total });
    let merge = Merge::prepare(models.request(recipe), running.stop, &looked_at)?;
    let write = |output, path: &Path, stage: Stage| {
        let progress = |progress| (running.progress)(stage, progress);
        let (stop, sync_every) = (running.stop, running.sync_every);
        write_file(&merge, output, &Writing { path, identity, stop, sync_every, progress: &progress })
    };
    let weights = write(Output::Model, &partial.join(WEIGHTS), Stage::Merging)?;
    let mut states = vec![];
    if merge.num_states() > 0 {
        let folder = partial.join(STATE);
        fs::create_dir_all(&folder).map_err(EngineError::io("create", &folder))?;
        for index in 0..merge.num_states() {
            states.push(write(Output::State(index), &folder.join(state_name(index)), Stage::Keeping)?);
        }
    }
    for model in models.all() {
        model.check_unchanged()?;
    }
    let companions = recipe.base.as_deref().unwrap_or(&recipe.contributions[0].path);
    copy_companions(companions, partial, recipe.dtype)?;
    let contributions = contribution_reports(recipe, &merge);
    let (method, base) = (recipe.method.clone(), recipe.base.clone());
    let report = FolderReport { tapestry: env!("CARGO_PKG_VERSION"), method, base, contributions, weights, states };
    let record = serde_json::to_vec_pretty(&report).expect("a report is plain data");
    replace_file(&partial.join(RECORD), &record)?;
    publish(partial, &recipe.output)?;
    Ok(report)
}

/// Gives a complete folder its name.
fn publish(partial: &Path, output: &Path) -> Result<(), EngineError> {
    remove_working_files(partial)?;
    sync_folder(partial)?;
    fs::rename(partial, output).map_err(EngineError::io("rename to", output))?;
    sync_folder(output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Journals, and the lock.
fn remove_working_files(folder: &Path) -> Result<(), EngineError> {
    for entry in fs::read_dir(folder).map_err(EngineError::io("read", folder))? {
        let path = entry.map_err(EngineError::io("read", folder))?.path();
        if path.is_dir() {
            remove_working_files(&path)?;
            sync_folder(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "journal" || extension == "lock") {
            fs::remove_file(&path).map_err(EngineError::io("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<(), EngineError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(EngineError::io("sync", folder))
}

/// Keeps a second run out of the same folder.
fn lock(partial: &Path) -> Result<File, EngineError> {
    let path = partial.join("merge.lock");
    let file = File::create(&path).map_err(EngineError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let source = io::Error::new(io::ErrorKind::WouldBlock, "another merge is writing there");
            Err(EngineError::Io { action: "use", path: partial.to_path_buf(), source })
        }
        Err(TryLockError::Error(source)) => Err(EngineError::Io { action: "lock", path, source }),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// What [`merge_folders`] would do, with all checks made and nothing left behind.
///
/// # Errors
/// [`EngineError`]: what would stop the merge, but for faults in values that the sample does not hold.
pub fn plan(recipe: &Recipe) -> Result<Plan, EngineError> {
    let models = open_checked(recipe)?;
    let stop = AtomicBool::new(false);
    let request = models.request(recipe);
    let tensors = TensorSource::tensors(&models.contributions[0]);
    let most = Sample::max_elements(tensors, TIMING_SAMPLE_BYTES);
    let base = models.base.as_ref().map(|base| Sample::new(base, most));
    let inputs: Vec<_> = models.contributions.iter().map(|model| Sample::new(model, most)).collect();
    let states: Vec<_> = models.states.iter().map(|model| Sample::new(model, most)).collect();
    let sampled = Request {
        method: request.method,
        base: base.as_ref().map(|base| base as &dyn TensorSource),
        inputs: request
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(input, source)| Input { name: input.name.clone(), weight: input.weight, source })
            .collect(),
        states: states.iter().map(|state| state as &dyn TensorSource).collect(),
        dtype: request.dtype,
    };
    let started = Instant::now();
    let merge = Merge::prepare(sampled, &stop, &|_| {})?;
    let scratch_file = with_suffix(&recipe.output, ".dry-run");
    let writing = Writing {
        path: &scratch_file,
        identity: Digest::of(b"dry run"),
        stop: &stop,
        sync_every: u64::MAX,
        progress: &|_| {},
    };
    let written = write_file(&merge, Output::Model, &writing);
    let _ = fs::remove_file(&scratch_file);
    let _ = fs::remove_file(scratch_file.with_extension("journal"));
    let written = written?;
    let elapsed = started.elapsed();

    let size = |dtype: Option<Dtype>| -> u64 {
        tensors.iter().map(|t| t.num_elements().unwrap_or(0) * dtype.unwrap_or(t.dtype).size_bytes()).sum()
    };
    let num_states = merge.num_states() as u64;
    let output_bytes = size(recipe.dtype) + num_states * size(Some(Dtype::F32));
    let num_models = recipe.contributions.len() + usize::from(recipe.base.is_some());
    let num_threads = rayon::current_num_threads();
    Ok(Plan {
        contributions: contribution_reports(recipe, &merge),
        num_tensors: tensors.len(),
        num_elements: tensors.iter().filter_map(tapestry_core::TensorSpec::num_elements).sum(),
        input_bytes: size(None) * num_models as u64
            + num_states * size(Some(Dtype::F32)) * u64::from(!states.is_empty()),
        output_bytes,
        memory_bytes: merge.memory_bytes(num_threads),
        num_threads,
        estimate: elapsed.mul_f64(output_bytes as f64 / written.size_bytes.max(1) as f64),
    })
}
