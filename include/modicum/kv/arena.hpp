// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <modicum/kv/storage.hpp>

namespace modicum {

/// A KvStorage in main memory: blocks of rows with a free list, first fit. Rows never move, so pointers into
/// it stay good until they are released. Not synchronised.
class KvArena {
 public:
  /// `max_bytes` bounds the blocks together; 0: unbounded.
  explicit KvArena(KvShape shape, std::size_t max_bytes = 0);

  /// Rows in one run or, where memory runs out, in the gaps that are left. Throws `OutOfMemory` and changes
  /// nothing where the bound or the system refuses.
  std::vector<SlotRun> allocate(std::size_t rows);
  void release(const SlotRun& run) noexcept;

  const KvShape& shape() const noexcept { return shape_; }
  std::size_t rows_in_use() const noexcept { return in_use_; }
  std::size_t bytes_reserved() const noexcept { return reserved_; }

 private:
  struct Block {
    std::unique_ptr<KvSegment> segment;
    std::map<std::uint32_t, std::uint32_t> free;  ///< first row → count
    std::size_t used = 0;
  };

  void add_block(std::size_t rows);
  std::size_t free_rows() const;
  std::vector<SlotRun> gather(std::size_t rows);
  static SlotRun take(Block& block, std::map<std::uint32_t, std::uint32_t>::iterator at, std::size_t rows);

  KvShape shape_;
  std::size_t max_bytes_;
  std::size_t in_use_ = 0;
  std::size_t reserved_ = 0;
  std::vector<Block> blocks_;
};

static_assert(KvStorage<KvArena>);

}  // namespace modicum
