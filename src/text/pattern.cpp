// SPDX-License-Identifier: Apache-2.0
#include "pattern.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"
#include "regex_syntax.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

template <auto Free>
struct Freer {
  template <class T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};

/// What matching writes to; one for each thread, as a pattern is shared between threads.
struct Workspace {
  std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>> data{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>> context{
      pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(32 << 10, 4 << 20, nullptr)};

  Workspace() {
    if (!data || !context) fail<OutOfMemory>({.op = "tokenizer.encode", .what = "memory for matching"});
    pcre2_set_match_limit(context.get(), 20'000'000);
    pcre2_set_heap_limit(context.get(), 512 << 10);  // KiB
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

}  // namespace

struct Pattern::Regex {
  TranslatedPattern translated;
  std::string source;
  std::unique_ptr<pcre2_code, Freer<pcre2_code_free>> code;
  bool compiled_to_machine_code = false;

  explicit Regex(std::string_view pattern) : translated(translate_pattern(pattern)), source(pattern) {
    int error = 0;
    PCRE2_SIZE where = 0;
    const std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>> context(
        pcre2_compile_context_create(nullptr));
    if (context) pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.pcre2.data()), translated.pcre2.size(),
                             PCRE2_MULTILINE | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &error, &where,
                             context.get()));
    if (!code) {
      char message[256] = "";
      pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
      fail<Unsupported>({.op = "tokenizer.load",
                         .what = "the pattern " + quote(pattern),
                         .expected = "one that PCRE2 takes",
                         .got = message});
    }
    compiled_to_machine_code = pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) == 0;
  }

  /// Finds the first match that begins at `at` or later; false where there is none.
  bool search(std::string_view subject, std::size_t at, std::size_t& begin, std::size_t& end) const {
    Workspace& space = workspace();
    const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
    int result = PCRE2_ERROR_JIT_STACKLIMIT;
    if (compiled_to_machine_code) {
      result =
          pcre2_jit_match(code.get(), text, subject.size(), at, 0, space.data.get(), space.context.get());
    }
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      // The interpreter backtracks on the heap, within the limit above.
      result = pcre2_match(code.get(), text, subject.size(), at, PCRE2_NO_JIT, space.data.get(),
                           space.context.get());
    }
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      fail<Unsupported>({.op = "tokenizer.encode",
                         .what = "the pattern " + quote(source),
                         .expected = "matching within the limits of time and memory",
                         .got = "a text that exceeds them"});
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.data.get());
    begin = range[0];
    end = range[1];
    return true;
  }

  void find(std::string_view text, std::vector<Match>& out) const {
    const bool ascii = is_ascii(text);
    const std::string spelt = ascii ? std::string() : translated.alphabet.spell(text);
    const std::string_view subject = ascii ? text : std::string_view(spelt);
    // Letters and bytes go in step; matches come in order, so that one walk converts all.
    std::size_t letter = 0, byte = 0;
    const auto to_byte = [&](std::size_t place) {
      if (ascii) return place;
      for (; letter < place; ++letter) byte += utf8_length_at(text, byte);
      return byte;
    };
    std::size_t from = 0, previous = 0, begin = 0, end = 0;
    bool any = false;
    std::size_t last_end = 0;
    while (from <= subject.size() && search(subject, from, begin, end)) {
      if (begin == end && any && end == last_end) {
        // No empty match right behind a match.
        ++from;
        continue;
      }
      any = true;
      from = last_end = end;
      const std::size_t b = to_byte(begin), e = to_byte(end);
      if (previous != b) out.push_back({previous, b, false});
      out.push_back({b, e, true});
      previous = e;
    }
    if (previous != text.size()) out.push_back({previous, text.size(), false});
  }
};

Pattern Pattern::literal(std::string text) {
  Pattern pattern;
  // The empty string matches between all characters, which the other branch knows how to do.
  if (text.empty()) return regex("");
  pattern.literal_ = std::move(text);
  return pattern;
}

Pattern Pattern::regex(std::string_view source) {
  Pattern pattern;
  pattern.regex_ = std::make_shared<const Regex>(source);
  return pattern;
}

Pattern Pattern::parse(const Json& json, const std::string& where) {
  const JsonFields fields(json, "tokenizer.load", where + ".");
  if (fields.has("String")) return literal(fields.text("String"));
  if (fields.has("Regex")) return regex(fields.text("Regex"));
  fail<FormatError>(
      {.op = "tokenizer.load", .what = where, .expected = "a String or a Regex", .got = excerpt(json)});
}

void Pattern::find(std::string_view text, std::vector<Match>& out) const {
  out.clear();
  if (text.empty()) {
    out.push_back({0, 0, false});
    return;
  }
  if (regex_) {
    regex_->find(text, out);
    return;
  }
  std::size_t at = 0;
  for (std::size_t hit; (hit = text.find(literal_, at)) != std::string_view::npos;
       at = hit + literal_.size()) {
    if (hit != at) out.push_back({at, hit, false});
    out.push_back({hit, hit + literal_.size(), true});
  }
  if (at != text.size()) out.push_back({at, text.size(), false});
}

}  // namespace modicum::text
