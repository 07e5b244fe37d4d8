// SPDX-License-Identifier: Apache-2.0
// A LAPACK opened at run time: one build serves machines with and without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace modicum::linalg {

/// The symbols that are used, as Fortran exports them. With `wide`, integers have 64 bits.
struct Lapack {
  bool wide = false;
  void* dgemm = nullptr;
  void* dtrsm = nullptr;
  void* dpotrf = nullptr;
  void* dpotri = nullptr;
  void* dsyevd = nullptr;
  void* dgesdd = nullptr;
  void* set_threads = nullptr;
  std::string name;
};

/// The one in use; null: none.
const Lapack* lapack();

/// `f(Fortran function pointer type's integer)`: calls `f` with a value of the integer type that `l` takes.
template <class F>
decltype(auto) with_integer(const Lapack& l, F&& f) {
  if (l.wide) return f(std::int64_t{});
  return f(std::int32_t{});
}

}  // namespace modicum::linalg
