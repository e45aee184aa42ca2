//! Matrix products, one single-threaded product for each thread's block of rows or columns.

use gemm::Parallelism;
use rayon::prelude::*;

/// Below this many multiplications a product is not worth a second thread.
const SMALL: usize = 1 << 17;
/// Rows or columns are dealt to threads in multiples of this, which suits the product's own blocking.
const LINES: usize = 48;

/// A matrix in a slice: `rows × cols`, element `(i, j)` at `i*row_stride + j*col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "a matrix of {rows} x {cols} in {} elements", data.len());
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) const fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Rows `first..first + count`.
    fn rows(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows: count, ..self }
    }

    /// Columns `first..first + count`.
    fn cols(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.col_stride..], cols: count, ..self }
    }

    /// One past the largest index of an element.
    const fn end(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `c = a b`, or `c += a b`; `c` is row-major without gaps. Uses all threads where that pays.
///
/// The longer side is dealt out: each thread packs what it reads of the operand on that side and all of the other operand,
/// which is the smaller one.
pub(crate) fn matmul(c: &mut [f32], a: View<'_>, b: View<'_>, add: bool) {
    let (m, n) = (a.rows, b.cols);
    let num_threads = rayon::current_num_threads();
    if num_threads == 1 || m * n * a.cols < SMALL || m.max(n) < 2 * LINES {
        return matmul_serial(c, a, b, add);
    }
    let block = m.max(n).div_ceil(num_threads).next_multiple_of(LINES);
    if m >= n {
        c[..m * n].par_chunks_mut(block * n).enumerate().for_each(|(index, c)| {
            matmul_serial(c, a.rows(index * block, c.len() / n), b, add);
        });
        return;
    }
    assert!(c.len() >= m * n, "the product lies inside its slice");
    let all = Columns { start: c.as_mut_ptr(), stride: n };
    (0..n.div_ceil(block)).into_par_iter().with_max_len(1).for_each(|index| {
        let first = index * block;
        let b = b.cols(first, block.min(n - first));
        // SAFETY: columns `first..first + b.cols` of `m` rows lie inside `c`, which is borrowed mutably during this whole
        // call; each task has columns of its own.
        #[expect(unsafe_code, reason = "columns of one slice cannot be lent to threads as slices")]
        unsafe {
            multiply(all.from(first), n, a, b, add);
        }
    });
}

/// A row-major matrix whose columns are dealt to threads.
#[derive(Clone, Copy)]
struct Columns {
    start: *mut f32,
    stride: usize,
}

// SAFETY: `matmul`, the only user, gives each thread columns of its own.
#[expect(unsafe_code, reason = "threads write different columns")]
unsafe impl Send for Columns {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "threads write different columns")]
unsafe impl Sync for Columns {}

impl Columns {
    /// Where column `first` begins.
    fn from(&self, first: usize) -> *mut f32 {
        assert!(first < self.stride, "column {first} of {}", self.stride);
        self.start.wrapping_add(first)
    }
}

/// As [`matmul`], on this thread.
pub(crate) fn matmul_serial(c: &mut [f32], a: View<'_>, b: View<'_>, add: bool) {
    assert!(c.len() >= a.rows * b.cols, "the product lies inside its slice");
    // SAFETY: all of the product lies inside `c`, which is borrowed mutably.
    #[expect(unsafe_code, reason = "the interface of `gemm` takes pointers")]
    unsafe {
        multiply(c.as_mut_ptr(), b.cols, a, b, add);
    }
}

/// `c (+)= a b` on this thread, rows of `c` being `c_stride` apart.
///
/// # Safety
/// `c` is valid for reads and writes of `a.rows` rows of `b.cols` elements, `c_stride` apart, and nothing else touches them.
#[expect(unsafe_code, reason = "the interface of `gemm` takes pointers")]
unsafe fn multiply(c: *mut f32, c_stride: usize, a: View<'_>, b: View<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(k == b.rows, "inner dimensions {k} and {}", b.rows);
    assert!(a.data.len() >= a.end() && b.data.len() >= b.end(), "the operands lie inside their slices");
    let stride = |stride: usize| isize::try_from(stride).expect("a slice is not longer than isize::MAX");
    // SAFETY: the assertions hold every element of the operands inside its slice; the caller holds that for `c`, which
    // cannot overlap the operands because nothing else touches it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            stride(c_stride),
            add,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `y = x w^T`: x `[n, i]`, w `[o, i]`, y `[n, o]`.
pub(crate) fn linear(x: &[f32], w: &[f32], n: usize, i: usize, o: usize) -> Vec<f32> {
    let mut y = vec![0.0; n * o];
    matmul(&mut y, View::new(x, n, i), View::new(w, o, i).transposed(), false);
    y
}

/// `y += x w^T`.
pub(crate) fn linear_add(x: &[f32], w: &[f32], y: &mut [f32], n: usize, i: usize, o: usize) {
    matmul(y, View::new(x, n, i), View::new(w, o, i).transposed(), true);
}

/// Gradient of the input: `dx (+)= dy w`.
pub(crate) fn linear_dx(dy: &[f32], w: &[f32], dx: &mut [f32], n: usize, i: usize, o: usize, add: bool) {
    matmul(dx, View::new(dy, n, o), View::new(w, o, i), add);
}

/// Gradient of the matrix: `dy^T x`, `[o, i]`.
pub(crate) fn linear_dw(x: &[f32], dy: &[f32], n: usize, i: usize, o: usize) -> Vec<f32> {
    let mut dw = vec![0.0; o * i];
    matmul(&mut dw, View::new(dy, n, o).transposed(), View::new(x, n, i), false);
    dw
}

#[cfg(test)]
mod tests {
    use super::{View, matmul};

    fn numbers(count: usize) -> Vec<f32> {
        (0_u16..997).cycle().take(count).map(|i| f32::from(i * 37 % 101) / 50.0 - 1.0).collect()
    }

    /// Against sums in f64; each shape by rows, by columns and on one thread, from operands in each layout.
    #[test]
    fn products_are_right_however_they_are_dealt_out() {
        for (m, n, k) in [(1, 7, 3), (5, 1000, 70), (1000, 5, 70), (97, 193, 31), (193, 97, 31), (300, 300, 64)] {
            let (a, b, c) = (numbers(m * k), numbers(k * n), numbers(m * n));
            for layout in 0..4 {
                let (ta, tb) = (layout & 1 == 1, layout & 2 == 2);
                let left = if ta { View::new(&a, k, m).transposed() } else { View::new(&a, m, k) };
                let right = if tb { View::new(&b, n, k).transposed() } else { View::new(&b, k, n) };
                let at = |i: usize, l: usize| f64::from(if ta { a[l * m + i] } else { a[i * k + l] });
                let bt = |l: usize, j: usize| f64::from(if tb { b[j * k + l] } else { b[l * n + j] });
                for threads in 1..=3 {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                    let (mut set, mut added) = (vec![f32::NAN; m * n], c.clone());
                    pool.install(|| {
                        matmul(&mut set, left, right, false);
                        matmul(&mut added, left, right, true);
                    });
                    for index in 0..m * n {
                        let (i, j) = (index / n, index % n);
                        let expected: f64 = (0..k).map(|l| at(i, l) * bt(l, j)).sum();
                        let what = format!("{m} x {n} x {k}, layout {layout}, {threads} threads, ({i}, {j})");
                        assert!((f64::from(set[index]) - expected).abs() < 1e-4, "{what}: {} {expected}", set[index]);
                        let expected = expected + f64::from(c[index]);
                        assert!((f64::from(added[index]) - expected).abs() < 1e-4, "{what}, added: {}", added[index]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_same_product_has_the_same_bits_again() {
        let (m, n, k) = (256, 1536, 576);
        let (a, b) = (numbers(m * k), numbers(n * k));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let mut c = vec![0.0; m * n];
            pool.install(|| matmul(&mut c, View::new(&a, m, k), View::new(&b, n, k).transposed(), false));
            c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let once = run(2);
        for threads in [2, 2, 1, 3, 5] {
            assert!(run(threads) == once, "{threads} threads");
        }
    }
}
