// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include <Eigen/Core>

namespace modicum::linalg {

/// Solves run in f64, column-major. Products and decompositions go to LAPACK where one is found at run time
/// (OpenBLAS of the system, the file that MODICUM_LAPACK names, or one given to `open_lapack`), else to
/// Eigen, which is several times slower on large matrices. Which of them was used is part of a run's record,
/// as results agree between them to rounding only; for one of them, and one number of threads, they are
/// bit-identical from run to run.
using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

/// The library in use and its version: "OpenBLAS 0.3.21", "Eigen 3.4.0". MODICUM_LAPACK=eigen forces Eigen.
std::string backend();

/// Uses the LAPACK in the shared library `path` (LP64 or, with OpenBLAS's suffix 64_, ILP64 symbols; a prefix
/// "scipy_" is understood, so numpy's own OpenBLAS serves). Returns whether it holds all that is needed. Does
/// nothing where one is in use already.
bool open_lapack(const std::string& path);

/// Threads of LAPACK's products and decompositions, for the whole process; 0: every processor that it may
/// use.
void set_threads(std::size_t threads);

enum class Transpose { no, yes };

/// C = alpha · op(A) op(B) + beta · C. With beta 0, C takes the shape of the product; its content is not
/// read.
void multiply(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, Matrix& c,
              double alpha = 1.0, double beta = 0.0);

/// A ← L, lower triangular with A = L Lᵀ; only A's lower triangle is read, what is above the diagonal is
/// left. Returns false, with A spoilt, where A is not positive definite.
[[nodiscard]] bool cholesky(Matrix& a);

/// X ← X (L Lᵀ)⁻¹, of L from `cholesky`.
void solve_right(const Matrix& l, Matrix& x);

/// L ← (L Lᵀ)⁻¹, whole and symmetric, of L from `cholesky`.
void invert(Matrix& l);

/// A = V diag(values) Vᵀ of a symmetric A (its lower triangle is read); values ascend.
struct Eigensystem {
  Vector values;
  Matrix vectors;
};
/// Throws `Error` where the iteration does not converge, which finite input does not lead to.
Eigensystem eigh(Matrix a);

/// A = U diag(values) Vᵀ, thin; values descend.
struct SingularValues {
  Matrix u;
  Vector values;
  Matrix vt;
};
SingularValues svd(Matrix a);

}  // namespace modicum::linalg
