// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <modicum/base/error.hpp>
#include <modicum/io/safetensors.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

const std::vector<TensorSpec> kSpecs = {{"z", "U8", {2, 2}}, {"none", "F32", {0}}, {"a", "BF16", {}}};

}  // namespace

TEST_CASE("what the writer streams in pieces of any size reads back") {
  for (const std::size_t piece : {1u, 2u, 3u, 6u}) {
    const TemporaryDirectory directory;
    SafetensorsWriter writer(directory / "m", kSpecs, {{"format", "pt"}, {"quote", "\"é\""}});
    const std::string data = "123456";
    for (std::size_t i = 0; i < data.size(); i += piece) {
      CHECK(writer.remaining() == data.size() - i);
      writer.append(bytes_of(std::string_view(data).substr(i, piece)));
    }
    CHECK_FALSE(std::filesystem::exists(directory / "m"));
    writer.commit();
    const SafetensorsFile file = SafetensorsFile::open(directory / "m");
    CHECK(text_of(file.bytes("z")) == "1234");
    CHECK(text_of(file.bytes("a")) == "56");
    CHECK(file.bytes("none").empty());
    CHECK(file.info("z").shape == std::vector<std::uint64_t>{2, 2});
    CHECK(file.header().metadata.at("quote") == "\"é\"");
    CHECK(directory.read("m").starts_with(writer.header()));
  }
}

TEST_CASE("data begin at a multiple of the alignment") {
  for (const std::size_t alignment : {1u, 8u, 64u, 4096u}) {
    const TemporaryDirectory directory;
    SafetensorsWriter writer(directory / "m", kSpecs, {}, alignment);
    writer.append(bytes_of("123456"));
    writer.commit();
    CHECK(SafetensorsFile::open(directory / "m").header().data_begin % alignment == 0);
  }
}

TEST_CASE("a file of no tensors can be written") {
  const TemporaryDirectory directory;
  SafetensorsWriter(directory / "m", {}).commit();
  CHECK(SafetensorsFile::open(directory / "m").header().tensors.empty());
}

TEST_CASE("the writer gives the file its mode") {
  const TemporaryDirectory directory;
  SafetensorsWriter(directory / "m", {}, {}, 8, 0600).commit();
  struct stat status {};
  REQUIRE(::stat((directory / "m").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
}

TEST_CASE("too many bytes and too few are refused, and too few leave no file") {
  const TemporaryDirectory directory;
  {
    SafetensorsWriter writer(directory / "m", kSpecs);
    writer.append(bytes_of("12345"));
    CHECK_THROWS_WITH(writer.append(bytes_of("67")), Contains("at most 1 bytes more"));
    CHECK_THROWS_AS(writer.commit(), InvalidArgument);
    CHECK_THROWS_WITH(writer.commit(), Contains("6 bytes, got 5"));
  }
  CHECK(directory.names().empty());
}

TEST_CASE("specs that the format cannot hold are refused before anything is written") {
  const TemporaryDirectory directory;
  const auto refuses = [&](std::vector<TensorSpec> specs, const std::string& text) {
    CHECK_THROWS_AS(SafetensorsWriter(directory / "m", specs), InvalidArgument);
    CHECK_THROWS_WITH(SafetensorsWriter(directory / "m", specs), Contains(text));
  };
  refuses({{"a", "U8", {1}}, {"a", "U8", {1}}}, "once");
  refuses({{"__metadata__", "U8", {1}}}, "reserves");
  refuses({{"a", "f32", {1}}}, "known dtype");
  refuses({{"a", "F4", {3}}}, "whole bytes");
  refuses({{"a", "F64", {1ull << 60, 2}}}, "beyond 2^64");
  refuses({{"a", "U8", {1ull << 60, 8}}}, "beyond 2^64");
  refuses({{"\xff", "U8", {1}}}, "UTF-8");
  CHECK_THROWS_WITH(SafetensorsWriter(directory / "m", {}, {}, 0), Contains("alignment"));
  CHECK(directory.names().empty());
}
