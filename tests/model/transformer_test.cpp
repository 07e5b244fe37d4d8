// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/model/transformer.hpp>
#include <modicum/ops/isa.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

/// Every switch at least once.
struct Variant {
  std::string config;
  std::string dtype;
};

std::vector<Variant> variants() {
  return {{tiny_config("llama", 2, R"(,"tie_word_embeddings":true)"), "F32"},
          {tiny_config("llama", 2, R"(,"attention_bias":true,"mlp_bias":true)"), "BF16"},
          {tiny_config("mistral", 2, R"(,"sliding_window":33)"), "BF16"},
          {tiny_config("qwen2", 3, R"(,"use_sliding_window":true,"sliding_window":40,"max_window_layers":1)"),
           "F16"},
          {tiny_config("qwen3", 2), "BF16"}};
}

Transformer transformer(const Checkpoint& checkpoint, std::size_t threads = 2) {
  return Transformer(checkpoint.config(), ModelWeights::load(checkpoint), threads);
}

std::vector<TokenId> random_tokens(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 97);
  return tokens;
}

Branch read(const Transformer& model, const KvTree& tree, const Branch& parent,
            std::span<const TokenId> tokens) {
  const Extension extension{parent, tokens};
  return model.extend(tree, {&extension, 1}).front();
}

std::vector<float> logits(const Transformer& model, const Branch& branch) {
  std::vector<float> out(model.config().vocab_size);
  model.logits({&branch, 1}, out);
  return out;
}

bool same(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// Hidden states of `tokens` read in one call on a fresh tree.
Matrix read_all(const Transformer& model, std::span<const TokenId> tokens) {
  const KvTree tree = model.tree();
  const Extension extension{tree.root(), tokens};
  Matrix hidden;
  model.extend(tree, {&extension, 1}, &hidden);
  return hidden;
}

}  // namespace

TEST_CASE("a text read in one call, in pieces, token by token or with others gives the same bits") {
  for (const Variant& variant : variants()) {
    const TemporaryDirectory directory;
    const Checkpoint checkpoint = random_checkpoint(directory.path(), variant.config, variant.dtype);
    const Transformer model = transformer(checkpoint);
    const auto tokens = random_tokens(150, 1);
    for (const ops::Isa isa : ops::supported_isas()) {
      ops::force_isa(isa);
      INFO(ops::name_of(isa) << " " << variant.config << " " << variant.dtype);
      const Matrix all = read_all(model, tokens);
      const KvTree tree = model.tree();
      std::mt19937 random(2);
      for (const std::size_t most : {1, 7, 40, 100}) {
        Branch leaf = tree.root();
        for (std::size_t at = 0; at < tokens.size();) {
          const std::size_t count = std::min<std::size_t>(1 + random() % most, tokens.size() - at);
          leaf = read(model, tree, leaf, std::span(tokens).subspan(at, count));
          at += count;
          REQUIRE(same(leaf.hidden(), all.row(at - 1)));
        }
        std::vector<float> from_row(97);
        model.logits_of(all.row(149).data(), 1, from_row.data());
        REQUIRE(same(logits(model, leaf), from_row));
      }
      // Many at once: branches of one trunk at several depths, and a text of its own.
      const Branch trunk = read(model, tree, tree.root(), std::span(tokens).first(70));
      const Branch deeper = read(model, tree, trunk, std::span(tokens).subspan(70, 9));
      const auto other = random_tokens(45, 3);
      const Extension together[] = {{trunk, std::span(tokens).subspan(70)},
                                    {tree.root(), other},
                                    {deeper, std::span(tokens).subspan(79, 1)},
                                    {tree.root(), tokens},
                                    {trunk, std::span(tokens).subspan(70, 30)}};
      const auto leaves = model.extend(tree, together);
      REQUIRE(same(leaves[0].hidden(), all.row(149)));
      REQUIRE(same(leaves[1].hidden(), read_all(model, other).row(44)));
      REQUIRE(same(leaves[2].hidden(), all.row(79)));
      REQUIRE(same(leaves[3].hidden(), all.row(149)));
      REQUIRE(same(leaves[4].hidden(), all.row(99)));
    }
  }
}

TEST_CASE("the number of threads changes no bit") {
  for (const Variant& variant : variants()) {
    const TemporaryDirectory directory;
    const Checkpoint checkpoint = random_checkpoint(directory.path(), variant.config, variant.dtype);
    const auto tokens = random_tokens(120, 4);
    for (const ops::Isa isa : ops::supported_isas()) {
      ops::force_isa(isa);
      const Matrix one = read_all(transformer(checkpoint, 1), tokens);
      for (const std::size_t threads : {2, 3}) {
        const Matrix more = read_all(transformer(checkpoint, threads), tokens);
        for (std::size_t t = 0; t < tokens.size(); ++t) REQUIRE(same(one.row(t), more.row(t)));
      }
    }
  }
}

TEST_CASE("a text longer than one chunk of rows gives the bits of its pieces") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(
      directory.path(),
      R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"vocab_size":97,"max_position_embeddings":2000})",
      "BF16");
  const Transformer model = transformer(checkpoint);
  const auto tokens = random_tokens(1300, 5);
  const Matrix all = read_all(model, tokens);
  const KvTree tree = model.tree();
  Branch leaf = tree.root();
  for (std::size_t at = 0; at < tokens.size(); at += 100) {
    leaf = read(model, tree, leaf, std::span(tokens).subspan(at, 100));
    REQUIRE(same(leaf.hidden(), all.row(at + 99)));
  }
}

TEST_CASE("instruction sets agree within what their dtype rounds") {
  for (const Variant& variant : variants()) {
    const TemporaryDirectory directory;
    const Checkpoint checkpoint = random_checkpoint(directory.path(), variant.config, variant.dtype);
    const Transformer model = transformer(checkpoint);
    const auto tokens = random_tokens(60, 6);
    ops::force_isa(ops::Isa::plain);
    const Matrix plain = read_all(model, tokens);
    const float bound = variant.dtype == "BF16" ? 0.1f : variant.dtype == "F16" ? 0.01f : 1e-4f;
    for (const ops::Isa isa : ops::supported_isas()) {
      ops::force_isa(isa);
      INFO(ops::name_of(isa) << " " << variant.config << " " << variant.dtype);
      const Matrix hidden = read_all(model, tokens);
      double square = 0, error = 0;
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (std::size_t i = 0; i < hidden.cols(); ++i) {
          square += std::pow(plain.row(t)[i], 2);
          error += std::pow(plain.row(t)[i] - hidden.row(t)[i], 2);
        }
      }
      REQUIRE(std::sqrt(error / square) < bound);
    }
  }
}

TEST_CASE("keys and values that were read elsewhere serve below any prefix") {
  // With one layer they depend on the token and its place alone, so reading in place must give the same.
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory.path(), tiny_config("llama", 1));
  const Transformer model = transformer(checkpoint);
  const auto document = random_tokens(90, 7), question = random_tokens(12, 8);
  const KvTree source = model.tree();
  const Branch read_alone = read(model, source, source.root(), document);
  const std::size_t row = model.kv_shape().row_bytes();
  auto memory = std::make_shared<std::vector<std::byte>>(2 * document.size() * row);
  auto segment = std::make_shared<KvSegment>();
  segment->k = memory->data();
  segment->v = memory->data() + document.size() * row;
  segment->layer_stride = memory->size();
  segment->rows = document.size();
  segment->owner = memory;
  for (std::size_t i = 0; i < document.size(); ++i) {
    const auto [k, v] = read_alone.write_row(0, i);
    std::memcpy(segment->k + i * row, k, row);
    std::memcpy(segment->v + i * row, v, row);
  }
  for (const std::size_t length : {0, 1, 37, 64, 130}) {
    const auto prefix = random_tokens(length, 9);
    for (const ops::Isa isa : ops::supported_isas()) {
      ops::force_isa(isa);
      INFO(ops::name_of(isa) << " prefix " << length);
      const KvTree tree = model.tree();
      const Branch parent = length == 0 ? tree.root() : read(model, tree, tree.root(), prefix);
      const Branch mounted = tree.mount(parent, document, segment);
      const auto cached = logits(model, read(model, tree, mounted, question));
      const auto in_place = logits(model, read(model, tree, read(model, tree, parent, document), question));
      // Mounted at its own place, it is the same run.
      if (length == 0 && isa == ops::supported_isas().back()) REQUIRE(same(cached, in_place));
      for (std::size_t i = 0; i < cached.size(); ++i) REQUIRE(std::fabs(cached[i] - in_place[i]) < 1e-4f);
    }
  }
}

TEST_CASE("what cannot be read leaves the tree as it was, and is refused by name") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory.path(), tiny_config("llama", 2));
  const Transformer model = transformer(checkpoint);
  const KvTree tree = model.tree();
  const auto tokens = random_tokens(300, 10);
  const Branch branch = read(model, tree, tree.root(), tokens);
  const auto before = logits(model, branch);
  const auto refuse = [&](std::span<const Extension> extensions, const auto& matcher) {
    REQUIRE_THROWS_WITH(model.extend(tree, extensions), matcher);
    REQUIRE(tree.rows_in_use() == 300);
    REQUIRE(same(logits(model, branch), before));
  };
  const auto good = random_tokens(3, 11);
  const std::vector<TokenId> beyond{5, 97}, negative{-1};
  const auto much = random_tokens(101, 12);
  refuse(std::vector<Extension>{{branch, good}, {branch, much}},
         Catch::Contains("400") && Catch::Contains("401"));
  REQUIRE_THROWS_AS(read(model, tree, branch, much), ContextOverflow);
  refuse(std::vector<Extension>{{branch, good}, {branch, beyond}}, Catch::Contains("97"));
  refuse(std::vector<Extension>{{branch, negative}}, Catch::Contains("-1"));
  refuse(std::vector<Extension>{{branch, good}, {branch, {}}}, Catch::Contains("no token"));
  refuse(std::vector<Extension>{{Branch(), good}}, Catch::Contains("no branch"));
  const KvTree other = model.tree();
  refuse(std::vector<Extension>{{branch, good}, {other.root(), good}}, Catch::Contains("another tree"));
  REQUIRE(read(model, tree, branch, random_tokens(100, 13)).size() == 400);
  REQUIRE(model.extend(tree, {}).empty());
  REQUIRE_THROWS_AS(logits(model, tree.root()), InvalidArgument);
}

TEST_CASE("a caller who stops it, or a bound on memory, leaves the tree as it was") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory.path(), tiny_config("llama", 3));
  const Transformer model = transformer(checkpoint);
  const KvTree tree = model.tree(350 * model.kv_shape().token_bytes());
  const auto tokens = random_tokens(200, 14);
  const Branch branch = read(model, tree, tree.root(), tokens);
  const auto before = logits(model, branch);
  const Extension extension{branch, std::span(tokens).first(50)};
  for (int stop = 0; stop < 4; ++stop) {
    int calls = 0;
    std::uint64_t last = 0;
    const Progress progress = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
      REQUIRE(done >= last);
      REQUIRE(done <= total);
      last = done;
      return calls++ < stop;
    };
    REQUIRE_THROWS_AS(model.extend(tree, {&extension, 1}, nullptr, progress), Cancelled);
    REQUIRE(tree.rows_in_use() == 200);
  }
  REQUIRE_THROWS_AS(read(model, tree, branch, tokens), OutOfMemory);
  REQUIRE(tree.rows_in_use() == 200);
  REQUIRE(same(logits(model, branch), before));
  REQUIRE(read(model, tree, branch, std::span(tokens).first(50)).size() == 250);
}

TEST_CASE("several threads may extend one tree and get what each would get alone") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory.path(), tiny_config("qwen3", 2), "BF16");
  const Transformer model = transformer(checkpoint);
  const KvTree tree = model.tree();
  const auto prompt = random_tokens(30, 15);
  const Branch trunk = read(model, tree, tree.root(), prompt);
  std::vector<std::vector<float>> want, got(3);
  for (std::uint32_t i = 0; i < 3; ++i)
    want.push_back(logits(model, read(model, tree, trunk, random_tokens(20, 20 + i))));
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 5; ++n) got[i] = logits(model, read(model, tree, trunk, random_tokens(20, 20 + i)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 3; ++i) REQUIRE(same(got[i], want[i]));
  REQUIRE(tree.rows_in_use() == 30);
}
