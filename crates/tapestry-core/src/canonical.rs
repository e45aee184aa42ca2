//! Canonical JSON (RFC 8785): one value, one sequence of bytes, so that a signature or digest means the same everywhere.

use serde::Serialize;

/// A value that has no canonical JSON form, for example a NaN or a map whose keys are not strings.
#[derive(Debug, thiserror::Error)]
#[error("this value has no canonical JSON form: {reason}")]
pub struct CanonicalError {
    reason: String,
}

/// The RFC 8785 form of `value`.
///
/// # Errors
/// Where the value holds a number that JSON cannot carry (NaN, infinity) or a map key that is not a string.
pub fn to_canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    serde_json_canonicalizer::to_vec(value).map_err(|e| CanonicalError { reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_white_space_is_gone() {
        let value: serde_json::Value = serde_json::from_str(r#"{ "b": 1.0, "a": [1e2, "é"] }"#).expect("valid JSON");
        assert_eq!(to_canonical_json(&value).expect("canonical"), r#"{"a":[100,"é"],"b":1}"#.as_bytes());
    }

    #[test]
    fn not_a_number_is_refused() {
        assert!(to_canonical_json(&f64::NAN).is_err());
    }
}
