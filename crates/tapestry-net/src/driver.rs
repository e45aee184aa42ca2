//! The task that moves a connection's bytes.

use tokio::task::{AbortHandle, JoinHandle};

/// Ends the task when it is dropped, so that nothing goes on that nobody waits for.
pub(crate) struct Driver(AbortHandle);

impl Driver {
    pub(crate) fn of<T>(task: &JoinHandle<T>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
