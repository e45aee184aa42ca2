//! Where each tensor lies in the result.

use tapestry_core::{Dtype, TensorSpec};

/// Tensors one after the other, without gaps.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) tensors: Vec<TensorSpec>,
    /// Where each begins, and behind the last one the size of all.
    starts: Vec<u64>,
}

/// A run of bytes within one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) tensor: usize,
    /// Its first byte, from the start of the tensor.
    pub(crate) start: u64,
    pub(crate) len: usize,
}

impl Layout {
    /// The tensors of `like`, in the type `dtype` or in their own.
    pub(crate) fn new(like: &[TensorSpec], dtype: Option<Dtype>) -> Self {
        let convert = |spec: &TensorSpec| TensorSpec { dtype: dtype.unwrap_or(spec.dtype), ..spec.clone() };
        let tensors: Vec<_> = like.iter().map(convert).collect();
        let mut starts = vec![0];
        for spec in &tensors {
            let size = spec.size_bytes().expect("readers refuse shapes that overflow");
            starts.push(starts.last().copied().unwrap_or(0) + size);
        }
        Self { tensors, starts }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The parts of tensors that lie in `len` bytes from `start` on, in order.
    pub(crate) fn spans(&self, start: u64, len: usize) -> impl Iterator<Item = Span> {
        let end = start + len as u64;
        let first = self.starts.partition_point(|tensor_start| *tensor_start <= start) - 1;
        (first..self.tensors.len()).take_while(move |tensor| self.starts[*tensor] < end).filter_map(move |tensor| {
            let (from, to) = (self.starts[tensor].max(start), self.starts[tensor + 1].min(end));
            let len = usize::try_from(to - from).expect("within a buffer");
            (len > 0).then(|| Span { tensor, start: from - self.starts[tensor], len })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_every_byte_once_wherever_it_is_cut() {
        let spec = |name: &str, dtype, shape: &[u64]| TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
        let tensors = [
            spec("a", Dtype::BF16, &[3]),
            spec("b", Dtype::F32, &[0, 4]),
            spec("c", Dtype::F32, &[2, 5]),
            spec("d", Dtype::F16, &[1]),
        ];
        let layout = Layout::new(&tensors, None);
        assert_eq!(layout.size_bytes(), 6 + 40 + 2);
        let all: Vec<(usize, u64)> =
            layout.spans(0, 48).flat_map(|s| (s.start..s.start + s.len as u64).map(move |b| (s.tensor, b))).collect();
        for start in 0..48usize {
            for len in 1..=48 - start {
                let spans = layout.spans(start as u64, len);
                let bytes: Vec<_> =
                    spans.flat_map(|s| (s.start..s.start + s.len as u64).map(move |b| (s.tensor, b))).collect();
                assert_eq!(bytes, all[start..start + len], "{start}+{len}");
            }
        }
        assert_eq!(Layout::new(&tensors, Some(Dtype::F32)).size_bytes(), 12 + 40 + 4);
    }
}
