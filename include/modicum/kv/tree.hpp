// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/kv/arena.hpp>
#include <modicum/kv/storage.hpp>
#include <modicum/ops/attention.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// What a model has read so far, as a prefix tree of keys and values over a storage.
///
/// A node is a run of consecutive tokens. A `Branch` is a counted handle on a node; when the last handle
/// below a node goes, its rows return to the storage at once. Nothing is ever copied in order to branch, and
/// going back is dropping a handle. Handles may be copied and dropped on any thread; a node's tokens never
/// change once it is there.
template <KvStorage Storage>
class Tree {
 public:
  class Branch;

  explicit Tree(Storage storage) : state_(std::make_shared<State>(std::move(storage))) {
    state_->root = new Node;
  }

  /// The handle on the empty path.
  Branch root() const { return Branch(state_, state_->root); }

  /// A new node below `parent` for `tokens`, whose rows are still to be written (`write_row`). Throws
  /// `OutOfMemory` and leaves the tree as it was.
  Branch grow(const Branch& parent, std::span<const TokenId> tokens) const {
    require_own(parent);
    auto node = std::make_unique<Node>();
    const std::lock_guard lock(state_->mutex);
    node->rows = state_->storage.allocate(tokens.size());
    try {
      std::vector<ops::KeyRun> runs;
      for (const SlotRun& run : node->rows) runs.push_back(key_run(*run.segment, run.first, run.count, 0));
      attach(*node, parent.node_, tokens, runs);
    } catch (...) {
      for (const SlotRun& run : node->rows) state_->storage.release(run);
      throw;
    }
    ++parent.node_->references;
    return Branch(state_, node.release());
  }

  /// A new node below `parent` whose keys and values are rows [first_row, first_row + tokens.size()) of
  /// memory that somebody else owns, read-only. The query is rotated by the difference between where the rows
  /// were rotated to and where they stand here, so the same segment serves below any parent that ends no
  /// earlier than `segment->rotation + first_row`. `hidden` is the model's output at the last of the tokens.
  Branch mount(const Branch& parent, std::span<const TokenId> tokens,
               std::shared_ptr<const KvSegment> segment, std::vector<float> hidden = {},
               std::size_t first_row = 0) const {
    require_own(parent);
    if (segment == nullptr || segment->rows < first_row + tokens.size()) {
      fail({.op = "tree.mount",
            .what = "segment",
            .expected = std::to_string(first_row + tokens.size()) + " rows",
            .got = std::to_string(segment == nullptr ? 0 : segment->rows)});
    }
    if (parent.node_->end < segment->rotation + first_row) {
      fail({.op = "tree.mount",
            .what = "parent",
            .expected = "at least the " + std::to_string(segment->rotation + first_row) +
                        " tokens that the segment's keys were rotated by",
            .got = std::to_string(parent.node_->end)});
    }
    auto node = std::make_unique<Node>();
    const std::lock_guard lock(state_->mutex);
    const auto count = static_cast<std::uint32_t>(tokens.size());
    const auto first = static_cast<std::uint32_t>(first_row);
    const std::vector<ops::KeyRun> runs{
        key_run(*segment, first, count, parent.node_->end - segment->rotation - first_row)};
    attach(*node, parent.node_, tokens, runs);
    node->mounted = std::move(segment);
    node->hidden = std::move(hidden);
    ++parent.node_->references;
    return Branch(state_, node.release());
  }

  const KvShape& shape() const { return state_->storage.shape(); }

  /// Rows of the storage that live nodes hold.
  std::size_t rows_in_use() const {
    const std::lock_guard lock(state_->mutex);
    return state_->storage.rows_in_use();
  }

  bool owns(const Branch& branch) const noexcept { return branch.state_ == state_; }

 private:
  struct Node {
    Node* parent = nullptr;
    std::size_t references = 0;  ///< handles and children
    std::size_t end = 0;         ///< tokens from the root to the end of this node
    std::vector<TokenId> tokens;
    std::vector<SlotRun> rows;  ///< of the storage, where the node owns its rows
    std::shared_ptr<const KvSegment> mounted;
    std::vector<float> hidden;
    std::vector<ops::KeyTile> complete;  ///< key tiles that are filled within this node, in order
    ops::KeyTile tail;                   ///< the tile after them, filled in part (count 0: not begun)
  };

  struct State {
    explicit State(Storage s) : storage(std::move(s)) {}
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() { delete root; }

    void acquire(Node* node) {
      const std::lock_guard lock(mutex);
      ++node->references;
    }

    /// Drops one reference and every node that is left without one; a loop, as paths can be long.
    void release(Node* node) {
      const std::lock_guard lock(mutex);
      while (node != root && --node->references == 0) {
        Node* const parent = node->parent;
        for (const SlotRun& run : node->rows) storage.release(run);
        delete node;
        node = parent;
      }
    }

    mutable std::mutex mutex;
    Storage storage;
    Node* root = nullptr;
  };

  static ops::KeyRun key_run(const KvSegment& segment, std::uint32_t first, std::uint32_t count,
                             std::size_t origin) {
    return {.k = segment.k,
            .v = segment.v,
            .layer_stride = segment.layer_stride,
            .origin = origin,
            .count = count,
            .first = first,
            .scales = segment.scales ? &*segment.scales : nullptr};
  }

  void require_own(const Branch& branch) const {
    if (!owns(branch)) {
      fail({.op = "tree",
            .what = "branch",
            .expected = "one of this tree",
            .got = "one of another tree",
            .todo = "extend it with the model that made it"});
    }
  }

  /// Fills the parts of `node` that describe it: position, tokens and key tiles, the first of which may begin
  /// in nodes above.
  static void attach(Node& node, Node* parent, std::span<const TokenId> tokens,
                     std::span<const ops::KeyRun> runs) {
    node.parent = parent;
    node.references = 1;
    node.end = parent->end + tokens.size();
    node.tokens.assign(tokens.begin(), tokens.end());
    ops::KeyTile tile = parent->tail;
    if (tile.count == 0) tile.begin = parent->end;
    for (ops::KeyRun run : runs) {
      while (run.count > 0) {
        const auto room = static_cast<std::uint32_t>(ops::kKeyTile) - tile.count;
        const std::uint32_t taken = std::min(room, run.count);
        append(tile, run, taken);
        run.first += taken;
        run.count -= taken;
        if (tile.count == ops::kKeyTile) {
          const std::size_t next = tile.begin + ops::kKeyTile;
          node.complete.push_back(std::exchange(tile, ops::KeyTile{.begin = next, .count = 0, .runs = {}}));
        }
      }
    }
    node.tail = std::move(tile);
  }

  /// The first `count` rows of `run`, joined to the tile's last run where they follow it in memory.
  static void append(ops::KeyTile& tile, const ops::KeyRun& run, std::uint32_t count) {
    tile.count += count;
    if (!tile.runs.empty()) {
      ops::KeyRun& last = tile.runs.back();
      if (last.k == run.k && last.origin == run.origin && last.first + last.count == run.first) {
        last.count += count;
        return;
      }
    }
    ops::KeyRun taken = run;
    taken.count = count;
    tile.runs.push_back(taken);
  }

  std::shared_ptr<State> state_;
};

/// A counted handle on a node: a prefix that has been read. A default-constructed one is on nothing.
template <KvStorage Storage>
class Tree<Storage>::Branch {
 public:
  Branch() = default;
  Branch(const Branch& other) : state_(other.state_), node_(other.node_) {
    if (node_ != nullptr) state_->acquire(node_);
  }
  Branch(Branch&& other) noexcept
      : state_(std::move(other.state_)), node_(std::exchange(other.node_, nullptr)) {}
  Branch& operator=(Branch other) noexcept {
    std::swap(state_, other.state_);
    std::swap(node_, other.node_);
    return *this;
  }
  ~Branch() {
    if (node_ != nullptr) state_->release(node_);
  }

  explicit operator bool() const noexcept { return node_ != nullptr; }
  bool operator==(const Branch& other) const noexcept { return node_ == other.node_; }

  /// Tokens from the root to here.
  std::size_t size() const noexcept { return node_->end; }
  /// Tokens of this node alone.
  std::size_t node_size() const noexcept { return node_->tokens.size(); }

  /// Those tokens; valid as long as this handle.
  std::span<const TokenId> node_tokens() const noexcept { return node_->tokens; }

  /// All tokens from the root to here.
  std::vector<TokenId> tokens() const {
    std::vector<TokenId> all(node_->end);
    for (const Node* node = node_; node != nullptr; node = node->parent) {
      std::copy(node->tokens.begin(), node->tokens.end(),
                all.begin() + static_cast<std::ptrdiff_t>(node->end - node->tokens.size()));
    }
    return all;
  }

  /// The model's output at the last token [hidden_size], before the head; empty at the root.
  std::span<const float> hidden() const noexcept { return node_->hidden; }
  void set_hidden(std::vector<float> hidden) const { node_->hidden = std::move(hidden); }

  /// Where layer `layer`'s key and value rows of token `i` of this node are to be written. The node must own
  /// its rows.
  std::pair<std::byte*, std::byte*> write_row(std::size_t layer, std::size_t i) const {
    for (const SlotRun& run : node_->rows) {
      if (i < run.count) {
        const std::size_t at =
            layer * run.segment->layer_stride + (run.first + i) * state_->storage.shape().row_bytes();
        return {run.segment->k + at, run.segment->v + at};
      }
      i -= run.count;
    }
    return {nullptr, nullptr};
  }

  /// The key tiles of the whole path, from position 0; valid as long as this handle.
  std::vector<const ops::KeyTile*> tiles() const {
    std::vector<const Node*> path;
    for (const Node* node = node_; node != nullptr; node = node->parent) path.push_back(node);
    std::vector<const ops::KeyTile*> all;
    all.reserve(node_->end / ops::kKeyTile + 1);
    for (auto node = path.rbegin(); node != path.rend(); ++node) {
      for (const ops::KeyTile& tile : (*node)->complete) all.push_back(&tile);
    }
    if (node_->tail.count > 0) all.push_back(&node_->tail);
    return all;
  }

 private:
  friend class Tree;
  Branch(std::shared_ptr<State> state, Node* node) : state_(std::move(state)), node_(node) {
    // A new node comes with its first reference; the root is never counted.
  }

  std::shared_ptr<State> state_;
  Node* node_ = nullptr;
};

using KvTree = Tree<KvArena>;
using Branch = KvTree::Branch;

}  // namespace modicum
