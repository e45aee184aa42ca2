//! Matrix products, one single-threaded product for each thread's block of rows.

use gemm::Parallelism;
use rayon::prelude::*;

/// Below this many multiplications a product is not worth a second thread.
const SMALL: usize = 1 << 17;
/// Rows are dealt to threads in multiples of this, which suits the product's own blocking.
const ROWS: usize = 16;

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

    /// One past the largest index of an element.
    const fn end(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `c = a b`, or `c += a b`; `c` is row-major without gaps. Uses all threads where that pays.
pub(crate) fn matmul(c: &mut [f32], a: View<'_>, b: View<'_>, add: bool) {
    let (m, n) = (a.rows, b.cols);
    let num_threads = rayon::current_num_threads();
    if num_threads == 1 || m * n * a.cols < SMALL || m < 2 * ROWS {
        return matmul_serial(c, a, b, add);
    }
    let block = m.div_ceil(num_threads).next_multiple_of(ROWS);
    c[..m * n].par_chunks_mut(block * n).enumerate().for_each(|(index, c)| {
        matmul_serial(c, a.rows(index * block, c.len() / n), b, add);
    });
}

/// As [`matmul`], on this thread.
pub(crate) fn matmul_serial(c: &mut [f32], a: View<'_>, b: View<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(k == b.rows, "inner dimensions {k} and {}", b.rows);
    assert!(c.len() >= m * n && a.data.len() >= a.end() && b.data.len() >= b.end(), "the operands lie inside their slices");
    let stride = |stride: usize| isize::try_from(stride).expect("a slice is not longer than isize::MAX");
    // SAFETY: the assertions above hold every element that `gemm` reads or writes inside its slice; `c` is borrowed
    // mutably, so it does not overlap `a` or `b`.
    #[expect(unsafe_code, reason = "the interface of `gemm` takes pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride(n),
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
