//! Finds numbers that JSON cannot carry, before they are written as something else.
//!
//! `serde_json` writes NaN and infinity as `null`, also through the canonical form, and RFC 8785 writes every integer as a
//! double. A log entry or a signed document with such a number would be written and could never be read again, or would
//! read as another number under the same signature. So both are refused here: a walk over the value that writes nothing.

use serde::ser::{self, Serialize};
use std::fmt;

/// The largest integer that a double, and so canonical JSON, holds exactly together with all smaller ones.
const MAX_INTEGER: u128 = (1 << 53) - 1;

/// Refuses NaN, infinity and integers beyond 2^53 - 1 anywhere in `value`.
pub(super) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), NotJson> {
    value.serialize(Walk)
}

/// What is wrong with a value.
#[derive(Debug)]
pub(super) struct NotJson(String);

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotJson {}

impl ser::Error for NotJson {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Visits every number of a value.
#[derive(Clone, Copy)]
struct Walk;

fn check_float(value: f64) -> Result<(), NotJson> {
    if value.is_finite() { Ok(()) } else { Err(NotJson(format!("the number {value} is not finite"))) }
}

fn check_integer(magnitude: u128) -> Result<(), NotJson> {
    if magnitude <= MAX_INTEGER {
        return Ok(());
    }
    Err(NotJson(format!("the integer {magnitude} is larger than 2^53 - 1; write it as a text")))
}

macro_rules! nothing {
    ($($name:ident: $kind:ty),*) => { $(fn $name(self, _: $kind) -> Result<(), NotJson> { Ok(()) })* };
}

macro_rules! compound {
    ($($name:ident($($argument:ty),*)),*) => {
        $(fn $name(self, $(_: $argument),*) -> Result<Self, NotJson> { Ok(self) })*
    };
}

impl ser::Serializer for Walk {
    type Ok = ();
    type Error = NotJson;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing!(
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_u8: u8,
        serialize_u16: u16, serialize_u32: u32, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_unit_struct: &'static str
    );

    fn serialize_i64(self, value: i64) -> Result<(), NotJson> {
        check_integer(value.unsigned_abs().into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), NotJson> {
        check_integer(value.into())
    }

    fn serialize_i128(self, value: i128) -> Result<(), NotJson> {
        check_integer(value.unsigned_abs())
    }

    fn serialize_u128(self, value: u128) -> Result<(), NotJson> {
        check_integer(value)
    }

    fn serialize_f32(self, value: f32) -> Result<(), NotJson> {
        check_float(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), NotJson> {
        check_float(value)
    }

    fn serialize_none(self) -> Result<(), NotJson> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotJson> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), NotJson> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), NotJson> {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), NotJson> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotJson> {
        value.serialize(self)
    }

    compound!(
        serialize_seq(Option<usize>),
        serialize_tuple(usize),
        serialize_tuple_struct(&'static str, usize),
        serialize_tuple_variant(&'static str, u32, &'static str, usize),
        serialize_map(Option<usize>),
        serialize_struct(&'static str, usize),
        serialize_struct_variant(&'static str, u32, &'static str, usize)
    );
}

macro_rules! elements {
    ($($of:ident: $name:ident),*) => { $(
        impl ser::$of for Walk {
            type Ok = ();
            type Error = NotJson;

            fn $name<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotJson> {
                value.serialize(*self)
            }

            fn end(self) -> Result<(), NotJson> {
                Ok(())
            }
        }
    )* };
}

elements!(
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
);

macro_rules! fields {
    ($($of:ident),*) => { $(
        impl ser::$of for Walk {
            type Ok = ();
            type Error = NotJson;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), NotJson> {
                value.serialize(*self)
            }

            fn end(self) -> Result<(), NotJson> {
                Ok(())
            }
        }
    )* };
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Walk {
    type Ok = ();
    type Error = NotJson;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), NotJson> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotJson> {
        value.serialize(*self)
    }

    fn end(self) -> Result<(), NotJson> {
        Ok(())
    }
}
