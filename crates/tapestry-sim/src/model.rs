//! Models of four numbers: just enough for screening, merging and gating to mean something.

use std::collections::BTreeMap;

use tapestry_core::{Digest, MemberName};
use tapestry_round::Screening;

use crate::random::Random;

/// A model, or a vector of weights: a list of numbers. A sound one has [`Vector::LEN`] of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vector(Vec<f64>);

/// A part of a model that travels and is stored as one: here, one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk(u64);

/// The chunks of a model, by their digests, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest(pub(crate) Vec<Digest>);

impl Chunk {
    pub(crate) fn digest(self) -> Digest {
        Digest::of(&self.0.to_le_bytes())
    }

    /// Other bytes of the same length.
    pub(crate) const fn spoiled(self) -> Self {
        Self(self.0 ^ 1)
    }
}

impl Manifest {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.0.iter().flat_map(|digest| *digest.as_bytes()).collect::<Vec<u8>>())
    }
}

/// What a malicious member does to its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    NotANumber,
    Huge,
    /// So large that its norm is infinite though every element is finite.
    Overflowing,
    WrongShape,
    /// Near the base, and worse.
    Worse,
}

impl Vector {
    const LEN: usize = 4;

    /// What a consortium adopts.
    pub(crate) fn adopted() -> Self {
        Self(vec![0.5, 0.51, 0.49, 0.52])
    }

    pub(crate) fn digest(&self) -> Digest {
        self.manifest().digest()
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = Chunk> {
        self.0.iter().map(|x| Chunk(x.to_bits()))
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest(self.chunks().map(Chunk::digest).collect())
    }

    pub(crate) fn from_chunks(chunks: impl Iterator<Item = Option<Chunk>>) -> Option<Self> {
        chunks.map(|chunk| chunk.map(|chunk| f64::from_bits(chunk.0))).collect::<Option<_>>().map(Self)
    }

    /// Bits per byte on the open held-out text: best where every element is 1.
    pub(crate) fn open_bpb(&self) -> f64 {
        1.0 + self.0.iter().map(|x| (x - 1.0).powi(2)).sum::<f64>()
    }

    /// Bits per byte on the open text of a member's community: best at the member's own optimum.
    pub(crate) fn community_bpb(&self, member: &MemberName) -> f64 {
        let number = member.as_str().trim_start_matches('m').parse().unwrap_or(0);
        2.0 + self.0.iter().map(|x| (x - own_optimum(number)).powi(2)).sum::<f64>()
    }

    /// One round of honest training: towards the member's own optimum, which lies near the common one.
    pub(crate) fn trained(&self, member: usize, random: &mut Random) -> Self {
        let own = own_optimum(member);
        Self(self.0.iter().map(|x| x + 0.1 * (own - x) + 0.02 * (random.unit() - 0.5)).collect())
    }

    pub(crate) fn poisoned(&self, poison: Poison, random: &mut Random) -> Self {
        let mut numbers = self.0.clone();
        let at = random.index(numbers.len());
        match poison {
            Poison::NotANumber => numbers[at] = f64::NAN,
            Poison::Huge => numbers.iter_mut().for_each(|x| *x *= 100.0),
            Poison::Overflowing => numbers.iter_mut().for_each(|x| *x = 1e200),
            Poison::WrongShape => numbers.truncate(Self::LEN - 1),
            // Above the quality floor at first, and below the gate.
            Poison::Worse => numbers.iter_mut().for_each(|x| *x -= 0.02 * (1.0 - *x).signum()),
        }
        Self(numbers)
    }

    /// What the coordinator's driver measures of a contribution.
    pub(crate) fn screening(&self, base: &Self, member: &MemberName) -> Screening {
        if self.0.len() != base.0.len() {
            return Screening::Malformed { what: format!("{} numbers, not {}", self.0.len(), base.0.len()) };
        }
        if let Some(index) = self.0.iter().position(|x| !x.is_finite()) {
            return Screening::NotFinite { tensor: "all".into(), index: index as u64 };
        }
        let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
        let change = norm(&mut self.0.iter().zip(&base.0).map(|(a, b)| a - b));
        let relative_change = change / norm(&mut base.0.iter().copied());
        let community_bpb = Some(self.community_bpb(member));
        Screening::Measured { relative_change, bpb: Some(self.open_bpb()), community_bpb }
    }

    /// The weighted sum, in the order given.
    pub(crate) fn merged(inputs: &[(Self, f64)]) -> Self {
        let mut sum = vec![0.0; Self::LEN];
        for (vector, weight) in inputs {
            sum.iter_mut().zip(&vector.0).for_each(|(sum, x)| *sum += weight * x);
        }
        Self(sum)
    }
}

/// Where a member's own texts pull.
#[expect(clippy::cast_precision_loss, reason = "a few members")]
fn own_optimum(member: usize) -> f64 {
    1.0 + 0.05 * (member as f64).sin()
}

/// Every model that was ever made, for the checks and for mirrors: no fault reaches it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blobs {
    models: BTreeMap<Digest, Vector>,
    chunks: BTreeMap<Digest, Chunk>,
}

impl Blobs {
    pub(crate) fn put(&mut self, vector: Vector) {
        self.chunks.extend(vector.chunks().map(|chunk| (chunk.digest(), chunk)));
        self.models.insert(vector.digest(), vector);
    }

    pub(crate) fn find(&self, digest: &Digest) -> Option<&Vector> {
        self.models.get(digest)
    }

    pub(crate) fn chunk(&self, digest: &Digest) -> Option<Chunk> {
        self.chunks.get(digest).copied()
    }
}
