// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>

#include "io/checkpoint_fixture.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

const std::vector<TensorSpec> kSpecs = {
    {"a", "F32", {2, 1}}, {"none", "F32", {0, 4}}, {"b", "BF16", {2}}, {"c", "U8", {3}}};
constexpr std::string_view kData = "aaaabbbbccddeee";

std::vector<std::string> sorted_names(const TemporaryDirectory& directory) {
  std::vector<std::string> names = directory.names();
  std::sort(names.begin(), names.end());
  return names;
}

void write(const std::filesystem::path& directory, std::uint64_t shard_bytes, std::size_t piece) {
  CheckpointWriter writer(directory, kSpecs, shard_bytes);
  for (std::size_t i = 0; i < kData.size(); i += piece) writer.append(bytes_of(kData.substr(i, piece)));
  writer.commit();
}

void check_weights(const TemporaryDirectory& directory) {
  directory.write("config.json", kConfig);
  const Checkpoint checkpoint = Checkpoint::open(directory.path());
  const auto text = [&](const char* name) {
    const auto bytes = checkpoint.bytes(name);
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b", "c", "none"});
  CHECK(text("a") == "aaaabbbb");
  CHECK(text("b") == "ccdd");
  CHECK(text("c") == "eee");
  CHECK(checkpoint.files()[0].header().metadata.at("format") == "pt");
}

}  // namespace

TEST_CASE("weights that fit into one shard become model.safetensors") {
  const TemporaryDirectory directory;
  write(directory.path(), 15, 4);
  CHECK(sorted_names(directory) == std::vector<std::string>{"model.safetensors"});
  check_weights(directory);
}

TEST_CASE("weights beyond a shard's size become shards with an index, whatever the pieces they come in") {
  for (const std::size_t piece : {1u, 4u, 5u, 15u}) {
    const TemporaryDirectory directory;
    write(directory.path(), 8, piece);
    CHECK(sorted_names(directory) == std::vector<std::string>{"model-00001-of-00002.safetensors",
                                                              "model-00002-of-00002.safetensors",
                                                              "model.safetensors.index.json"});
    const std::string index = directory.read("model.safetensors.index.json");
    CHECK_THAT(index, Contains("\"total_size\": 15") && Contains("\"total_parameters\": 7"));
    CHECK_THAT(index, Contains("\"c\": \"model-00002-of-00002.safetensors\""));
    check_weights(directory);
  }
}

TEST_CASE("tensors larger than a shard get one each") {
  const TemporaryDirectory directory;
  write(directory.path(), 0, 15);
  CHECK(directory.names().size() == 5);  // four shards and the index
  check_weights(directory);
}

TEST_CASE("the sharding does not change the fingerprint") {
  std::string first;
  for (const std::uint64_t shard_bytes : {0u, 8u, 100u}) {
    const TemporaryDirectory directory;
    write(directory.path(), shard_bytes, 15);
    directory.write("config.json", kConfig);
    const std::string fingerprint = Checkpoint::open(directory.path()).fingerprint();
    if (first.empty()) first = fingerprint;
    CHECK(fingerprint == first);
  }
}

TEST_CASE("without a commit nothing stays in the directory") {
  const TemporaryDirectory directory;
  {
    CheckpointWriter writer(directory.path(), kSpecs, 8);
    writer.append(bytes_of(kData));
  }
  CHECK(directory.names().empty());
}

TEST_CASE("too many bytes and too few are refused, and too many leave the writer as it was") {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory.path(), kSpecs, 8);
  CHECK_THROWS_WITH(writer.append(bytes_of("0123456789abcdef")), Contains("at most 15 bytes more, got 16"));
  writer.append(bytes_of(kData.substr(0, 14)));
  CHECK_THROWS_AS(writer.commit(), InvalidArgument);
  writer.append(bytes_of(kData.substr(14)));
  writer.commit();
  check_weights(directory);
}

TEST_CASE("a directory that holds weights already is refused and stays as it was") {
  for (const char* name :
       {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}) {
    const TemporaryDirectory directory;
    directory.write(name, "old");
    CHECK_THROWS_AS(CheckpointWriter(directory.path(), kSpecs), InvalidArgument);
    CHECK_THROWS_WITH(CheckpointWriter(directory.path(), kSpecs), Contains(name));
    CHECK(directory.names() == std::vector<std::string>{name});
  }
}

TEST_CASE("weights that appear while others are being written are not overwritten") {
  const TemporaryDirectory directory;
  {
    CheckpointWriter writer(directory.path(), kSpecs);
    writer.append(bytes_of(kData));
    directory.write("model.safetensors", "theirs");
    CHECK_THROWS_AS(writer.commit(), InvalidArgument);
  }
  CHECK(directory.read("model.safetensors") == "theirs");
  CHECK(directory.names().size() == 1);
}

TEST_CASE("a missing directory is created; a file in its place is an IoError") {
  const TemporaryDirectory directory;
  write(directory / "new" / "one", 100, 15);
  CHECK(std::filesystem::exists(directory / "new/one/model.safetensors"));
  directory.write("file", "");
  CHECK_THROWS_AS(CheckpointWriter(directory / "file", kSpecs), IoError);
}

TEST_CASE("specs that a file cannot hold are refused, across shards too") {
  const TemporaryDirectory directory;
  CHECK_THROWS_AS(CheckpointWriter(directory.path(), {{"a", "U8", {1}}, {"a", "U8", {1}}}, 1),
                  InvalidArgument);
  CHECK_THROWS_AS(CheckpointWriter(directory.path(), {{"a", "X", {1}}}), InvalidArgument);
}
