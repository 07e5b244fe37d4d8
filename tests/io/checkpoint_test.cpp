// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstring>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>

#include "io/checkpoint_fixture.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string fingerprint(const TemporaryDirectory& directory) {
  return Checkpoint::open(directory.path()).fingerprint();
}

/// The fingerprint of the fixture with another config.json.
std::string fingerprint_with_config(std::string_view fields) {
  const TemporaryDirectory directory;
  write_single(directory);
  std::string config(kConfig.substr(0, kConfig.size() - 1));
  directory.write("config.json", config.append(",").append(fields).append("}"));
  return fingerprint(directory);
}

}  // namespace

TEST_CASE("a checkpoint of one file and one of shards show the same tensors") {
  const TemporaryDirectory directories[2];
  write_single(directories[0]);
  write_sharded(directories[1]);
  for (const TemporaryDirectory& directory : directories) {
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    CHECK(checkpoint.directory() == directory.path());
    CHECK(checkpoint.config().hidden_size == 4);
    CHECK(checkpoint.names() == std::vector<std::string>{"a", "b"});
    CHECK(checkpoint.contains("a"));
    CHECK_FALSE(checkpoint.contains("c"));
    CHECK(checkpoint.info("b").dtype == "BF16");
    CHECK(text_of(checkpoint.bytes("a")) == "aaaabbbb");
    CHECK(text_of(checkpoint.bytes("b")) == "ccdd");
    CHECK_THROWS_WITH(checkpoint.bytes("c"), Contains("a tensor 'c'"));
  }
  CHECK(fingerprint(directories[0]) == fingerprint(directories[1]));
}

TEST_CASE("a weight is a view of the file, and its shape and dtype are checked") {
  const TemporaryDirectory directory;
  write_single(directory);
  const Checkpoint checkpoint = Checkpoint::open(directory.path());
  const WeightView a = checkpoint.weight("a", 2, 1);
  CHECK(a.dtype == DType::f32);
  CHECK(a.rows == 2);
  CHECK(a.cols == 1);
  CHECK(checkpoint.weight("b", 1, 2).dtype == DType::bf16);
  CHECK_THROWS_WITH(checkpoint.weight("a", 1, 2), Contains("[1, 2], got F32 of [2, 1]"));
  CHECK_THROWS_AS(checkpoint.weight("b", 2, 1), FormatError);
  CHECK_THROWS_AS(checkpoint.weight("c", 2, 1), FormatError);
}

TEST_CASE("an aligned weight is used where it lies, a misaligned one from one aligned copy") {
  for (const std::size_t padding : {0u, 1u, 2u, 3u, 4u}) {
    const TemporaryDirectory directory;
    directory.write("config.json", kConfig);
    const std::string tensor = tensor_json("a", "F32", "[1]", 0, 4);
    const std::size_t to_four = (4 - (tensor.size() + 2) % 4) % 4;
    directory.write("model.safetensors", weights_file({tensor}, "abcd", to_four + padding));
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    const void* data = checkpoint.weight("a", 1, 1).data;
    CHECK(reinterpret_cast<std::uintptr_t>(data) % 4 == 0);
    CHECK(std::memcmp(data, "abcd", 4) == 0);
    CHECK((data == checkpoint.bytes("a").data()) == (padding % 4 == 0));
    CHECK(Checkpoint(checkpoint).weight("a", 1, 1).data == data);
  }
}

TEST_CASE("threads that ask for one misaligned weight at once share its copy") {
  const TemporaryDirectory directory;
  directory.write("config.json", kConfig);
  const std::string tensor = tensor_json("a", "F32", "[1]", 0, 4);
  directory.write("model.safetensors", weights_file({tensor}, "abcd", (5 - (tensor.size() + 2) % 4) % 4));
  const Checkpoint checkpoint = Checkpoint::open(directory.path());
  ThreadPool pool(4);
  std::vector<const void*> data(64);
  pool.run(data.size(), [&](std::size_t i) { data[i] = checkpoint.weight("a", 1, 1).data; });
  CHECK(data == std::vector<const void*>(64, data[0]));
  CHECK(data[0] != checkpoint.bytes("a").data());
}

TEST_CASE("a weight of integers is refused") {
  const TemporaryDirectory directory;
  directory.write("config.json", kConfig);
  directory.write("model.safetensors", weights_file({tensor_json("a", "I32", "[1,1]", 0, 4)}, "abcd"));
  CHECK_THROWS_WITH(Checkpoint::open(directory.path()).weight("a", 1, 1), Contains("got I32"));
}

TEST_CASE("copies of a checkpoint keep the mapping when the first is gone") {
  const TemporaryDirectory directory;
  write_sharded(directory);
  const Checkpoint copy = [&] {
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    return Checkpoint(checkpoint);
  }();
  std::filesystem::remove(directory / "one.safetensors");
  CHECK(text_of(copy.bytes("a")) == "aaaabbbb");
}

TEST_CASE("a checkpoint with a missing part says which") {
  const TemporaryDirectory directory;
  CHECK_THROWS_AS(Checkpoint::open(directory / "none"), IoError);
  CHECK_THROWS_WITH(Checkpoint::open(directory / "none"), Contains("nothing there"));
  CHECK_THROWS_WITH(Checkpoint::open(directory.write("file", "")), Contains("a file"));
  CHECK_THROWS_WITH(Checkpoint::open(directory.path()), Contains("config.json"));
  directory.write("config.json", kConfig);
  CHECK_THROWS_AS(Checkpoint::open(directory.path()), IoError);
  CHECK_THROWS_WITH(Checkpoint::open(directory.path()),
                    Contains("model.safetensors.index.json, got neither"));
  directory.write("pytorch_model.bin", "");
  CHECK_THROWS_WITH(Checkpoint::open(directory.path()), Contains("pickled") && Contains("save_pretrained"));
}

TEST_CASE("a broken file among the parts is a FormatError") {
  const TemporaryDirectory directory;
  write_single(directory);
  directory.write("generation_config.json", "{");
  CHECK_THROWS_WITH(Checkpoint::open(directory.path()), Contains("generation_config.json"));
  directory.write("generation_config.json", "{}");
  directory.write("model.safetensors", directory.read("model.safetensors") + "x");
  CHECK_THROWS_AS(Checkpoint::open(directory.path()), FormatError);
}

TEST_CASE("an index that names what is not there, or what it may not, is refused") {
  const TemporaryDirectory directory;
  write_sharded(directory);
  const auto refuses = [&](std::string_view index, const std::string& text) {
    INFO(index);
    directory.write("model.safetensors.index.json", index);
    CHECK_THROWS_AS(Checkpoint::open(directory.path()), FormatError);
    CHECK_THROWS_WITH(Checkpoint::open(directory.path()), Contains(text));
  };
  refuses(R"({"weight_map":{"a":"three.safetensors"}})", "absent: got 'three.safetensors'");
  refuses(R"({"weight_map":{"x":"one.safetensors"}})", "the tensor 'x'");
  refuses(R"({"weight_map":{"a":"../one.safetensors"}})", "within the directory");
  refuses(R"({"weight_map":{"a":"x/../../one.safetensors"}})", "within the directory");
  refuses(R"({"weight_map":{"a":"/etc/passwd"}})", "within the directory");
  refuses(R"({"weight_map":{"a":""}})", "within the directory");
  refuses(R"({"weight_map":{"a":"one.safetensors\u0000"}})", "within the directory");
  refuses(R"({"weight_map":{"a":1}})", "weight_map");
  refuses(R"({"weight_map":[]})", "weight_map");
  refuses("{}", "weight_map");
  refuses("x", "JSON");
}

TEST_CASE("tensors that the index does not name are left out") {
  const TemporaryDirectory directory;
  write_sharded(directory);
  directory.write("model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors"}})");
  CHECK(Checkpoint::open(directory.path()).names() == std::vector<std::string>{"a"});
}

TEST_CASE("the fingerprint is that of what is computed, not of its spelling") {
  const TemporaryDirectory directory;
  write_single(directory);
  const std::string plain = fingerprint(directory);
  CHECK(plain.size() == 32);
  CHECK(plain == fingerprint_with_config(R"("eos_token_id":7,"bos_token_id":3,"torch_dtype":"float16")"));
  CHECK(plain == fingerprint_with_config(R"("rope_theta":10000,"max_position_embeddings":4096)"));
  CHECK(plain == fingerprint_with_config(R"("rope_parameters":{"rope_type":"default","factor":3})"));
  CHECK(plain != fingerprint_with_config(R"("rope_theta":10001)"));
  CHECK(plain != fingerprint_with_config(R"("rope_scaling":{"type":"linear","factor":2})"));
  CHECK(plain != fingerprint_with_config(R"("rms_norm_eps":1e-5)"));
  CHECK(plain != fingerprint_with_config(R"("tie_word_embeddings":true)"));
}

TEST_CASE("the fingerprint changes with any byte, name, dtype or shape of the weights") {
  const TemporaryDirectory directory;
  write_single(directory);
  const std::string plain = fingerprint(directory);
  const auto other = [&](std::string_view name, std::string_view dtype, std::string_view shape,
                         const char* data) {
    directory.write(
        "model.safetensors",
        weights_file({tensor_json(name, dtype, shape, 0, 8), tensor_json("b", "BF16", "[2]", 8, 12)}, data));
    return fingerprint(directory);
  };
  CHECK(other("a", "F32", "[2,1]", "aaaabbbbccdd") == plain);
  CHECK(other("c", "F32", "[2,1]", "aaaabbbbccdd") != plain);
  CHECK(other("a", "I32", "[2,1]", "aaaabbbbccdd") != plain);
  CHECK(other("a", "F32", "[1,2]", "aaaabbbbccdd") != plain);
  CHECK(other("a", "F32", "[2,1]", "aaaabbbbccde") != plain);
}

TEST_CASE("the fingerprint of many blocks is the same with any number of threads, and can be cancelled") {
  const TemporaryDirectory directory;
  directory.write("config.json", kConfig);
  std::string data((std::size_t{50} << 20) + 3, 'x');
  directory.write("model.safetensors",
                  weights_file({tensor_json("a", "U8", "[52428803]", 0, data.size())}, data));
  const Checkpoint checkpoint = Checkpoint::open(directory.path());
  const std::string plain = checkpoint.fingerprint();
  ThreadPool pool(3);
  CHECK(checkpoint.fingerprint(&pool) == plain);
  CHECK_THROWS_AS(checkpoint.fingerprint(&pool, [](auto, auto, auto) { return false; }), Cancelled);
  data.back() = 'y';
  directory.write("other", weights_file({tensor_json("a", "U8", "[52428803]", 0, data.size())}, data));
  std::filesystem::rename(directory / "other", directory / "model.safetensors");
  CHECK(fingerprint(directory) != plain);
}
