//! Reading numbers and texts from bytes that nobody vouches for.

use super::Value;
use std::io::Read;

/// The longest text.
const MAX_TEXT_BYTES: u64 = 1 << 24;
/// The most elements of all lists together. Each takes more memory than bytes of the file; the lists of a tokenizer of
/// 250,000 tokens have a million.
const MAX_LISTED: u64 = 1 << 22;
/// The most bytes before the data; the tokenizer of 250,000 tokens takes 15 MiB of them.
const MAX_DESCRIPTION_BYTES: u64 = 128 << 20;

/// A position in a file of known size.
pub(super) struct Reader<R> {
    input: R,
    at: u64,
    size: u64,
    num_listed: u64,
}

impl<R: Read> Reader<R> {
    pub(super) const fn new(input: R, size: u64) -> Self {
        Self { input, at: 0, size, num_listed: 0 }
    }

    pub(super) const fn position(&self) -> u64 {
        self.at
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        self.input.read_exact(buffer).map_err(|e| format!("it cannot be read at byte {}: {e}", self.at))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// Checks that so many bytes follow, before anything is made to hold them.
    fn expect(&self, count: u64) -> Result<(), String> {
        if count > self.size - self.at {
            return Err(format!("it ends at byte {}, where {count} more bytes are due at byte {}", self.size, self.at));
        }
        if count > MAX_DESCRIPTION_BYTES - self.at {
            return Err(format!("its description is longer than {MAX_DESCRIPTION_BYTES} bytes"));
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.expect(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn count(&mut self, what: &str, limit: u64) -> Result<u64, String> {
        let count = self.u64()?;
        if count > limit { Err(format!("it claims {count} {what}; at most {limit} are read")) } else { Ok(count) }
    }

    pub(super) fn text(&mut self) -> Result<String, String> {
        let length = self.count("bytes of a text", MAX_TEXT_BYTES)?;
        self.expect(length)?;
        let at = self.at;
        let mut bytes = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    pub(super) fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        if kind == 9 {
            let kind = self.u32()?;
            if kind == 9 {
                return Err("lists of lists are not read".into());
            }
            let count = self.count("elements of lists", MAX_LISTED - self.num_listed)?;
            self.num_listed += count;
            // An element takes a byte at least.
            self.expect(count)?;
            return (0..count).map(|_| self.scalar(kind)).collect::<Result<_, _>>().map(Value::List);
        }
        self.scalar(kind)
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("{other} is no truth value")),
            },
            8 => Value::Text(self.text()?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("there is no metadata type {other}")),
        })
    }
}
