//! Reading text columns of one table of an SQLite database: enough for a small file of known origin, without a database
//! engine.
//!
//! Tables with row ids in B-trees, records in UTF-8, overflow pages. Not read: indexes, tables without row ids, UTF-16, a
//! write-ahead log beside the file. Every offset is checked, and the number of pages visited is bounded by that of the
//! file, so that a malformed file ends in an error and not in a loop.
//!
//! # Source
//! "Database File Format" of the SQLite documentation, sections 1.3 (header), 1.6 (B-tree pages), 2.1 (records).

/// Why a database cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqliteError {
    /// It does not begin as SQLite 3 databases do, or is not in UTF-8.
    #[error("this is not an SQLite 3 database in UTF-8")]
    NotADatabase,
    /// A page or record is malformed.
    #[error("page {page} is malformed: {what}")]
    Malformed {
        /// The number of the page, from 1.
        page: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A table or column is not there.
    #[error("there is no {what} named {name:?}")]
    Missing {
        /// `table` or `column`.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

/// A value of a record, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Integer(i64),
    Text(String),
    Other,
}

/// The text columns `columns` of all rows of `table`, in the order of row ids. What is not text is empty.
pub(super) fn read_text_columns(file: &[u8], table: &str, columns: &[&str]) -> Result<Vec<Vec<String>>, SqliteError> {
    let database = Database::open(file)?;
    let schema = database.rows(1)?;
    let text = |value: Option<&Value>| match value {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    };
    // Rows of the schema table: type, name, table name, root page, SQL.
    let is_wanted = |row: &&Vec<Value>| text(row.first()) == "table" && text(row.get(1)) == table;
    let missing = |what, name: &str| SqliteError::Missing { what, name: name.to_owned() };
    let entry = schema.iter().find(is_wanted).ok_or_else(|| missing("table", table))?;
    let Some(Value::Integer(root)) = entry.get(3) else { return Err(missing("table", table)) };
    let root = usize::try_from(*root).map_err(|_| missing("table", table))?;
    let definition = text(entry.get(4));
    let names = column_names(&definition);
    let index = |name: &&str| names.iter().position(|n| n == name).ok_or_else(|| missing("column", name));
    let indices: Vec<usize> = columns.iter().map(index).collect::<Result<_, _>>()?;
    let rows = database.rows(root)?;
    Ok(rows.iter().map(|row| indices.iter().map(|i| text(row.get(*i))).collect()).collect())
}

/// The column names of a `CREATE TABLE` without commas inside column definitions.
fn column_names(sql: &str) -> Vec<&str> {
    let inside = sql.split_once('(').map_or("", |(_, rest)| rest);
    inside.split(',').filter_map(|definition| definition.split_whitespace().next()).collect()
}

struct Database<'a> {
    file: &'a [u8],
    page_bytes: usize,
    /// Bytes of a page that hold content.
    usable_bytes: usize,
}

impl<'a> Database<'a> {
    fn open(file: &'a [u8]) -> Result<Self, SqliteError> {
        let is_utf8 = file.get(56..60) == Some(&[0, 0, 0, 1]);
        if !file.starts_with(b"SQLite format 3\0") || file.len() < 100 || !is_utf8 {
            return Err(SqliteError::NotADatabase);
        }
        let page_bytes = match u16::from_be_bytes([file[16], file[17]]) {
            1 => 65536,
            size => usize::from(size),
        };
        let usable_bytes = page_bytes.checked_sub(usize::from(file[20])).filter(|usable| *usable >= 480);
        let usable_bytes = usable_bytes.filter(|_| page_bytes.is_power_of_two()).ok_or(SqliteError::NotADatabase)?;
        Ok(Self { file, page_bytes, usable_bytes })
    }

    fn page(&self, number: usize) -> Result<&'a [u8], SqliteError> {
        let start = number.checked_sub(1).and_then(|n| n.checked_mul(self.page_bytes));
        let page = start.and_then(|start| self.file.get(start..start.checked_add(self.page_bytes)?));
        page.ok_or(SqliteError::Malformed { page: number, what: "it lies outside the file" })
    }

    /// All records of the table whose B-tree has its root at page `root`.
    fn rows(&self, root: usize) -> Result<Vec<Vec<Value>>, SqliteError> {
        let mut rows = Vec::new();
        let mut pending = vec![root];
        let mut num_visited = 0;
        while let Some(number) = pending.pop() {
            num_visited += 1;
            let malformed = |what| SqliteError::Malformed { page: number, what };
            if num_visited > self.file.len() / self.page_bytes {
                return Err(malformed("the tree has a loop"));
            }
            let page = self.page(number)?;
            // The first page begins with the header of the file.
            let header = if number == 1 { 100 } else { 0 };
            let num_cells = usize::from(u16_at(page, header + 3).ok_or(malformed("its header is cut off"))?);
            let is_leaf = match page[header] {
                13 => true,
                5 => false,
                _ => return Err(malformed("it is no page of a table")),
            };
            let cells = header + if is_leaf { 8 } else { 12 };
            let mut children = Vec::new();
            for i in 0..num_cells {
                let offset = u16_at(page, cells + 2 * i).ok_or(malformed("its list of cells is cut off"))?;
                let cell = page.get(usize::from(offset)..).ok_or(malformed("a cell lies outside"))?;
                if is_leaf {
                    let record = self.payload(cell).ok_or(malformed("a record is cut off"))?;
                    rows.push(values(&record).ok_or(malformed("a record does not have the fields that it declares"))?);
                } else {
                    children.push(u32_at(cell, 0).ok_or(malformed("a cell is cut off"))?);
                }
            }
            if !is_leaf {
                children.push(u32_at(page, header + 8).ok_or(malformed("its header is cut off"))?);
            }
            pending.extend(children.into_iter().rev());
        }
        Ok(rows)
    }

    /// The record of a leaf cell, put together from the cell and its overflow pages.
    fn payload(&self, cell: &[u8]) -> Option<Vec<u8>> {
        let (size, at_id) = varint(cell)?;
        let (_, len_id) = varint(cell.get(at_id..)?)?;
        let content = cell.get(at_id + len_id..)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.file.len())?;
        let largest = self.usable_bytes - 35;
        if size <= largest {
            return content.get(..size).map(<[u8]>::to_vec);
        }
        let smallest = (self.usable_bytes - 12) * 32 / 255 - 23;
        let local = smallest + (size - smallest) % (self.usable_bytes - 4);
        let local = if local <= largest { local } else { smallest };
        let mut record = content.get(..local)?.to_vec();
        let mut next = u32_at(content, local)?;
        // Each page adds something, and `size` is at most the file's, so this ends.
        while record.len() < size {
            let page = self.page(next).ok()?;
            let part = (size - record.len()).min(self.usable_bytes - 4);
            record.extend(page.get(4..4 + part)?);
            next = u32_at(page, 0)?;
        }
        Some(record)
    }
}

/// The fields of a record.
fn values(record: &[u8]) -> Option<Vec<Value>> {
    let (header_bytes, mut at) = varint(record)?;
    let header_bytes = usize::try_from(header_bytes).ok()?;
    let mut body = record.get(header_bytes..)?;
    let mut values = Vec::new();
    while at < header_bytes {
        let (kind, len) = varint(record.get(at..header_bytes)?)?;
        at += len;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((kind - 12) / 2).ok()?,
        };
        let (field, rest) = body.split_at_checked(size)?;
        body = rest;
        values.push(match kind {
            1..=6 => Value::Integer(
                field.iter().fold(if field[0] >= 0x80 { -1 } else { 0 }, |n: i64, b| (n << 8) | i64::from(*b)),
            ),
            8 | 9 => Value::Integer(i64::from(kind == 9)),
            _ if kind >= 13 && kind % 2 == 1 => Value::Text(String::from_utf8(field.to_vec()).ok()?),
            _ => Value::Other,
        });
    }
    Some(values)
}

/// A big-endian integer of seven bits per byte, at most nine bytes, and its length.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for i in 0..9 {
        let byte = u64::from(*bytes.get(i)?);
        if i == 8 {
            return Some((value << 8 | byte, 9));
        }
        value = value << 7 | byte & 0x7f;
        if byte < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/data/make_small_db.py`: two tables in pages of 512 bytes, with several levels and overflow pages.
    const SMALL: &[u8] = include_bytes!("../../tests/data/small.db");

    fn expected() -> Vec<Vec<String>> {
        let long = |i: usize| format!("row {i} {}", "é".repeat(i * 7 % 330));
        (1..=110).map(|i| vec![if i % 10 == 0 { String::new() } else { long(i) }, format!("b{i}")]).collect()
    }

    #[test]
    fn rows_come_in_order_with_long_texts_and_nulls() {
        assert_eq!(read_text_columns(SMALL, "texts", &["long", "short"]), Ok(expected()));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = read_text_columns(SMALL, "nothing", &["long"]).expect_err("no such table");
        assert_eq!(error, SqliteError::Missing { what: "table", name: "nothing".into() });
        assert!(matches!(read_text_columns(SMALL, "texts", &["x"]), Err(SqliteError::Missing { what: "column", .. })));
        assert_eq!(read_text_columns(b"not a database", "texts", &[]), Err(SqliteError::NotADatabase));
    }

    #[test]
    fn damage_ends_in_an_error_or_other_text_but_never_in_a_panic_or_a_loop() {
        for at in (0..SMALL.len()).step_by(13) {
            let mut damaged = SMALL.to_vec();
            damaged[at] ^= 0xff;
            let _ = read_text_columns(&damaged, "texts", &["long", "short"]);
            let _ = read_text_columns(&SMALL[..at], "texts", &["long", "short"]);
        }
        assert!(read_text_columns(&SMALL[..SMALL.len() / 2], "texts", &["long"]).is_err());
    }
}
