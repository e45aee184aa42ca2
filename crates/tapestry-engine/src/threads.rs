//! The threads that merge.

use crate::EngineError;
use std::path::Path;

/// Runs `work` on a pool of threads of its own, and everything parallel in it.
///
/// Without a number there are two threads for each processor: while one waits for the disk, the other computes. The number never
/// changes a result.
///
/// # Errors
/// Where the system gives no threads.
pub fn on_threads<T: Send>(num_threads: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, EngineError> {
    let per_processor = || 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = num_threads.unwrap_or_else(per_processor).clamp(1, 1024);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).thread_name(|i| format!("merge-{i}")).build();
    let failed = |error: rayon::ThreadPoolBuildError| {
        EngineError::io("start", Path::new("the threads of the merge"))(std::io::Error::other(error))
    };
    Ok(pool.map_err(failed)?.install(work))
}
