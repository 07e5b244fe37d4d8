// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_json.hpp"

#include <limits>

#include <modicum/base/error.hpp>

#include "component.hpp"

namespace modicum::text {
namespace {

constexpr std::string_view kOp = "tokenizer.load";

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& got = {}) {
  fail<FormatError>({.op = kOp, .what = what, .expected = expected, .got = got});
}

/// Builds `rest`, but sends model.vocab and model.merges to their own tables.
class Reader : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(TokenizerJson& file) : file_(file) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return false; }

  bool number_unsigned(number_unsigned_t v) override {
    if (place_ != Place::vocabulary) return value(v);
    if (v > static_cast<std::uint64_t>(std::numeric_limits<TokenId>::max())) {
      refuse("id of " + quote(key_) + " in the vocabulary", "an id below 2^31", std::to_string(v));
    }
    file_.vocabulary.add(key_, static_cast<TokenId>(v));
    return true;
  }

  bool string(string_t& v) override {
    if (place_ == Place::merges) {
      legacy_merge(v);
    } else if (place_ == Place::merge) {
      if (merge_parts_ == 0) left_ = std::move(v);
      if (merge_parts_ == 1) right_ = std::move(v);
      ++merge_parts_;
    } else {
      return value(std::move(v));
    }
    return true;
  }

  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::rest && in_model() && key_ == "vocab") {
      place_ = Place::vocabulary;
      file_.vocabulary = Vocabulary();
      file_.has_vocabulary = true;
      return true;
    }
    if (open_.size() == 1 && key_ == "model") {
      file_.has_vocabulary = file_.has_merges = false;
      file_.merges.clear();
    }
    return open(Json::object());
  }
  bool end_object() override {
    if (place_ == Place::vocabulary) {
      place_ = Place::rest;
      return true;
    }
    return close();
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::merges) {
      place_ = Place::merge;
      merge_parts_ = 0;
      merge_spelling(Spelling::pair);
      return true;
    }
    if (place_ == Place::rest && in_model() && key_ == "merges") {
      place_ = Place::merges;
      spelling_ = Spelling::unknown;
      merge_number_ = 0;
      file_.merges.clear();
      file_.has_merges = true;
      return true;
    }
    return open(Json::array());
  }
  bool end_array() override {
    if (place_ == Place::merge) {
      if (merge_parts_ != 2) refuse(merge_name(), "two tokens", std::to_string(merge_parts_));
      file_.merges.add(left_, right_);
      ++merge_number_;
      place_ = Place::merges;
      return true;
    }
    if (place_ == Place::merges) {
      place_ = Place::rest;
      return true;
    }
    return close();
  }

  bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
    refuse("tokenizer.json", "JSON", json_error_text(error));
  }

 private:
  enum class Place { rest, vocabulary, merges, merge };
  enum class Spelling { unknown, pair, line };

  struct Level {
    Json* container;
    std::string key;
  };

  bool in_model() const {
    return open_.size() == 2 && open_[1].key == "model" && open_[1].container->is_object();
  }
  std::string merge_name() const { return "merge " + std::to_string(merge_number_); }

  void merge_spelling(Spelling spelling) {
    if (spelling_ != Spelling::unknown && spelling_ != spelling)
      refuse(merge_name(), "the spelling of those before");
    spelling_ = spelling;
  }

  /// "left right"; a line that begins with #version is a comment.
  void legacy_merge(std::string_view line) {
    merge_spelling(Spelling::line);
    if (line.starts_with("#version")) return;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      refuse(merge_name(), "two tokens with a space between them", quote(line));
    }
    file_.merges.add(line.substr(0, space), line.substr(space + 1));
    ++merge_number_;
  }

  template <class T>
  bool value(T&& v) {
    if (place_ == Place::vocabulary) refuse("id of " + quote(key_) + " in the vocabulary", "a number from 0");
    if (place_ != Place::rest) refuse(merge_name(), "a string or two strings");
    insert(Json(std::forward<T>(v)));
    return true;
  }

  Json* insert(Json v) {
    if (open_.empty()) {
      file_.rest = std::move(v);
      return &file_.rest;
    }
    Json& container = *open_.back().container;
    if (container.is_array()) {
      container.push_back(std::move(v));
      return &container.back();
    }
    return &(container[key_] = std::move(v));
  }

  bool open(Json v) {
    if (place_ == Place::vocabulary) refuse("id of " + quote(key_) + " in the vocabulary", "a number from 0");
    if (place_ != Place::rest) refuse(merge_name(), "two strings");
    if (open_.size() >= static_cast<std::size_t>(kMaxJsonDepth)) {
      refuse("tokenizer.json", "JSON nested at most " + std::to_string(kMaxJsonDepth) + " deep",
             "deeper nesting");
    }
    Json* container = insert(std::move(v));
    open_.push_back({container, key_});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  TokenizerJson& file_;
  std::vector<Level> open_;
  std::string key_;
  Place place_ = Place::rest;
  Spelling spelling_ = Spelling::unknown;
  std::string left_, right_;
  int merge_parts_ = 0;
  std::size_t merge_number_ = 0;
};

}  // namespace

void MergeTexts::add(std::string_view left, std::string_view right) {
  if (left.size() + right.size() > std::numeric_limits<std::uint32_t>::max())
    refuse("a merge", "less than 4 GiB");
  texts_.append(left).append(right);
  lengths_.push_back(static_cast<std::uint32_t>(left.size()));
  lengths_.push_back(static_cast<std::uint32_t>(right.size()));
}

void MergeTexts::clear() {
  texts_.clear();
  lengths_.clear();
}

TokenizerJson read_tokenizer_json(std::string_view text) {
  // nlohmann takes a NUL for the end of the text, and would let anything follow it.
  if (text.find('\0') != std::string_view::npos) refuse("tokenizer.json", "JSON", "a NUL byte");
  TokenizerJson file;
  Reader reader(file);
  Json::sax_parse(text.begin(), text.end(), &reader);
  if (!file.rest.is_object()) refuse("tokenizer.json", "a JSON object", excerpt(file.rest));
  file.vocabulary.finish();
  return file;
}

Bpe build_bpe(TokenizerJson& file) {
  static const Json kNull;
  const JsonFields model(file.rest.contains("model") ? file.rest["model"] : kNull, kOp, "model.");
  // Old files of byte-level BPE do not say what they are.
  const std::string type = model.text_or("type", "BPE");
  if (type != "BPE") fail<Unsupported>({.op = kOp, .what = "model " + quote(type) + " is not implemented"});
  if (!file.has_vocabulary || !file.has_merges) refuse("model", "an object vocab and an array merges");

  const auto text = [&](const char* field) {
    return model.has_value(field) ? model.text(field) : std::string();
  };
  const auto flag = [&](const char* field) {
    return model.has_value(field) && model.boolean_or(field, false);
  };
  if (model.has_value("dropout") &&
      !(model.at("dropout").is_number() && model.at("dropout").get<double>() == 0)) {
    model.refuse<Unsupported>("dropout", "null or 0");
  }
  BpeOptions options{.continuing_subword_prefix = text("continuing_subword_prefix"),
                     .end_of_word_suffix = text("end_of_word_suffix"),
                     .fuse_unk = flag("fuse_unk"),
                     .byte_fallback = flag("byte_fallback"),
                     .ignore_merges = flag("ignore_merges")};
  if (model.has_value("unk_token")) options.unk_token = model.text("unk_token");
  // Bytes of the mark would become tokens that stand for no text.
  if (options.byte_fallback && !(options.continuing_subword_prefix + options.end_of_word_suffix).empty()) {
    model.refuse<Unsupported>("byte_fallback", "false where subwords carry a prefix or suffix");
  }
  Bpe bpe(std::move(file.vocabulary), std::move(options));
  file.merges.for_each([&](std::string_view left, std::string_view right) { bpe.add_merge(left, right); });
  return bpe;
}

}  // namespace modicum::text
