//! Reading numbers and texts from bytes that nobody vouches for.

use super::Value;

/// The longest text.
const MAX_TEXT_BYTES: u64 = 1 << 24;
/// The longest list.
const MAX_LIST: u64 = 1 << 22;

/// A position in bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) const fn position(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("it ends at byte {}, where {count} more bytes are due", self.bytes.len()))?;
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.bytes(N)?.try_into().expect("N bytes"))
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
        let at = self.at;
        let bytes = self.bytes(usize::try_from(length).map_err(|e| e.to_string())?)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    pub(super) fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        if kind == 9 {
            let kind = self.u32()?;
            if kind == 9 {
                return Err("lists of lists are not read".into());
            }
            let count = self.count("elements of a list", MAX_LIST)?;
            // An element takes a byte at least: a list that claims more than is there ends with an error, not in memory.
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
