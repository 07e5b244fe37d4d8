// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/kv/tree.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr KvShape kShape{.layers = 2, .width = 1, .dtype = DType::f32};

/// What the tree should be: nodes that live as long as a handle below them does.
struct Model {
  std::shared_ptr<const Model> parent;
  std::vector<TokenId> tokens;
  std::vector<float> marks;  ///< what was written as each row's key
  std::size_t* rows = nullptr;

  Model(std::shared_ptr<const Model> p, std::vector<TokenId> t, std::size_t* counter)
      : parent(std::move(p)), tokens(std::move(t)), rows(counter) {
    *rows += tokens.size();
  }
  ~Model() { *rows -= tokens.size(); }
};

struct Handle {
  Branch branch;
  std::shared_ptr<const Model> model;
};

/// Keys of layer 1 along the path, as attention would read them.
std::vector<float> keys_of(const Branch& branch) {
  std::vector<float> keys;
  for (const ops::KeyTile* tile : branch.tiles()) {
    REQUIRE(tile->begin == keys.size());
    REQUIRE(tile->begin % ops::kKeyTile == 0);
    std::size_t count = 0;
    for (const ops::KeyRun& run : tile->runs) {
      for (std::size_t r = 0; r < run.count; ++r) {
        float key = 0;
        std::memcpy(&key, run.k + run.layer_stride + (run.first + r) * sizeof(float), sizeof key);
        keys.push_back(key);
      }
      count += run.count;
    }
    REQUIRE(count == tile->count);
  }
  return keys;
}

void write_marks(const Branch& branch, const std::vector<float>& marks) {
  for (std::size_t i = 0; i < marks.size(); ++i) {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const auto [k, v] = branch.write_row(layer, i);
      const float key = layer == 1 ? marks[i] : -1.0f;
      std::memcpy(k, &key, sizeof key);
      std::memcpy(v, &key, sizeof key);
    }
  }
}

void require_path(const Handle& handle) {
  std::vector<const Model*> path;
  for (const Model* m = handle.model.get(); m != nullptr; m = m->parent.get()) path.push_back(m);
  std::vector<TokenId> tokens;
  std::vector<float> marks;
  for (auto m = path.rbegin(); m != path.rend(); ++m) {
    tokens.insert(tokens.end(), (*m)->tokens.begin(), (*m)->tokens.end());
    marks.insert(marks.end(), (*m)->marks.begin(), (*m)->marks.end());
  }
  REQUIRE(handle.branch.size() == tokens.size());
  REQUIRE(handle.branch.tokens() == tokens);
  REQUIRE(keys_of(handle.branch) == marks);
}

}  // namespace

TEST_CASE(
    "whatever is grown, branched and dropped, the rows in use are those of live paths, which keep their "
    "keys") {
  for (const std::uint32_t seed : {1, 2, 3, 4}) {
    std::mt19937 random(seed);
    KvTree tree{KvArena(kShape)};
    std::size_t rows = 0;
    float mark = 0;
    std::vector<Handle> handles;
    for (int step = 0; step < 1500; ++step) {
      const std::size_t kind = random() % 10;
      if (handles.empty() || kind < 5) {
        const bool from_root = handles.empty() || random() % 8 == 0;
        const Handle parent = from_root ? Handle{tree.root(), nullptr} : handles[random() % handles.size()];
        std::vector<TokenId> tokens(1 + random() % (random() % 4 == 0 ? 150 : 5));
        for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 1000);
        auto model = std::make_shared<Model>(parent.model, tokens, &rows);
        for (std::size_t i = 0; i < tokens.size(); ++i) model->marks.push_back(++mark);
        Handle next{tree.grow(parent.branch, tokens), model};
        write_marks(next.branch, model->marks);
        handles.push_back(std::move(next));
      } else if (kind < 6) {
        handles.push_back(handles[random() % handles.size()]);
      } else {
        std::swap(handles[random() % handles.size()], handles.back());
        handles.pop_back();
      }
      REQUIRE(tree.rows_in_use() == rows);
      if (!handles.empty()) require_path(handles[random() % handles.size()]);
    }
    for (const Handle& handle : handles) require_path(handle);
    handles.clear();
    REQUIRE(tree.rows_in_use() == 0);
  }
}

TEST_CASE("a tree that its bound fills refuses to grow, stays as it was, and grows again after a drop") {
  KvTree tree{KvArena(kShape, 300 * kShape.token_bytes())};
  const std::vector<TokenId> tokens(250, 7);
  Branch first = tree.grow(tree.root(), tokens);
  REQUIRE_THROWS_AS(tree.grow(first, tokens), OutOfMemory);
  REQUIRE(tree.rows_in_use() == 250);
  REQUIRE(first.tokens() == tokens);
  first = Branch();
  REQUIRE(tree.rows_in_use() == 0);
  REQUIRE(tree.grow(tree.root(), tokens).size() == 250);
}

TEST_CASE("a path of a hundred thousand nodes is dropped without recursion, at once") {
  KvTree tree{KvArena(kShape)};
  Branch leaf = tree.root();
  for (int i = 0; i < 100000; ++i) {
    const TokenId token = i % 100;
    leaf = tree.grow(leaf, {&token, 1});
  }
  REQUIRE(tree.rows_in_use() == 100000);
  REQUIRE(leaf.size() == 100000);
  leaf = Branch();
  REQUIRE(tree.rows_in_use() == 0);
}

TEST_CASE("handles outlive the tree object that made them") {
  Branch leaf;
  {
    KvTree tree{KvArena(kShape)};
    const TokenId token = 3;
    leaf = tree.grow(tree.root(), {&token, 1});
    write_marks(leaf, {5.0f});
  }
  REQUIRE(keys_of(leaf) == std::vector<float>{5.0f});
}

TEST_CASE("handles may be copied and dropped on several threads while another grows") {
  KvTree tree{KvArena(kShape)};
  const std::vector<TokenId> tokens(10, 1);
  {
    const Branch trunk = tree.grow(tree.root(), tokens);
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2000; ++i) {
          const Branch copy = trunk;
          const Branch leaf = tree.grow(copy, tokens);
          const Branch again = leaf;
          if (again.size() != 20) std::abort();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    REQUIRE(tree.rows_in_use() == 10);
  }
  REQUIRE(tree.rows_in_use() == 0);
}

TEST_CASE("a mounted segment serves below any parent, counts its rotation from itself, and costs no rows") {
  KvTree tree{KvArena(kShape)};
  const std::vector<TokenId> tokens(100, 4), before(30, 2), after(3, 9);
  auto memory = std::make_shared<std::vector<float>>(4 * 100);
  for (std::size_t i = 0; i < 100; ++i) (*memory)[200 + i] = static_cast<float>(i);
  auto segment = std::make_shared<KvSegment>();
  segment->k = reinterpret_cast<std::byte*>(memory->data());
  segment->v = segment->k + 100 * sizeof(float);
  segment->layer_stride = 200 * sizeof(float);
  segment->rows = 100;
  segment->owner = memory;
  const std::weak_ptr<const std::vector<float>> watched = memory;
  memory.reset();

  const Branch parent = tree.grow(tree.root(), before);
  write_marks(parent, std::vector<float>(30, -3.0f));
  for (const Branch& at : {tree.root(), parent}) {
    const Branch mounted = tree.mount(at, tokens, segment, {1.0f, 2.0f});
    REQUIRE(mounted.size() == at.size() + 100);
    REQUIRE(mounted.hidden().size() == 2);
    REQUIRE(tree.rows_in_use() == 30);
    const Branch leaf = tree.grow(mounted, after);
    write_marks(leaf, {-5.0f, -5.0f, -5.0f});
    const auto keys = keys_of(leaf);
    for (std::size_t i = 0; i < 100; ++i) REQUIRE(keys[at.size() + i] == static_cast<float>(i));
    REQUIRE(keys.back() == -5.0f);
    std::size_t position = 0;
    for (const ops::KeyTile* tile : leaf.tiles()) {
      for (const ops::KeyRun& run : tile->runs) {
        const bool inside = position >= at.size() && position < at.size() + 100;
        REQUIRE(run.origin == (inside ? at.size() : 0));
        position += run.count;
      }
    }
  }
  {
    const Branch part = tree.mount(parent, before, segment, {}, 10);
    REQUIRE(part.size() == 60);
    REQUIRE(part.tiles().front()->runs.back().origin == 20);
    REQUIRE(keys_of(part).back() == 39.0f);
  }
  REQUIRE_THROWS_AS(tree.mount(parent, before, segment, {}, 71), InvalidArgument);
  REQUIRE_THROWS_AS(tree.mount(parent, before, segment, {}, 31), InvalidArgument);
  REQUIRE_THROWS_AS(tree.mount(parent, before, nullptr), InvalidArgument);
  Branch last = tree.mount(parent, tokens, segment);
  segment.reset();
  REQUIRE_FALSE(watched.expired());
  last = Branch();
  REQUIRE(watched.expired());
}

TEST_CASE("a branch of another tree is refused") {
  KvTree one{KvArena(kShape)}, other{KvArena(kShape)};
  const TokenId token = 1;
  const Branch leaf = one.grow(one.root(), {&token, 1});
  REQUIRE_THROWS_AS(other.grow(leaf, {&token, 1}), InvalidArgument);
  REQUIRE_FALSE(other.owns(leaf));
  REQUIRE(one.owns(leaf));
}
