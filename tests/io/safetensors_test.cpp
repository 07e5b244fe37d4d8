// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/io/safetensors.hpp>

#include "base/temporary_directory.hpp"
#include "io/safetensors_bytes.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

SafetensorsHeader parse(std::string_view file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "f.safetensors");
}

SafetensorsHeader parse(std::string_view header, std::size_t data_bytes) {
  return parse(safetensors_bytes(header, std::string(data_bytes, 'd')));
}

/// Checks that the file is refused with `text` in the error.
void refuses(std::string_view header, std::size_t data_bytes, const std::string& text) {
  INFO(header);
  CHECK_THROWS_AS(parse(header, data_bytes), FormatError);
  CHECK_THROWS_WITH(parse(header, data_bytes), Contains(text) && Contains("f.safetensors"));
}

}  // namespace

TEST_CASE("a safetensors header gives tensors, metadata and where the data begin") {
  const std::string_view text =
      R"({"__metadata__":{"format":"pt","é":"ü"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},)"
      R"("a":{"shape":[],"data_offsets":[0,2],"dtype":"BF16","later":[{"x":null}]}}  )";
  const SafetensorsHeader header = parse(text, 10);
  CHECK(header.data_begin == 8 + text.size());
  CHECK(header.metadata == std::map<std::string, std::string>{{"format", "pt"}, {"é", "ü"}});
  REQUIRE(header.tensors.size() == 2);
  CHECK(header.tensors.at("a").dtype == "BF16");
  CHECK(header.tensors.at("a").shape.empty());
  CHECK(header.tensors.at("b").shape == std::vector<std::uint64_t>{2, 1});
  CHECK(header.tensors.at("b").begin == 2);
  CHECK(header.tensors.at("b").bytes() == 8);
}

TEST_CASE("a safetensors file without tensors is valid") {
  CHECK(parse("{}", 0).tensors.empty());
  CHECK(parse(R"({"__metadata__":null})", 0).metadata.empty());
  CHECK(parse(R"({"e":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}})", 0).tensors.size() == 1);
}

TEST_CASE("a header length that the file cannot hold is refused") {
  CHECK_THROWS_WITH(parse("1234567"), Contains("at least 8 bytes"));
  CHECK_THROWS_WITH(parse(std::string("\x03\0\0\0\0\0\0\0{}", 10)), Contains("header length"));
  CHECK_THROWS_WITH(parse(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10)), Contains("at most 100000000"));
  CHECK_THROWS_WITH(parse(std::string(8, '\xff')), Contains("header length"));
}

TEST_CASE("a header that is not UTF-8 JSON from '{' on is refused") {
  refuses("", 0, "begins with '{'");
  refuses(" {}", 0, "begins with '{'");
  refuses("[]", 0, "begins with '{'");
  refuses("{", 0, "JSON");
  refuses("{}x", 0, "JSON");
  refuses(std::string_view("{}\0\0", 4), 0, "NUL");
  refuses("{\"\xff\":1}", 0, "JSON");
  refuses(R"({"\ud800":1})", 0, "JSON");
  refuses("{//\n}", 0, "JSON");
}

TEST_CASE("a header nested without end is refused") {
  const std::string deep(1'000'000, '[');
  refuses(R"({"a":{"x":)" + deep, 0, "nesting");
  std::string objects = R"({"a":)";
  for (int i = 0; i < 1000; ++i) objects += R"({"x":)";
  refuses(objects, 0, "nesting");
}

TEST_CASE("a key that comes twice is refused, whichever the reader would have believed") {
  refuses(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})",
      1, "once");
  refuses(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1, "once");
  refuses(R"({"__metadata__":{},"__metadata__":{}})", 0, "once");
  refuses(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "once");
}

TEST_CASE("a tensor whose fields are missing or of another type is refused") {
  refuses(R"({"a":1})", 0, "an object");
  refuses(R"({"a":null})", 0, "an object");
  refuses(R"({"a":["U8",[1],[0,1]]})", 1, "an object");
  refuses(R"({"a":{"dtype":"U8","shape":[1]}})", 1, "dtype, shape and data_offsets");
  refuses(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "dtype, shape and data_offsets");
  refuses(R"({"a":{"dtype":"u8","shape":[1],"data_offsets":[0,1]}})", 1, "known dtype");
  refuses(R"({"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}})", 1, "dtype");
  refuses(R"({"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})", 1, "dtype");
  refuses(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1, "shape");
  refuses(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "two data_offsets");
  refuses(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "two data_offsets");
  refuses(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,-1]}})", 1, "data_offsets");
  refuses(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}})", 1, "data_offsets");
}

TEST_CASE("metadata other than strings are refused") {
  refuses(R"({"__metadata__":{"a":1}})", 0, "a string");
  refuses(R"({"__metadata__":{"a":{}}})", 0, "a string");
  refuses(R"({"__metadata__":{"a":["b"]}})", 0, "a string");
  refuses(R"({"__metadata__":[]})", 0, "__metadata__");
  refuses(R"({"__metadata__":"x"})", 0, "__metadata__");
}

TEST_CASE("a size that overflows or is not in whole bytes is refused") {
  refuses(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "beyond 2^64");
  refuses(R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0, "beyond 2^64");
  refuses(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "whole bytes");
  CHECK(parse(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2).tensors.size() == 1);
  CHECK(parse(R"({"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", 3).tensors.size() == 1);
}

TEST_CASE("data_offsets that do not tile the data section are refused") {
  refuses(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}})", 2, "begin <= end");
  refuses(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1, "2 bytes of U8");
  refuses(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3, "begin where the one before ends");
  refuses(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
      3, "begin where the one before ends, at 2, got 1");
  refuses(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
      5, "at 2, got 3");
  refuses(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 3, "data section");
  refuses(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "data section");
  refuses("{}", 1, "data section");
}

TEST_CASE("every dtype of the reference has its bits") {
  CHECK(safetensors_bits("F4") == 4);
  CHECK(safetensors_bits("F6_E3M2") == 6);
  CHECK(safetensors_bits("BOOL") == 8);
  CHECK(safetensors_bits("F8_E4M3FNUZ") == 8);
  CHECK(safetensors_bits("BF16") == 16);
  CHECK(safetensors_bits("F32") == 32);
  CHECK(safetensors_bits("C64") == 64);
  CHECK(safetensors_bits("Q4") == 0);
}

TEST_CASE("a safetensors file gives each tensor's bytes in place, also to copies that outlive it") {
  const TemporaryDirectory directory;
  const auto path =
      directory.write("m", safetensors_bytes(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                             R"("a":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
                                             "12345"));
  SafetensorsFile file = SafetensorsFile::open(path);
  const SafetensorsFile copy = file;
  file = SafetensorsFile();
  CHECK(file.header().tensors.empty());
  const auto bytes = copy.bytes("a");
  CHECK(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == "345");
  CHECK(bytes.data() + bytes.size() == copy.file().bytes().data() + copy.file().bytes().size());
  CHECK_THROWS_WITH(copy.bytes("c"), Contains("a tensor 'c'"));
}

TEST_CASE("the error of a broken file names its path") {
  const TemporaryDirectory directory;
  CHECK_THROWS_WITH(SafetensorsFile::open(directory.write("broken", "{}")), Contains("broken"));
  CHECK_THROWS_AS(SafetensorsFile::open(directory / "none"), IoError);
}
