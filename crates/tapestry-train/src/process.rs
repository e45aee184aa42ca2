//! What this process has used, where the system tells (Linux).

/// Processor time of this process so far, in seconds; zero where it is not known.
#[expect(clippy::cast_precision_loss, reason = "seconds")]
pub(crate) fn cpu_seconds() -> f64 {
    let ticks = || {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may itself hold spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    // Linux shows 100 ticks a second on every architecture.
    ticks().map_or(0.0, |ticks| ticks as f64 / 100.0)
}

/// The largest resident memory of this process so far, in bytes; zero where it is not known.
pub(crate) fn peak_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
