//! The layout of C2SP tlog-tiles: the files in which a log is served and exported, so that anybody's tools can check it.
//!
//! ```text
//! checkpoint             how far the log is, signed
//! tile/entries/N         entries N*256 to N*256+255, each after its length in two bytes
//! tile/0/N               the hashes of these leaves
//! tile/1/N ...           the roots of tiles of the level below
//! tile/.../N.p/W         the last of a level, where it is not full: W of 256
//! ```

use crate::tree::{Tree, TreeHash};

/// Entries of a bundle, and hashes of a tile.
pub const TILE_WIDTH: u64 = 256;
/// Each level of tiles stands for as many levels of the tree.
pub const TILE_HEIGHT: u32 = 8;
/// The longest entry, in bytes: its length has two bytes in a bundle.
pub const MAX_ENTRY_BYTES: usize = u16::MAX as usize;

/// Which file of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TileKind {
    /// The entries themselves.
    Entries,
    /// Hashes of a level, from 0.
    Hashes(u8),
}

/// A file of the layout: `width` entries or hashes, from number `index * 256` of its level on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    /// What is in it.
    pub kind: TileKind,
    /// Its number in its level.
    pub index: u64,
    /// How many entries or hashes, from 1 to [`TILE_WIDTH`].
    pub width: u64,
}

impl Tile {
    /// All files of a log of `size` entries, without the checkpoint.
    #[must_use]
    pub fn all(size: u64) -> Vec<Self> {
        let mut tiles = Self::of_level(TileKind::Entries, size);
        let (mut count, mut level) = (size, 0);
        while count > 0 {
            tiles.extend(Self::of_level(TileKind::Hashes(level), count));
            count /= TILE_WIDTH;
            level += 1;
        }
        tiles
    }

    fn of_level(kind: TileKind, count: u64) -> Vec<Self> {
        (0..count.div_ceil(TILE_WIDTH))
            .map(|index| Self { kind, index, width: (count - index * TILE_WIDTH).min(TILE_WIDTH) })
            .collect()
    }

    /// The numbers of its entries or hashes in their level.
    #[must_use]
    pub const fn range(&self) -> std::ops::Range<u64> {
        let start = self.index * TILE_WIDTH;
        start..start + self.width
    }

    /// Its path, such as `tile/0/x001/067.p/8`.
    #[must_use]
    pub fn path(&self) -> String {
        let level = match self.kind {
            TileKind::Entries => "entries".to_owned(),
            TileKind::Hashes(level) => level.to_string(),
        };
        let mut number = format!("{:03}", self.index % 1000);
        let mut rest = self.index / 1000;
        while rest > 0 {
            number = format!("x{:03}/{number}", rest % 1000);
            rest /= 1000;
        }
        let partial = if self.width == TILE_WIDTH { String::new() } else { format!(".p/{}", self.width) };
        format!("tile/{level}/{number}{partial}")
    }

    /// The tile that a path names; none where it names none.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        if path.len() > 100 {
            return None;
        }
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let kind = if level == "entries" { TileKind::Entries } else { TileKind::Hashes(level.parse().ok()?) };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse().ok().filter(|width| (1..TILE_WIDTH).contains(width))?),
            None => (rest, TILE_WIDTH),
        };
        let index = number.split('/').try_fold(0_u64, |index, part| {
            let part = part.strip_prefix('x').unwrap_or(part);
            index.checked_mul(1000)?.checked_add(part.parse::<u16>().ok().filter(|part| *part < 1000)?.into())
        })?;
        let tile = Self { kind, index, width };
        // One tile, one path; and nothing of it lies beyond what numbers can count.
        let is_countable = index.checked_mul(TILE_WIDTH)?.checked_add(TILE_WIDTH).is_some();
        (is_countable && tile.path() == path).then_some(tile)
    }

    /// The content of a tile of hashes; none where the tree has not so many, or it is a tile of entries.
    #[must_use]
    pub fn hashes(&self, tree: &Tree) -> Option<Vec<u8>> {
        let TileKind::Hashes(level) = self.kind else { return None };
        let range = self.range();
        let hashes = tree.level(usize::from(level) * TILE_HEIGHT as usize);
        let found = hashes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?;
        Some(found.iter().flat_map(TreeHash::as_bytes).copied().collect())
    }
}

/// The root of a full tile's hashes: a hash of the tile's level above.
#[must_use]
pub fn root_of(hashes: &[TreeHash]) -> TreeHash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| pair.get(1).map_or(pair[0], |right| TreeHash::of_node(&pair[0], right)))
            .collect();
    }
    level.first().copied().unwrap_or_else(TreeHash::of_nothing)
}

/// Puts entries into a bundle.
///
/// # Panics
/// Where one is longer than [`MAX_ENTRY_BYTES`]: no log takes it.
pub fn bundle<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = vec![];
    for entry in entries {
        let len = u16::try_from(entry.len()).expect("a log takes no longer entry");
        bytes.extend(len.to_be_bytes());
        bytes.extend(entry);
    }
    bytes
}

/// The `count` entries of a bundle; none where it holds anything else.
#[must_use]
pub fn unbundle(bytes: &[u8], count: u64) -> Option<Vec<&[u8]>> {
    let (mut rest, mut entries) = (bytes, vec![]);
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (entry, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        entries.push(entry);
        rest = after;
    }
    (rest.is_empty() && entries.len() as u64 == count).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification_and_read_back() {
        let tile = |index, width| Tile { kind: TileKind::Hashes(0), index, width };
        // The example of the specification: tile 1234067.
        assert_eq!(tile(1_234_067, 256).path(), "tile/0/x001/x234/067");
        assert_eq!(tile(1_234_067, 8).path(), "tile/0/x001/x234/067.p/8");
        assert_eq!(Tile { kind: TileKind::Entries, index: 0, width: 1 }.path(), "tile/entries/000.p/1");
        for size in [1, 255, 256, 257, 70_000] {
            for tile in Tile::all(size) {
                assert_eq!(Tile::parse(&tile.path()), Some(tile));
            }
        }
        for wrong in [
            "tile/0/1",
            "tile/0/x001",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/00/000",
            "tile/-1/000",
            "checkpoint",
        ] {
            assert_eq!(Tile::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_full_tile_is_a_hash_of_the_level_above() {
        let mut tree = Tree::default();
        tree.extend((0..600_u32).map(|n| TreeHash::of_leaf(&n.to_be_bytes())));
        assert_eq!(root_of(&tree.level(0)[..256]), tree.level(8)[0]);
        assert_eq!(Tile::all(600).len(), 3 + 3 + 1);
        let last = Tile { kind: TileKind::Hashes(1), index: 0, width: 2 };
        assert_eq!(last.hashes(&tree).map(|bytes| bytes.len()), Some(64));
        assert!(Tile { width: 3, ..last }.hashes(&tree).is_none());
    }

    #[test]
    fn bundles_read_back_and_hold_nothing_else() {
        let bytes = bundle([b"one".as_slice(), b"", b"three"]);
        assert_eq!(unbundle(&bytes, 3), Some(vec![b"one".as_slice(), b"", b"three"]));
        assert_eq!(unbundle(&bytes, 2), None);
        assert_eq!(unbundle(&bytes[..bytes.len() - 1], 3), None);
        assert_eq!(unbundle(&[bytes.as_slice(), &[0]].concat(), 3), None);
    }
}
