// SPDX-License-Identifier: Apache-2.0
#include "safetensors_header.hpp"

#include <utility>

#include <nlohmann/json.hpp>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"

namespace modicum {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxDepth = 127;  // serde_json's limit

/// Reads a header event by event, so that a hostile one of 100 MB costs no tree of 100 MB's worth of values
/// and no recursion. Depth 1 is the header, 2 a tensor (or `__metadata__`), 3 its shape or offsets; fields
/// that the format does not know are skipped at any depth.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view file) : file_(file) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() {
    // The reference reads `"__metadata__": null` as no metadata.
    if (depth_ == 1 && tensor_ == kMetadata) return true;
    return scalar("null");
  }
  bool boolean(bool value) { return scalar(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return scalar(std::to_string(value)); }
  bool number_float(double, const std::string& text) { return scalar(text); }
  bool binary(Json::binary_t&) { return scalar("binary"); }

  bool number_unsigned(std::uint64_t value) {
    if (depth_ != 3 || !known_field()) return scalar(std::to_string(value));
    if (field_ == "shape") {
      info_.shape.push_back(value);
    } else {
      if (offsets_ == 2) refuse("two data_offsets", "more");
      (offsets_++ == 0 ? info_.begin : info_.end) = value;
    }
    return true;
  }

  bool string(std::string& value) {
    if (depth_ == 2 && tensor_ == kMetadata) {
      if (!header_.metadata.emplace(field_, value).second)
        refuse("each metadata key once", quote(field_) + " twice");
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") return scalar("a string");
    if (safetensors_bits(value) == 0) refuse("a known dtype", quote(value));
    info_.dtype = value;
    return true;
  }

  bool key(std::string& value) {
    if (depth_ == 1) {
      if (header_.tensors.contains(value) || (value == kMetadata && metadata_seen_)) {
        tensor_ = value;
        refuse("each key once", "it twice");
      }
      metadata_seen_ = metadata_seen_ || value == kMetadata;
      tensor_ = std::move(value);
    } else if (depth_ == 2) {
      field_ = std::move(value);
      if (tensor_ != kMetadata && known_field() && !mark(field_))
        refuse("each field once", field_ + " twice");
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (depth_ == 1) {
      info_ = {};
      seen_ = offsets_ = 0;
    } else if (depth_ == 2 && (tensor_ == kMetadata || known_field())) {
      scalar("an object");
    } else if (depth_ == 3 && known_field()) {
      scalar("an object");
    }
    return deeper();
  }

  bool end_object() {
    --depth_;
    if (depth_ != 1 || tensor_ == kMetadata) return true;
    if (seen_ != 7) refuse("dtype, shape and data_offsets", "fewer");
    if (offsets_ != 2) refuse("two data_offsets", std::to_string(offsets_));
    header_.tensors.emplace(tensor_, std::move(info_));
    return true;
  }

  bool start_array(std::size_t) {
    const bool list = depth_ == 2 && tensor_ != kMetadata && field_ != "dtype";
    if (depth_ <= 3 && !list) scalar("an array");
    return deeper();
  }
  bool end_array() {
    --depth_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) {
    fail<FormatError>({.op = "safetensors.open",
                       .what = "header of " + quote(file_),
                       .expected = "JSON",
                       .got = "an error at byte " + std::to_string(position) + " (" + error.what() + ")"});
  }

 private:
  static constexpr std::string_view kMetadata = "__metadata__";

  bool known_field() const { return field_ == "dtype" || field_ == "shape" || field_ == "data_offsets"; }
  bool mark(std::string_view field) {
    const unsigned bit = field == "dtype" ? 1 : field == "shape" ? 2 : 4;
    const bool first = (seen_ & bit) == 0;
    seen_ |= bit;
    return first;
  }
  bool deeper() {
    if (++depth_ > kMaxDepth) refuse("nesting of at most " + std::to_string(kMaxDepth), "more");
    return true;
  }

  /// A value that only a field unknown to the format may have.
  bool scalar(const std::string& got) const {
    if (depth_ <= 1) refuse("an object", got);
    if (tensor_ == kMetadata) refuse("a string as value of " + quote(field_), got);
    if (known_field()) {
      refuse(field_ == "dtype" ? "a name as dtype" : "non-negative integers in an array as " + field_, got);
    }
    return true;
  }

  [[noreturn]] void refuse(std::string expected, std::string got) const {
    fail<FormatError>({.op = "safetensors.open",
                       .what = "header entry '" + tensor_ + "' in " + quote(file_),
                       .expected = std::move(expected),
                       .got = std::move(got)});
  }

  std::string_view file_;
  SafetensorsHeader header_;
  std::size_t depth_ = 0;
  bool metadata_seen_ = false;
  std::string tensor_;  ///< the key at depth 1
  std::string field_;   ///< the key at depth 2
  TensorInfo info_;
  unsigned seen_ = 0;  ///< which of dtype (1), shape (2) and data_offsets (4) came
  std::size_t offsets_ = 0;
};

}  // namespace

SafetensorsHeader parse_header_json(std::string_view text, std::string_view file) {
  // nlohmann takes a NUL for the end of the text, and would let anything follow it.
  if (text.find('\0') != std::string_view::npos) {
    fail<FormatError>({.op = "safetensors.open",
                       .what = "header of " + quote(file),
                       .expected = "JSON",
                       .got = "a NUL byte"});
  }
  HeaderReader reader(file);
  nlohmann::json::sax_parse(text, &reader);
  return reader.take();
}

}  // namespace modicum
