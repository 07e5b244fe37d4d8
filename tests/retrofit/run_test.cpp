// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/model/transformer.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/retrofit/run.hpp>

#include "../../src/statistics/layer_pass.hpp"
#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::retrofit;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kLength = 24;
constexpr std::size_t kSequences = 12;

/// Three layers of 128 inner channels; of the kinds that `more` asks for.
Checkpoint write_source(const fs::path& folder, const std::string& type = "llama",
                        const std::string& more = "", const std::string& dtype = "F32") {
  const std::string json =
      R"({"model_type":")" + type +
      R"(","hidden_size":32,"intermediate_size":128,"num_attention_heads":4,"num_key_value_heads":4,)" +
      R"("vocab_size":97,"max_position_embeddings":64,"head_dim":8,"num_hidden_layers":3)" + more + "}";
  const Checkpoint checkpoint = random_checkpoint(folder, json, dtype);
  std::ofstream(folder / "tokenizer.json") << "{}";
  std::ofstream(folder / "empty.txt");
  return checkpoint;
}

const std::vector<TokenId>& text() {
  static const std::vector<TokenId> ids = [] {
    std::mt19937 random(3);
    std::vector<TokenId> out(kSequences * kLength);
    for (TokenId& id : out) id = static_cast<TokenId>(random() % 97);
    return out;
  }();
  return ids;
}

CalibrationTokens calibration() {
  return {.tokens = text(), .length = kLength, .held_out = 3};
}

RunReport run_plan(const Checkpoint& from, const fs::path& to, const Plan& plan, std::size_t threads = 1) {
  ThreadPool pool(threads);
  return run(from, to, plan, calibration(), {}, pool);
}

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

bool same_tensor(const Checkpoint& a, const std::string& name_a, const Checkpoint& b,
                 const std::string& name_b) {
  const auto left = a.bytes(name_a), right = b.bytes(name_b);
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size()) == 0;
}

/// The hidden states before the head, [tokens, hidden_size], of the first sequence.
std::vector<float> hidden_states(const Checkpoint& checkpoint) {
  const Transformer model(checkpoint.config(), ModelWeights::load(checkpoint), 1);
  const KvTree tree = model.tree();
  const Extension extension{tree.root(), std::span(text()).first(kLength)};
  Matrix hidden;
  model.extend(tree, {&extension, 1}, &hidden);
  std::vector<float> out;
  for (std::size_t r = 0; r < kLength; ++r) {
    const auto row = hidden.row(r);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

Plan dropping(std::size_t first, std::size_t count) {
  Plan plan;
  plan.depth = DepthEdit{.first = first, .count = count, .refit = Refit::none};
  return plan;
}

Plan full_plan() {
  Plan plan;
  plan.depth = DepthEdit{.first = 1, .count = 1};
  plan.kv = KvEdit{.kv_heads = 2};
  plan.ffn = FfnEdit{.intermediate_size = 64};
  return plan;
}

}  // namespace

TEST_CASE("An empty plan copies a directory bit for bit") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  const RunReport report = run_plan(source, directory / "out", Plan{});
  CHECK(names_in(directory / "out") == names_in(directory / "in"));
  for (const std::string& name : names_in(directory / "in")) {
    CHECK(bytes_of(directory / "out" / name) == bytes_of(directory / "in" / name));
  }
  CHECK(report.errors.empty());
  CHECK(report.bytes_before == report.bytes_after);
}

TEST_CASE("The stream of a layer's outputs is that of the forward pass") {
  for (const std::string type : {"llama", "qwen2", "qwen3", "mistral"}) {
    for (const std::string dtype : {"F32", "BF16"}) {
      const TemporaryDirectory directory;
      const std::string more = type == "mistral" ? R"(,"sliding_window":7)" : "";
      const Checkpoint source = write_source(directory / "in", type, more, dtype);
      const ModelWeights weights = ModelWeights::load(source);
      const ModelConfig& config = source.config();
      ThreadPool pool(2);
      LayerPass pass(config, weights.dtype, 2, kLength, pool);
      std::vector<float> x(2 * kLength * config.hidden_size);
      ops::gather_rows(weights.embedding, std::span(text()).first(2 * kLength), x.data());
      for (std::size_t layer = 0; layer < config.num_hidden_layers; ++layer) {
        const std::size_t window = config.sliding_window.empty() ? 0 : config.sliding_window[layer];
        pass.run(weights.layers[layer], window, x.data(), 2);
        x.assign(pass.out.begin(), pass.out.end());
      }
      std::vector<float> normed(kLength * config.hidden_size);
      ops::rms_norm(pool, x.data(), weights.norm, static_cast<float>(config.rms_norm_eps), kLength,
                    normed.data());
      INFO(type << ", " << dtype);
      CHECK(normed == hidden_states(source));
    }
  }
}

TEST_CASE("Dropping layers leaves all bytes, under new numbers") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in", "qwen2");
  run_plan(source, directory / "out", dropping(1, 1));
  const Checkpoint out = Checkpoint::open(directory / "out");
  CHECK(out.config().num_hidden_layers == 2);
  CHECK(out.names().size() == source.names().size() - 12);
  for (const std::string& name : out.names()) {
    std::string before = name;
    const std::string second = "model.layers.1.";
    if (name.starts_with(second)) before = "model.layers.2." + name.substr(second.size());
    INFO(name);
    CHECK(same_tensor(out, name, source, before));
  }
  CHECK(names_in(directory.path()) == std::set<std::string>{"in", "out"});
}

TEST_CASE("Only what an edit changes gets other bytes") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  Plan plan;
  plan.ffn = FfnEdit{.intermediate_size = 64, .refit = Refit::least_squares};
  run_plan(source, directory / "ffn", plan);
  const Checkpoint narrow = Checkpoint::open(directory / "ffn");
  for (const std::string& name : narrow.names()) {
    INFO(name);
    const bool edited = name.find(".mlp.") != std::string::npos;
    CHECK(same_tensor(narrow, name, source, name) == !edited);
    if (edited) CHECK(narrow.info(name).bytes() * 2 == source.info(name).bytes());
  }
  plan = {};
  plan.kv = KvEdit{.kv_heads = 2};
  run_plan(source, directory / "kv", plan);
  const Checkpoint merged = Checkpoint::open(directory / "kv");
  for (const std::string& name : merged.names()) {
    INFO(name);
    const bool edited = name.find(".self_attn.") != std::string::npos;
    CHECK(same_tensor(merged, name, source, name) == !edited);
  }
}

TEST_CASE("Channels that are kept keep their rows, in order") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  Plan plan;
  plan.ffn = FfnEdit{.intermediate_size = 64, .choice = ChannelChoice::magnitude, .refit = Refit::none};
  run_plan(source, directory / "out", plan);
  const Checkpoint out = Checkpoint::open(directory / "out");
  const std::string up = "model.layers.1.mlp.up_proj.weight", gate = "model.layers.1.mlp.gate_proj.weight";
  const std::size_t row = 32 * sizeof(float);
  std::size_t next = 0, kept = 0;
  for (std::size_t r = 0; r < 64; ++r) {
    while (next < 128 &&
           std::memcmp(source.bytes(up).data() + next * row, out.bytes(up).data() + r * row, row) != 0) {
      ++next;
    }
    if (next == 128) break;
    kept += std::memcmp(source.bytes(gate).data() + next * row, out.bytes(gate).data() + r * row, row) == 0;
  }
  CHECK(kept == 64);
}

TEST_CASE("Windows change what later tokens see alone") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in", "qwen2");
  Plan plan;
  plan.window = WindowEdit{.window = 8, .layers = {0, 2}, .refit = Refit::none};
  run_plan(source, directory / "out", plan);
  const Checkpoint out = Checkpoint::open(directory / "out");
  CHECK(out.config().sliding_window == std::vector<std::size_t>{8, 0, 8});
  for (const std::string& name : source.names()) CHECK(same_tensor(out, name, source, name));
  const std::vector<float> before = hidden_states(source), after = hidden_states(out);
  const auto at = [](const std::vector<float>& states, std::size_t token) {
    return std::vector<float>(states.begin() + static_cast<std::ptrdiff_t>(token * 32),
                              states.begin() + static_cast<std::ptrdiff_t>((token + 1) * 32));
  };
  for (std::size_t token = 0; token < 8; ++token) CHECK(at(after, token) == at(before, token));
  CHECK(at(after, 8) != at(before, 8));
}

TEST_CASE("The same plan gives the same bytes, and every edit is reported") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in", "qwen2");
  const RunReport report = run_plan(source, directory / "one", full_plan());
  run_plan(source, directory / "two", full_plan());
  for (const std::string& name : names_in(directory / "one")) {
    CHECK(bytes_of(directory / "one" / name) == bytes_of(directory / "two" / name));
  }
  std::set<std::string> edits;
  for (const EditError& error : report.errors) {
    edits.insert(error.edit + " " + error.module);
    CHECK((error.layer == 0 || error.layer == 2));
    CHECK(error.held_out_after <= error.held_out_before);
  }
  CHECK(edits == std::set<std::string>{"kv self_attn.k_proj", "kv self_attn.v_proj", "kv self_attn.o_proj",
                                       "ffn mlp.down_proj", "ffn mlp"});
  CHECK(report.bytes_after < report.bytes_before);
}

TEST_CASE("A run that was stopped goes on to the same bytes") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  run_plan(source, directory / "whole", full_plan());
  ThreadPool pool(1);
  const auto stop_in_the_second_half = [](std::string_view, std::uint64_t done, std::uint64_t total) {
    return 2 * done <= total;
  };
  CHECK_THROWS_AS(run(source, directory / "out", full_plan(), calibration(), {.work = directory / "work"},
                      pool, stop_in_the_second_half),
                  Cancelled);
  CHECK_FALSE(fs::exists(directory / "out"));
  CHECK(names_in(directory / "work").size() == 1);
  const RunReport report =
      run(source, directory / "out", full_plan(), calibration(), {.work = directory / "work"}, pool);
  CHECK(report.resumed_layers == 1);
  CHECK(names_in(directory / "work").empty());
  for (const std::string& name : names_in(directory / "whole")) {
    CHECK(bytes_of(directory / "out" / name) == bytes_of(directory / "whole" / name));
  }
}

TEST_CASE("Shards are written where the caller wants them") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  ThreadPool pool(1);
  run(source, directory / "out", dropping(2, 1), {}, {.shard_bytes = 40'000}, pool);
  const Checkpoint out = Checkpoint::open(directory / "out");
  CHECK(out.files().size() > 2);
  for (const std::string& name : out.names()) CHECK(same_tensor(out, name, source, name));
}

TEST_CASE("Text that does not fit is refused before anything is written") {
  const TemporaryDirectory directory;
  const Checkpoint source = write_source(directory / "in");
  ThreadPool pool(1);
  const auto refusal = [&](const CalibrationTokens& given) {
    try {
      run(source, directory / "out", full_plan(), given, {}, pool);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  CHECK_THAT(refusal({}), Contains("calibration"));
  CHECK_THAT(refusal({.tokens = text(), .length = 25, .held_out = 3}), Contains("whole sequences"));
  CHECK_THAT(refusal({.tokens = text(), .length = 96, .held_out = 1}), Contains("of 1 to 64 tokens"));
  CHECK_THAT(refusal({.tokens = text(), .length = kLength}), Contains("held out"));
  CHECK_THAT(refusal({.tokens = text(), .length = kLength, .held_out = kSequences}), Contains("held out"));
  CHECK_THAT(refusal({.tokens = std::span(text()).first(5 * kLength), .length = kLength, .held_out = 1}),
             Contains("at least 128 tokens"));
  std::vector<TokenId> wrong = text();
  wrong[30] = 97;
  CHECK_THAT(refusal({.tokens = wrong, .length = kLength, .held_out = 3}), Contains("0 to 96, got 97"));
  CHECK(names_in(directory.path()) == std::set<std::string>{"in"});
}
