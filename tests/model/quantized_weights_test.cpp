// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <functional>

#include <modicum/base/error.hpp>
#include <modicum/model/weights.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

constexpr const char* kUp = "model.layers.0.mlp.up_proj";

std::string scheme(int bits, const std::string& strategy, const std::string& format,
                   const std::string& targets = R"(["Linear"])") {
  return R"({"targets":)" + targets + R"(,"format":")" + format + R"(","weights":{"num_bits":)" +
         std::to_string(bits) + "," + strategy + "}}";
}

/// A qwen2 of one layer, 64 wide, whose linear layers are as `groups` says.
std::string config(const std::string& groups, const std::string& ignore = R"("lm_head")") {
  return R"({"model_type":"qwen2","hidden_size":64,"intermediate_size":96,"num_attention_heads":4,)"
         R"("num_key_value_heads":2,"vocab_size":97,"num_hidden_layers":1,"quantization_config":{)"
         R"("quant_method":"compressed-tensors","format":"mixed-precision","ignore":[)" +
         ignore + R"(],"config_groups":{)" + groups + "}}}";
}

const std::string kInt4 = R"("group_0":)" + scheme(4, R"("group_size":32)", "pack-quantized");
const std::string kInt8 = R"("group_0":)" + scheme(8, R"("strategy":"channel")", "int-quantized");

/// The tensors of such a model in BF16, linear layers replaced by what `replace` gives.
std::vector<TensorSpec> specs(
    const std::string& config_json,
    const std::function<std::vector<TensorSpec>(std::string, std::size_t, std::size_t)>& replace) {
  std::vector<TensorSpec> all;
  for (TensorSpec& spec : tensors_of(parse_model_config(config_json), "BF16")) {
    const bool linear = spec.name.ends_with("_proj.weight");
    if (!linear) {
      all.push_back(std::move(spec));
      continue;
    }
    for (TensorSpec& part :
         replace(spec.name.substr(0, spec.name.rfind('.')), spec.shape[0], spec.shape[1])) {
      all.push_back(std::move(part));
    }
  }
  return all;
}

std::vector<TensorSpec> packed4(const std::string& name, std::size_t rows, std::size_t cols) {
  return {{name + ".weight_packed", "I32", {rows, cols / 8}},
          {name + ".weight_scale", "BF16", {rows, cols / 32}}};
}

std::vector<TensorSpec> plain8(const std::string& name, std::size_t rows, std::size_t cols) {
  return {{name + ".weight", "I8", {rows, cols}}, {name + ".weight_scale", "F32", {rows, 1}}};
}

TensorSpec& find(std::vector<TensorSpec>& list, const std::string& name) {
  return *std::find_if(list.begin(), list.end(), [&](const TensorSpec& spec) { return spec.name == name; });
}

/// Writes zeros, but `shape` into every weight_shape.
Checkpoint write(const std::filesystem::path& directory, const std::string& config_json,
                 const std::vector<TensorSpec>& list, std::int64_t rows = 96, std::int64_t cols = 64) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config_json;
  CheckpointWriter writer(directory, list);
  for (const TensorSpec& spec : list) {
    std::size_t bits = safetensors_bits(spec.dtype);
    for (const auto extent : spec.shape) bits *= extent;
    std::vector<std::byte> bytes(bits / 8);
    const std::int64_t shape[2] = {rows, cols};
    if (spec.name.ends_with("weight_shape"))
      std::memcpy(bytes.data(), shape, std::min(bytes.size(), sizeof shape));
    writer.append(bytes);
  }
  writer.commit();
  return Checkpoint::open(directory);
}

}  // namespace

TEST_CASE("packed and plain integers are used where they lie, with their scales") {
  const TemporaryDirectory directory;
  const Checkpoint four = write(directory / "4", config(kInt4), specs(config(kInt4), packed4));
  const ModelWeights weights = ModelWeights::load(four);
  CHECK(weights.dtype == DType::bf16);
  const WeightView up = weights.layers[0].up.weight;
  CHECK(up.dtype == DType::uint4);
  CHECK(up.rows == 96);
  CHECK(up.cols == 64);
  CHECK(up.group == 32);
  CHECK(up.scale_dtype == DType::bf16);
  CHECK(up.data == four.bytes("model.layers.0.mlp.up_proj.weight_packed").data());
  CHECK(up.scales == four.bytes("model.layers.0.mlp.up_proj.weight_scale").data());
  CHECK(weights.head.dtype == DType::bf16);

  const Checkpoint eight = write(directory / "8", config(kInt8), specs(config(kInt8), plain8));
  const WeightView down = ModelWeights::load(eight, DType::f32).layers[0].down.weight;
  CHECK(down.dtype == DType::int8);
  CHECK(down.group == 96);
  CHECK(down.scale_dtype == DType::f32);
  CHECK(ModelWeights::load(eight, DType::f32).embedding.dtype == DType::f32);
  CHECK(four.parameters() == eight.parameters());
}

TEST_CASE("integers where the configuration has floats are refused, and floats where it has integers") {
  const TemporaryDirectory directory;
  const auto load = [&](const char* name, const std::string& config_json,
                        const std::vector<TensorSpec>& list) {
    write(directory / name, config_json, list);
    return ModelWeights::load(Checkpoint::open(directory / name));
  };
  const std::string ignoring = config(kInt4, R"("lm_head","re:.*up_proj")");
  CHECK_THROWS_WITH(load("a", ignoring, specs(ignoring, packed4)),
                    Contains(kUp) && Contains("expected floats"));
  const auto floats = tensors_of(parse_model_config(config(kInt4)), "BF16");
  CHECK_THROWS_WITH(load("b", config(kInt4), floats), Contains("expected integers"));
  const std::string head = config(kInt4, "");
  CHECK_THROWS_WITH(load("c", head, specs(head, packed4)), Contains("'lm_head'"));
  CHECK_THROWS_AS(load("d", config(kInt8), specs(config(kInt8), packed4)), FormatError);
  CHECK_THROWS_AS(load("e", config(kInt4), specs(config(kInt4), plain8)), FormatError);
}

TEST_CASE("tensors of another shape than their configuration's are refused by name") {
  const TemporaryDirectory directory;
  const std::vector<TensorSpec> good = specs(config(kInt4), packed4);
  const auto refuses = [&](const std::string& tensor, const std::string& dtype,
                           const std::vector<std::uint64_t>& shape, const std::string& expected) {
    auto list = good;
    find(list, tensor).dtype = dtype;
    find(list, tensor).shape = shape;
    const std::string name = "x" + std::to_string(directory.names().size());
    const Checkpoint checkpoint = write(directory / name, config(kInt4), list);
    CHECK_THROWS_AS(ModelWeights::load(checkpoint), FormatError);
    CHECK_THROWS_WITH(ModelWeights::load(checkpoint), Contains(tensor) && Contains(expected));
  };
  const std::string up = kUp;
  refuses(up + ".weight_packed", "I32", {96, 7}, "I32 of [96, 8], got I32 of [96, 7]");
  refuses(up + ".weight_packed", "I32", {96, 16}, "I32 of [96, 8]");  // 8 bits
  refuses(up + ".weight_packed", "I32", {95, 8}, "I32 of [96, 8]");
  refuses(up + ".weight_packed", "U8", {96, 32}, "I32 of [96, 8]");
  refuses(up + ".weight_scale", "BF16", {96, 1}, "[96, 2], got BF16 of [96, 1]");
  refuses(up + ".weight_scale", "I8", {96, 2}, "[96, 2], got I8");
}

TEST_CASE("a stored shape must be the one that config.json implies") {
  const TemporaryDirectory directory;
  auto list = specs(config(kInt4), packed4);
  list.push_back({std::string(kUp) + ".weight_shape", "I64", {2}});
  CHECK(ModelWeights::load(write(directory / "right", config(kInt4), list)).layers.size() == 1);
  const Checkpoint wrong = write(directory / "wrong", config(kInt4), list, 96, 63);
  CHECK_THROWS_WITH(ModelWeights::load(wrong), Contains("up_proj.weight_shape") && Contains("[96, 64]"));
  list.back().dtype = "F32";
  CHECK_THROWS_AS(ModelWeights::load(write(directory / "float", config(kInt4), list)), FormatError);
}

TEST_CASE("zero points, reordered columns and tensors of two formats at once are refused") {
  const TemporaryDirectory directory;
  for (const char* suffix : {".weight_zero_point", ".weight_g_idx"}) {
    auto list = specs(config(kInt4), packed4);
    list.push_back({std::string(kUp) + suffix, "I32", {64}});
    const Checkpoint checkpoint = write(directory / suffix, config(kInt4), list);
    CHECK_THROWS_AS(ModelWeights::load(checkpoint), Unsupported);
    CHECK_THROWS_WITH(ModelWeights::load(checkpoint), Contains(std::string(kUp) + suffix));
  }
  auto both = specs(config(kInt4), packed4);
  both.push_back({std::string(kUp) + ".weight", "BF16", {96, 64}});
  CHECK_THROWS_WITH(ModelWeights::load(write(directory / "both", config(kInt4), both)),
                    Contains("'model.layers.0.mlp.up_proj.weight'"));
}

TEST_CASE("columns that are no multiple of the group, and mixed layers on one input, are Unsupported") {
  const TemporaryDirectory directory;
  const std::string wide = config(R"("group_0":)" + scheme(4, R"("group_size":64)", "pack-quantized"));
  const auto groups64 = [](const std::string& name, std::size_t rows, std::size_t cols) {
    return std::vector<TensorSpec>{
        {name + ".weight_packed", "I32", {rows, cols / 8}},
        {name + ".weight_scale", "BF16", {rows, std::max<std::size_t>(cols / 64, 1)}}};
  };
  const Checkpoint uneven = write(directory / "uneven", wide, specs(wide, groups64));
  CHECK_THROWS_AS(ModelWeights::load(uneven), Unsupported);
  CHECK_THROWS_WITH(ModelWeights::load(uneven), Contains("down_proj") && Contains("96 inputs"));

  const std::string mixed = config(kInt4, R"("lm_head","re:.*k_proj")");
  const auto without_k = [](const std::string& name, std::size_t rows, std::size_t cols) {
    if (name.ends_with("k_proj")) return std::vector<TensorSpec>{{name + ".weight", "BF16", {rows, cols}}};
    return packed4(name, rows, cols);
  };
  const Checkpoint checkpoint = write(directory / "mixed", mixed, specs(mixed, without_k));
  CHECK_THROWS_AS(ModelWeights::load(checkpoint), Unsupported);
  CHECK_THROWS_WITH(ModelWeights::load(checkpoint), Contains("{q,k,v}_proj") && Contains("uint4 and bf16"));
}
