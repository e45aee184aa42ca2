//! Canonical JSON (RFC 8785): one value, one sequence of bytes, so that a signature or digest means the same everywhere.

mod numbers;

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
/// Where the value holds a number that JSON cannot carry (NaN, infinity, an integer beyond 2^53 - 1) or a map key that is
/// not a string.
pub fn to_canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    numbers::check(value).map_err(|e| CanonicalError { reason: e.to_string() })?;
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
    fn not_a_number_is_refused_at_any_depth() {
        #[derive(Serialize)]
        #[serde(tag = "type")]
        enum Nested {
            Struct { value: Option<f64> },
        }
        assert!(to_canonical_json(&f64::NAN).is_err());
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(to_canonical_json(&Nested::Struct { value: Some(value) }).is_err());
            assert!(to_canonical_json(&[(1, value)]).is_err());
            assert!(to_canonical_json(&std::collections::BTreeMap::from([("a", vec![value])])).is_err());
        }
        assert!(to_canonical_json(&Nested::Struct { value: Some(1.0) }).is_ok());
        assert!(to_canonical_json(&Nested::Struct { value: None }).is_ok());
    }

    #[test]
    fn an_integer_that_a_double_would_round_is_refused() {
        assert!(to_canonical_json(&((1_u64 << 53) - 1)).is_ok());
        assert!(to_canonical_json(&(1_u64 << 53)).is_err());
        assert!(to_canonical_json(&[-(1_i64 << 53)]).is_err());
    }
}
