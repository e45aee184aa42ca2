//! The one place where the machine's clock is read.

use std::time::SystemTime;
use tapestry_core::Timestamp;

/// The time now.
pub(crate) fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}
