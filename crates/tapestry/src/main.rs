//! The `tapestry` binary.
fn main() {}
