// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include <modicum/base/error.hpp>
#include <modicum/linalg/dense.hpp>

#include "lapack.hpp"

namespace modicum::linalg {
namespace {

/// Calls a Fortran routine: scalars by reference, then the length of each character argument.
template <class... Lengths, class... Args>
void call(void* routine, Args... args) {
  reinterpret_cast<void (*)(Args..., Lengths...)>(routine)(args..., Lengths{1}...);
}
using Length = std::size_t;

[[noreturn]] void fail_convergence(const char* what) {
  fail<Error>({.op = "linalg",
               .what = what,
               .expected = "a decomposition of a finite matrix",
               .got = "no convergence"});
}

}  // namespace

std::string backend() {
  if (const Lapack* l = lapack()) return l->name;
  return "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
         std::to_string(EIGEN_MINOR_VERSION);
}

void multiply(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, Matrix& c,
              double alpha, double beta) {
  const bool ta = transpose_a == Transpose::yes;
  const bool tb = transpose_b == Transpose::yes;
  const Eigen::Index rows = ta ? a.cols() : a.rows();
  const Eigen::Index inner = ta ? a.rows() : a.cols();
  const Eigen::Index cols = tb ? b.rows() : b.cols();
  if (beta == 0.0) c.resize(rows, cols);
  const bool fits = inner == (tb ? b.cols() : b.rows()) && c.rows() == rows && c.cols() == cols;
  if (!fits) {
    fail({.op = "linalg.multiply",
          .what = "shapes",
          .expected = std::to_string(rows) + " × " + std::to_string(inner) + " times as many rows",
          .got = std::to_string(tb ? b.cols() : b.rows())});
  }
  if (c.size() == 0) return;
  const Lapack* const l = lapack();
  if (l == nullptr) {
    if (beta == 0.0)
      c.setZero();
    else if (beta != 1.0)
      c *= beta;
    if (ta && tb)
      c.noalias() += alpha * a.transpose() * b.transpose();
    else if (ta)
      c.noalias() += alpha * a.transpose() * b;
    else if (tb)
      c.noalias() += alpha * a * b.transpose();
    else
      c.noalias() += alpha * a * b;
    return;
  }
  with_integer(*l, [&](auto integer) {
    using Int = decltype(integer);
    const Int m = static_cast<Int>(rows), n = static_cast<Int>(cols), k = static_cast<Int>(inner);
    const Int lda = std::max<Int>(1, static_cast<Int>(a.rows()));
    const Int ldb = std::max<Int>(1, static_cast<Int>(b.rows()));
    const Int ldc = m;
    call<Length, Length>(l->dgemm, ta ? "T" : "N", tb ? "T" : "N", &m, &n, &k, &alpha, a.data(), &lda,
                         b.data(), &ldb, &beta, c.data(), &ldc);
  });
}

bool cholesky(Matrix& a) {
  if (a.rows() == 0) return true;
  const Lapack* const l = lapack();
  if (l == nullptr) {
    Eigen::LLT<Eigen::Ref<Matrix>> llt(a);
    return llt.info() == Eigen::Success;
  }
  return with_integer(*l, [&](auto integer) {
    using Int = decltype(integer);
    const Int n = static_cast<Int>(a.rows());
    Int info = 0;
    call<Length>(l->dpotrf, "L", &n, a.data(), &n, &info);
    return info == 0;
  });
}

void solve_right(const Matrix& l, Matrix& x) {
  if (x.size() == 0) return;
  const Lapack* const library = lapack();
  if (library == nullptr) {
    // X (L Lᵀ)⁻¹ = ((L Lᵀ)⁻¹ Xᵀ)ᵀ: first X Lᵀ⁻¹, then that by L⁻¹ from the right.
    l.transpose().triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(x);
    l.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(x);
    return;
  }
  with_integer(*library, [&](auto integer) {
    using Int = decltype(integer);
    const Int m = static_cast<Int>(x.rows()), n = static_cast<Int>(x.cols());
    const double one = 1.0;
    for (const char* const transpose : {"T", "N"}) {
      call<Length, Length, Length, Length>(library->dtrsm, "R", "L", transpose, "N", &m, &n, &one, l.data(),
                                           &n, x.data(), &m);
    }
  });
}

void invert(Matrix& l) {
  const Lapack* const library = lapack();
  if (library == nullptr) {
    Matrix inverse = Matrix::Identity(l.rows(), l.cols());
    solve_right(l, inverse);
    l = std::move(inverse);
    return;
  }
  with_integer(*library, [&](auto integer) {
    using Int = decltype(integer);
    const Int n = static_cast<Int>(l.rows());
    Int info = 0;
    if (n > 0) call<Length>(library->dpotri, "L", &n, l.data(), &n, &info);
  });
  l.triangularView<Eigen::StrictlyUpper>() = l.transpose().triangularView<Eigen::StrictlyUpper>();
}

Eigensystem eigh(Matrix a) {
  const Lapack* const l = lapack();
  if (l == nullptr || a.rows() == 0) {
    Eigen::SelfAdjointEigenSolver<Matrix> solver(a);
    if (solver.info() != Eigen::Success) fail_convergence("eigenvalues");
    return {solver.eigenvalues(), solver.eigenvectors()};
  }
  Vector values(a.rows());
  with_integer(*l, [&](auto integer) {
    using Int = decltype(integer);
    const Int n = static_cast<Int>(a.rows());
    Int info = 0, size = -1, integer_size = -1, integer_work = 0;
    double work = 0;
    call<Length, Length>(l->dsyevd, "V", "L", &n, a.data(), &n, values.data(), &work, &size, &integer_work,
                         &integer_size, &info);
    size = static_cast<Int>(work);
    integer_size = integer_work;
    std::vector<double> room(static_cast<std::size_t>(size));
    std::vector<Int> integers(static_cast<std::size_t>(integer_size));
    call<Length, Length>(l->dsyevd, "V", "L", &n, a.data(), &n, values.data(), room.data(), &size,
                         integers.data(), &integer_size, &info);
    if (info != 0) fail_convergence("eigenvalues");
  });
  return {std::move(values), std::move(a)};
}

SingularValues svd(Matrix a) {
  const Lapack* const l = lapack();
  if (l == nullptr || a.size() == 0) {
    Eigen::BDCSVD<Matrix> solver(a, Eigen::ComputeThinU | Eigen::ComputeThinV);
    return {solver.matrixU(), solver.singularValues(), solver.matrixV().transpose()};
  }
  const Eigen::Index rank = std::min(a.rows(), a.cols());
  SingularValues out{Matrix(a.rows(), rank), Vector(rank), Matrix(rank, a.cols())};
  with_integer(*l, [&](auto integer) {
    using Int = decltype(integer);
    const Int m = static_cast<Int>(a.rows()), n = static_cast<Int>(a.cols()), r = static_cast<Int>(rank);
    Int info = 0, size = -1;
    std::vector<Int> integers(8 * static_cast<std::size_t>(rank));
    double work = 0;
    call<Length>(l->dgesdd, "S", &m, &n, a.data(), &m, out.values.data(), out.u.data(), &m, out.vt.data(), &r,
                 &work, &size, integers.data(), &info);
    size = static_cast<Int>(work);
    std::vector<double> room(static_cast<std::size_t>(size));
    call<Length>(l->dgesdd, "S", &m, &n, a.data(), &m, out.values.data(), out.u.data(), &m, out.vt.data(), &r,
                 room.data(), &size, integers.data(), &info);
    if (info != 0) fail_convergence("singular values");
  });
  return out;
}

}  // namespace modicum::linalg
