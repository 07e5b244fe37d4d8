// SPDX-License-Identifier: Apache-2.0
// What a merge changes, counted as it is stored.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <modicum/tensor/dtype.hpp>
#include <modicum/tune/merge.hpp>

namespace modicum::tune {

/// "q_proj", …, "embedding", "head" or "others".
std::string kind_of(const std::string& tensor);

/// Rounds values [count] of `tensor` to `dtype` at `to` and tells how they differ from `before`. Throws
/// `FormatError` for a value that is not finite in that type.
MergedKind store_values(const float* values, const float* before, std::size_t count, DType dtype,
                        std::byte* to, const std::string& tensor);

/// Sums by kind, in the order in which kinds first come.
class Tally {
 public:
  void add(const std::string& tensor, const MergedKind& sums);
  const std::vector<MergedKind>& kinds() const noexcept { return kinds_; }

  std::string to_text() const;
  /// Of `to_text`'s text, or empty.
  static Tally from_text(const std::string& text);

 private:
  std::vector<MergedKind> kinds_;
};

}  // namespace modicum::tune
