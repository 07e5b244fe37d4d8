// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <modicum/base/error.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/retrofit/quantize.hpp>
#include <modicum/retrofit/round.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;
using retrofit::quantize;
using retrofit::QuantizeOptions;
using retrofit::QuantizeReport;

namespace fs = std::filesystem;

namespace {

/// 64 wide, except for down_proj, which has `inner` columns.
std::string config(const std::string& more = "", int inner = 96) {
  return R"({"model_type":"llama","hidden_size":64,"intermediate_size":)" + std::to_string(inner) +
         R"(,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":97,"num_hidden_layers":2,"kept":"field")" +
         more + "}";
}

const std::string kTied = R"(,"tie_word_embeddings":true)";

QuantizeReport run(const Checkpoint& from, const fs::path& to, const QuantizeOptions& options,
                   std::size_t threads = 1) {
  ThreadPool pool(threads);
  return quantize(from, to, options, pool);
}

double value(const WeightView& view, std::size_t r, std::size_t c) {
  if (is_float(view.dtype)) {
    return dispatch(view.dtype, [&](auto t) {
      return static_cast<double>(to_f32(static_cast<const decltype(t)*>(view.data)[r * view.cols + c]));
    });
  }
  const std::size_t i = r * view.cols + c;
  const auto* bytes = static_cast<const std::uint8_t*>(view.data);
  const int q = view.dtype == DType::int8_rows ? static_cast<std::int8_t>(bytes[i])
                : view.dtype == DType::uint8   ? bytes[i] - 128
                                               : (bytes[i / 2] >> (i % 2 * 4) & 15) - 8;
  const WeightView scales{
      .data = view.scales, .dtype = view.scale_dtype, .rows = view.rows, .cols = view.cols / view.group};
  return q * value(scales, r, c / view.group);
}

/// What `round_group` makes of the source's weight.
void check_rounded(const WeightView& from, const WeightView& to, std::size_t bits) {
  REQUIRE(to.rows == from.rows);
  REQUIRE(to.cols == from.cols);
  std::vector<float> group(to.group);
  std::vector<std::int8_t> integers(to.group);
  for (std::size_t r = 0; r < from.rows; ++r) {
    for (std::size_t c = 0; c < from.cols; c += to.group) {
      for (std::size_t i = 0; i < to.group; ++i) group[i] = static_cast<float>(value(from, r, c + i));
      const float scale = retrofit::round_group(group, bits, from.dtype, integers);
      for (std::size_t i = 0; i < to.group; ++i) {
        REQUIRE(value(to, r, c + i) == static_cast<double>(scale) * integers[i]);
      }
    }
  }
}

std::map<std::string, std::string> files(const fs::path& directory) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    std::ifstream file(entry.path(), std::ios::binary);
    found[entry.path().filename().string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return found;
}

}  // namespace

TEST_CASE("every linear layer becomes the integers of its groups, everything else stays") {
  for (const std::string dtype : {"F32", "BF16", "F16"}) {
    for (const std::size_t bits : {4u, 8u}) {
      const TemporaryDirectory directory;
      const Checkpoint from = random_checkpoint(directory / "in", config(), dtype);
      run(from, directory / "out", {.bits = bits});
      const Checkpoint to = Checkpoint::open(directory / "out");
      const ModelWeights before = ModelWeights::load(from);
      const ModelWeights after = ModelWeights::load(to);
      CHECK(after.dtype == before.dtype);
      for (std::size_t i = 0; i < 2; ++i) {
        const LayerWeights& a = before.layers[i];
        const LayerWeights& b = after.layers[i];
        CHECK(a.input_norm == b.input_norm);
        const auto pairs = {std::pair(&a.q, &b.q), {&a.k, &b.k},   {&a.v, &b.v},      {&a.o, &b.o},
                            {&a.gate, &b.gate},    {&a.up, &b.up}, {&a.down, &b.down}};
        for (const auto& [x, y] : pairs) check_rounded(x->weight, y->weight, bits);
      }
      for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}) {
        const auto x = from.bytes(name);
        const auto y = to.bytes(name);
        CHECK(std::equal(x.begin(), x.end(), y.begin(), y.end()));
      }
      CHECK(to.parameters() == from.parameters());
      CHECK(to.fingerprint() != from.fingerprint());
    }
  }
}

TEST_CASE("whole rows become integers with a scale each, for activations with a scale a token") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config(), "BF16");
  const QuantizeReport report = run(from, directory / "out", {.bits = 8, .group = 0, .head_bits = 8});
  const Checkpoint to = Checkpoint::open(directory / "out");
  const ModelWeights before = ModelWeights::load(from);
  const ModelWeights after = ModelWeights::load(to);
  check_rounded(before.layers[1].down.weight, after.layers[1].down.weight, 8);
  check_rounded(before.head, after.head, 8);
  CHECK(after.layers[0].q.weight.dtype == DType::int8_rows);
  CHECK(after.head.dtype == DType::int8_rows);
  CHECK(to.info("model.layers.0.mlp.up_proj.weight").dtype == "I8");
  std::uint64_t bytes = 0;
  for (const std::string& name : to.names()) bytes += to.info(name).bytes();
  CHECK(report.bytes_after == bytes);
  CHECK(report.bytes_head_int8 == bytes);
  CHECK(report.bytes_head_int4 == 0);
}

TEST_CASE("the head may become integers of its own; a tied embedding stays beside it") {
  for (const bool tied : {true, false}) {
    const TemporaryDirectory directory;
    const Checkpoint from = random_checkpoint(directory / "in", config(tied ? kTied : ""), "BF16");
    const ModelWeights before = ModelWeights::load(from);
    std::map<std::size_t, QuantizeReport> reports;
    for (const std::size_t head : {0u, 4u, 8u}) {
      QuantizeOptions options{.bits = 8};
      if (head != 0) options.head_bits = head;
      const fs::path out = directory / std::to_string(head);
      reports[head] = run(from, out, options);
      const Checkpoint to = Checkpoint::open(out);
      const ModelWeights after = ModelWeights::load(to);
      CHECK(to.config().tie_word_embeddings == (tied && head == 0));
      CHECK((after.head.data == after.embedding.data) == (tied && head == 0));
      if (head != 0) check_rounded(before.head, after.head, head);
      if (head != 0) CHECK(after.head.dtype == (head == 4 ? DType::uint4 : DType::uint8));
      std::uint64_t bytes = 0;
      for (const std::string& name : to.names()) bytes += to.info(name).bytes();
      CHECK(reports[head].bytes_after == bytes);
    }
    for (const auto& [head, report] : reports) {
      CHECK(report.bytes_head_kept == reports.at(0).bytes_after);
      CHECK(report.bytes_head_int4 == reports.at(4).bytes_after);
      CHECK(report.bytes_head_int8 == reports.at(8).bytes_after);
    }
  }
}

TEST_CASE("layers whose columns are no multiple of the group stay in floats and are named") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config(kTied, 72));
  const QuantizeReport report = run(from, directory / "out", {.bits = 4});
  const std::vector<std::string> down = {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"};
  CHECK(report.kept == down);
  const ModelWeights after = ModelWeights::load(Checkpoint::open(directory / "out"));
  CHECK(after.layers[0].down.weight.dtype == DType::f32);
  CHECK(after.layers[0].up.weight.dtype == DType::uint4);
  CHECK_THROWS_AS(run(from, directory / "none", {.group = 128}), Unsupported);
  CHECK_THROWS_WITH(run(from, directory / "none", {.group = 128, .head_bits = 8}), Contains("64 inputs"));
}

TEST_CASE("the report's errors are those of the weights") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config(), "BF16");
  const QuantizeReport report = run(from, directory / "out", {.bits = 4});
  const ModelWeights before = ModelWeights::load(from);
  const ModelWeights after = ModelWeights::load(Checkpoint::open(directory / "out"));
  double error = 0, square = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    const WeightView a = before.layers[i].down.weight;
    for (std::size_t r = 0; r < a.rows; ++r) {
      for (std::size_t c = 0; c < a.cols; ++c) {
        error += std::pow(value(a, r, c) - value(after.layers[i].down.weight, r, c), 2);
        square += std::pow(value(a, r, c), 2);
      }
    }
  }
  const auto down = std::find_if(report.kinds.begin(), report.kinds.end(),
                                 [](const auto& kind) { return kind.kind == "down_proj"; });
  REQUIRE(down != report.kinds.end());
  CHECK(down->tensors == 2);
  CHECK(down->bytes_before == 2 * 64 * 96 * 2);
  CHECK(down->bytes_after == 2 * (64 * 96 / 2 + 64 * 3 * 2 + 16));
  CHECK(down->mean_square_error == Approx(error / (2 * 64 * 96)));
  CHECK(down->mean_square == Approx(square / (2 * 64 * 96)));
}

TEST_CASE("the result is the same for any number of threads, and shards become shards") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config(), "BF16");
  run(from, directory / "one", {.bits = 4}, 1);
  run(from, directory / "three", {.bits = 4}, 3);
  CHECK(files(directory / "one") == files(directory / "three"));

  fs::create_directories(directory / "sharded");
  fs::copy(directory / "in/config.json", directory / "sharded/config.json");
  std::vector<TensorSpec> specs;
  for (const std::string& name : from.names())
    specs.push_back({name, from.info(name).dtype, from.info(name).shape});
  CheckpointWriter writer(directory / "sharded", specs, 20000);
  for (const std::string& name : from.names()) writer.append(from.bytes(name));
  writer.commit();
  run(Checkpoint::open(directory / "sharded"), directory / "shards", {.bits = 4});
  CHECK(Checkpoint::open(directory / "shards").files().size() > 1);
  CHECK(Checkpoint::open(directory / "shards").fingerprint() ==
        Checkpoint::open(directory / "one").fingerprint());
}

TEST_CASE("integers begin on cache lines, all tensors on a multiple of their elements") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config("", 32), "BF16");
  // A head of 97 rows is no whole number of cache lines; what follows begins on 16 bytes.
  for (const auto& [head, alignment] : {std::pair(0u, 64u), {4u, 16u}}) {
    QuantizeOptions options{.bits = 4};
    if (head != 0) options.head_bits = head;
    const std::filesystem::path out = directory / std::to_string(head);
    run(from, out, options);
    const SafetensorsFile file = SafetensorsFile::open(out / "model.safetensors");
    for (const auto& [name, info] : file.header().tensors) {
      INFO(name);
      const std::uint64_t begin = file.header().data_begin + info.begin;
      CHECK(begin % (safetensors_bits(info.dtype) / 8) == 0);
      if (name.ends_with("_packed")) CHECK(begin % alignment == 0);
    }
  }
}

TEST_CASE("config.json keeps its fields, other files are copied, weights in other formats are not") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config());
  for (const char* name : {"tokenizer.json", "README.md", "pytorch_model.bin", "model.gguf", ".hidden"}) {
    std::ofstream(directory / "in" / name) << name;
  }
  fs::create_directory(directory / "in/folder");
  run(from, directory / "out", {});
  const auto found = files(directory / "out");
  CHECK(found.size() == 4);
  CHECK(found.at("tokenizer.json") == "tokenizer.json");
  CHECK(found.at("README.md") == "README.md");
  CHECK_THAT(found.at("config.json"), Contains(R"("kept": "field")") && Contains("pack-quantized"));
}

TEST_CASE("options that make no sense are refused before anything is written") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config());
  const auto refuses = [&](const QuantizeOptions& options, const std::string& text) {
    CHECK_THROWS_AS(run(from, directory / "out", options), InvalidArgument);
    CHECK_THROWS_WITH(run(from, directory / "out", options), Contains(text));
  };
  refuses({.bits = 5}, "bits of linear layers: expected 4 or 8, got 5");
  refuses({.bits = 4, .group = 0}, "group");
  refuses({.group = 0, .head_bits = 4}, "group");
  refuses({.group = 48}, "a multiple of 32, or whole rows with 8 bits, got 48");
  refuses({.head_bits = 2}, "bits of the head");
  run(from, directory / "there", {});
  CHECK_THROWS_AS(run(from, directory / "there", {}), InvalidArgument);
  CHECK_THROWS_AS(run(Checkpoint::open(directory / "there"), directory / "out", {}), Unsupported);
  CHECK_THROWS_WITH(run(Checkpoint::open(directory / "there"), directory / "out", {}), Contains("already"));
  CHECK(directory.names().size() == 2);
}

TEST_CASE("a weight that is not finite or a tensor that is missing is named, and nothing stays") {
  const TemporaryDirectory directory;
  const auto specs = tensors_of(parse_model_config(config()), "F32");
  write_checkpoint(directory / "in", config(), specs);
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const auto file = SafetensorsFile::open(directory / "in/model.safetensors");
    const auto offset = file.header().data_begin + file.info(name).begin + (3 * 64 + 5) * 4;
    std::fstream raw(directory / "in/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    raw.seekp(static_cast<std::streamoff>(offset));
    raw.write(reinterpret_cast<const char*>(&bad), 4);
    raw.close();
    const Checkpoint from = Checkpoint::open(directory / "in");
    CHECK_THROWS_AS(run(from, directory / "out", {}, 2), FormatError);
    CHECK_THROWS_WITH(run(from, directory / "out", {}, 2), Contains(name) && Contains("[3, 5]"));
  }
  auto fewer = specs;
  fewer.pop_back();
  write_checkpoint(directory / "less", config(), fewer);
  CHECK_THROWS_WITH(run(Checkpoint::open(directory / "less"), directory / "out", {}),
                    Contains(specs.back().name));
  CHECK(directory.names().size() == 2);
}

TEST_CASE("progress counts the source's bytes, and stopping leaves nothing") {
  const TemporaryDirectory directory;
  const Checkpoint from = random_checkpoint(directory / "in", config());
  ThreadPool pool(1);
  std::vector<std::uint64_t> seen;
  quantize(from, directory / "out", {}, pool, [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    seen.push_back(done);
    CHECK(done <= total);
    return true;
  });
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.size() > 15);
  for (std::size_t stop = 0; stop < seen.size(); stop += 5) {
    std::size_t calls = 0;
    const Progress stopping = [&](auto, auto, auto) { return calls++ != stop; };
    CHECK_THROWS_AS(quantize(from, directory / "stopped", {}, pool, stopping), Cancelled);
  }
  CHECK(directory.names().size() == 2);
}
