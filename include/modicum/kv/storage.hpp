// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <modicum/ops/attention.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum {

/// What a model keeps of each token: `layers` times a key and a value row of `width` elements.
struct KvShape {
  std::size_t layers = 0;
  std::size_t width = 0;  ///< kv_heads · head_dim
  DType dtype = DType::f32;

  std::size_t row_bytes() const { return width * size_of(dtype); }
  /// Bytes of one token over all layers.
  std::size_t token_bytes() const { return 2 * layers * row_bytes(); }
  bool operator==(const KvShape&) const = default;
};

/// Rows of keys and values somewhere in memory: row r of layer l lies at k + l · layer_stride + r ·
/// row_bytes, likewise v. Read-only unless it belongs to a growing tail. Where `scales` is given, k and v are
/// codes of scales->bits bits instead of elements of the shape's dtype, and row_bytes is theirs.
struct KvSegment {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  std::size_t layer_stride = 0;  ///< bytes
  std::size_t rows = 0;
  std::size_t rotation = 0;  ///< the position that row 0 was rotated by, row r by rotation + r
  std::optional<ops::KvScales> scales = std::nullopt;
  std::shared_ptr<const void> owner;  ///< keeps the memory alive
};

/// Rows [first, first + count) of a segment that a storage handed out.
struct SlotRun {
  const KvSegment* segment = nullptr;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// Memory for the growing part of a tree: hands out rows, in as few runs as it can, and takes them back at
/// once.
template <class S>
concept KvStorage = requires(S storage, const S fixed, std::size_t rows, const SlotRun& run) {
  { storage.allocate(rows) } -> std::same_as<std::vector<SlotRun>>;
  storage.release(run);
  { fixed.shape() } -> std::convertible_to<KvShape>;
  { fixed.rows_in_use() } -> std::convertible_to<std::size_t>;
};

}  // namespace modicum
