// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <new>
#include <string>

#include <sys/mman.h>

#include <modicum/base/error.hpp>
#include <modicum/kv/arena.hpp>

namespace modicum {
namespace {

constexpr std::size_t kLeastRows = 128;
/// That of large pages, where the system has them.
constexpr std::size_t kLargePage = std::size_t{2} << 20;

/// Memory that the system hands out as it is written, in large pages where it offers them: keys are read in
/// strides, each of which would take an entry of its own among small pages' addresses.
std::shared_ptr<std::byte> allocate_pages(std::size_t bytes) {
  const std::size_t alignment = bytes >= kLargePage ? kLargePage : 64;
  auto* memory = static_cast<std::byte*>(::operator new(bytes, std::align_val_t(alignment), std::nothrow));
  if (memory == nullptr) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (bytes >= kLargePage) ::madvise(memory, bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return {memory, [alignment](std::byte* p) { ::operator delete(p, std::align_val_t(alignment)); }};
}

}  // namespace

KvArena::KvArena(KvShape shape, std::size_t max_bytes) : shape_(shape), max_bytes_(max_bytes) {}

void KvArena::add_block(std::size_t rows) {
  // A sixteenth more than there is: the number of blocks grows with the logarithm of the rows, and what large
  // pages make of a block that is hardly used stays small beside the others.
  const std::size_t asked = rows;
  rows = std::max({rows, kLeastRows, in_use_ / 16});
  if (max_bytes_ != 0)
    rows = std::max(asked, std::min(rows, (max_bytes_ - reserved_) / shape_.token_bytes()));
  const std::size_t bytes = rows * shape_.token_bytes();
  if (rows > std::numeric_limits<std::uint32_t>::max() ||
      (max_bytes_ != 0 && reserved_ + bytes > max_bytes_)) {
    fail<OutOfMemory>({.op = "kv.allocate",
                       .what = "keys and values of " + std::to_string(rows) + " more tokens",
                       .expected = "at most " + std::to_string(max_bytes_) + " bytes in all",
                       .got = std::to_string(reserved_ + bytes),
                       .todo = "drop branches or raise the bound"});
  }
  const std::shared_ptr<std::byte> memory = allocate_pages(bytes);
  if (memory == nullptr) {
    fail<OutOfMemory>({.op = "kv.allocate",
                       .what = "memory for keys and values",
                       .expected = std::to_string(bytes) + " bytes",
                       .got = "none",
                       .todo = "use a shorter context or fewer branches"});
  }
  auto segment = std::make_unique<KvSegment>();
  segment->k = memory.get();
  segment->v = memory.get() + rows * shape_.row_bytes();
  segment->layer_stride = 2 * rows * shape_.row_bytes();
  segment->rows = rows;
  segment->owner = memory;
  Block block{std::move(segment), {}, 0};
  block.free.emplace(0, static_cast<std::uint32_t>(rows));
  blocks_.push_back(std::move(block));
  reserved_ += bytes;
}

SlotRun KvArena::take(Block& block, std::map<std::uint32_t, std::uint32_t>::iterator at, std::size_t rows) {
  const auto [first, count] = *at;
  const auto taken = static_cast<std::uint32_t>(std::min<std::size_t>(rows, count));
  if (taken < count) block.free.emplace_hint(std::next(at), first + taken, count - taken);
  block.free.erase(first);
  block.used += taken;
  return {block.segment.get(), first, taken};
}

std::vector<SlotRun> KvArena::allocate(std::size_t rows) {
  if (rows == 0) return {};
  const auto fit = [&]() -> std::vector<SlotRun> {
    for (Block& block : blocks_) {
      for (auto at = block.free.begin(); at != block.free.end(); ++at) {
        if (at->second >= rows) return {take(block, at, rows)};
      }
    }
    return {};
  };
  std::vector<SlotRun> runs = fit();
  if (runs.empty()) {
    try {
      add_block(rows);
      runs = fit();
    } catch (const OutOfMemory&) {
      if (free_rows() < rows) throw;
      runs = gather(rows);
    }
  }
  in_use_ += rows;
  return runs;
}

std::size_t KvArena::free_rows() const {
  std::size_t rows = 0;
  for (const Block& block : blocks_) rows += block.segment->rows - block.used;
  return rows;
}

std::vector<SlotRun> KvArena::gather(std::size_t rows) {
  std::vector<SlotRun> runs;
  for (Block& block : blocks_) {
    while (rows > 0 && !block.free.empty()) {
      runs.push_back(take(block, block.free.begin(), rows));
      rows -= runs.back().count;
    }
  }
  return runs;
}

void KvArena::release(const SlotRun& run) noexcept {
  const auto block = std::find_if(blocks_.begin(), blocks_.end(),
                                  [&](const Block& b) { return b.segment.get() == run.segment; });
  if (block == blocks_.end() || run.count == 0) return;
  block->used -= run.count;
  in_use_ -= run.count;
  auto [at, inserted] = block->free.emplace(run.first, run.count);
  if (const auto next = std::next(at); next != block->free.end() && at->first + at->second == next->first) {
    at->second += next->second;
    block->free.erase(next);
  }
  if (at != block->free.begin()) {
    const auto before = std::prev(at);
    if (before->first + before->second == at->first) {
      before->second += at->second;
      block->free.erase(at);
    }
  }
  if (block->used == 0) {
    reserved_ -= block->segment->rows * shape_.token_bytes();
    blocks_.erase(block);
  }
}

}  // namespace modicum
