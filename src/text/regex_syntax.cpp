// SPDX-License-Identifier: Apache-2.0
#include "regex_syntax.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

constexpr char32_t kLongS = 0x17F, kKelvin = 0x212A;  // what folds to s and k
constexpr int kMaxDepth = 64;
constexpr int kMaxRepeats = 1000;

constexpr std::string_view kCategoryNames[kCategories] = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

using CodePointSet = std::function<bool(char32_t)>;

bool is_digit(char32_t c) {
  return c >= '0' && c <= '9';
}
bool is_ascii_letter(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/// Reads a pattern twice: once to learn which code points it names, once to write it.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : source_(pattern), code_points_(to_code_points(pattern)) {}

  TranslatedPattern run() {
    pass();
    const Alphabet alphabet(boundaries_);
    alphabet_ = &alphabet;
    pass();
    return {std::move(out_), alphabet};
  }

 private:
  struct Width {
    bool may_be_empty;
    bool assertion;
  };

  void pass() {
    at_ = 0;
    out_.clear();
    alternatives(0, false);
    if (!done()) broken("unmatched )");
  }

  bool done() const { return at_ == code_points_.size(); }
  char32_t peek(std::size_t ahead = 0) const {
    return at_ + ahead < code_points_.size() ? code_points_[at_ + ahead] : 0;
  }
  bool take(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (at_ + i >= code_points_.size() || code_points_[at_ + i] != static_cast<unsigned char>(text[i]))
        return false;
    }
    at_ += text.size();
    return true;
  }

  [[noreturn]] void unsupported(const std::string& what) const {
    fail<Unsupported>({.op = "tokenizer.load", .what = what + " in the pattern " + quote(source_)});
  }
  [[noreturn]] void broken(const std::string& what) const {
    fail<FormatError>({.op = "tokenizer.load", .what = what + " in the pattern " + quote(source_)});
  }

  bool alternatives(int depth, bool fold) {
    if (depth > kMaxDepth) unsupported("groups nested more than " + std::to_string(kMaxDepth) + " deep");
    bool may_be_empty = sequence(depth, fold);
    while (take("|")) {
      out_ += '|';
      may_be_empty |= sequence(depth, fold);
    }
    return may_be_empty;
  }

  bool sequence(int depth, bool fold) {
    bool may_be_empty = true;
    previous_letter_ = 0;
    while (!done() && peek() != '|' && peek() != ')') {
      const Width width = atom(depth, fold);
      const bool optional = quantifier(width);
      may_be_empty &= width.may_be_empty || optional;
    }
    previous_letter_ = 0;
    return may_be_empty;
  }

  Width atom(int depth, bool fold) {
    const char32_t c = peek();
    if (c != '\\' && !is_ascii_letter(c)) previous_letter_ = 0;
    switch (c) {
      case '(':
        return group(depth, fold);
      case '[':
        ++at_;
        write(char_class(fold));
        return {false, false};
      case '.':
        ++at_;
        write([](char32_t x) { return x != '\n'; });
        return {false, false};
      case '^':
      case '$':
        ++at_;
        out_ += static_cast<char>(c);
        return {true, true};
      case '*':
      case '+':
      case '?':
        broken("a quantifier after nothing");
      case '{':
      case '}':
      case ']':
        unsupported("an unescaped " + std::string(1, static_cast<char>(c)));
      case '\\':
        return escape_atom(fold);
      default:
        ++at_;
        literal(c, fold);
        return {false, false};
    }
  }

  Width group(int depth, bool fold) {
    ++at_;
    bool assertion = false;
    std::string opening = "(?:";
    if (take("?")) {
      if (take("i:")) {
        fold = true;
      } else if (take("-i:")) {
        fold = false;
      } else if (take("i)")) {
        // Elsewhere than at the beginning the two engines disagree about how far it reaches.
        if (at_ != 4) unsupported("(?i) after the beginning");
        const bool may_be_empty = alternatives(depth + 1, true);
        return {may_be_empty, true};
      } else {
        opening = group_kind();
        assertion = opening != "(?:" && opening != "(?>";
      }
    }
    out_ += opening;
    const bool may_be_empty = alternatives(depth + 1, fold);
    if (!take(")")) broken("missing )");
    out_ += ')';
    previous_letter_ = 0;
    return {may_be_empty || assertion, assertion};
  }

  std::string group_kind() {
    for (const char* kind : {":", "=", "!", "<=", "<!", ">"}) {
      if (take(kind)) return std::string("(?") + kind;
    }
    if (take("<")) {
      while (!done() && peek() != '>') ++at_;
      if (!take(">")) broken("missing > of a named group");
      return "(?:";
    }
    unsupported("a group that begins with (?" + (done() ? std::string() : to_utf8(peek())));
  }

  /// Copies a quantifier; true where it allows for none.
  bool quantifier(const Width& width) {
    if (done()) return false;
    int low = 0, high = -1;
    const std::size_t begin = at_;
    bool counted = false;
    if (take("*")) {
      out_ += '*';
    } else if (take("+")) {
      low = 1;
      out_ += '+';
    } else if (take("?")) {
      high = 1;
      out_ += '?';
    } else if (peek() == '{') {
      counted = true;
      counts(low, high);
      out_.append("{").append(std::to_string(low)).append(",");
      out_.append(high < 0 ? std::string() : std::to_string(high)).append("}");
    } else {
      return false;
    }
    previous_letter_ = 0;
    if (width.assertion) unsupported("a quantifier after an assertion");
    if (width.may_be_empty && high != 1) unsupported("a quantifier after something that may be empty");
    if (peek() == '?' && counted && low == high) unsupported("{n}?");
    if (peek() == '+' && counted) unsupported("{n,m}+");
    if (peek() == '?' || peek() == '+') out_ += static_cast<char>(code_points_[at_++]);
    if (const char32_t next = peek(); next == '*' || next == '+' || next == '?' || next == '{') {
      unsupported("a quantifier after a quantifier");
    }
    return low == 0 && at_ > begin;
  }

  void counts(int& low, int& high) {
    ++at_;
    const auto number = [&]() -> std::optional<int> {
      if (!is_digit(peek())) return std::nullopt;
      int value = 0;
      while (is_digit(peek())) {
        value = value * 10 + static_cast<int>(code_points_[at_++] - '0');
        if (value > kMaxRepeats) unsupported("more than " + std::to_string(kMaxRepeats) + " repetitions");
      }
      return value;
    };
    const auto first = number();
    if (take(",")) {
      const auto second = number();
      if (!first && !second) unsupported("{,}");
      low = first.value_or(0);
      high = second.value_or(-1);
    } else {
      if (!first) unsupported("an unescaped {");
      low = high = *first;
    }
    if (!take("}")) unsupported("an unescaped {");
    if (high >= 0 && low > high) unsupported("{n,m} with n above m");
  }

  Width escape_atom(bool fold) {
    if (take("\\b") || take("\\B")) {
      const bool negated = code_points_[at_ - 1] == 'B';
      const std::string word = letters([](char32_t c) { return has_flag(c, kRegexWord); });
      const std::string at_edge = "(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + ")";
      const std::string inside = "(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + ")";
      out_ += "(?:" + (negated ? inside : at_edge) + ")";
      return {true, true};
    }
    for (const char* anchor : {"\\A", "\\z", "\\Z"}) {
      if (take(anchor)) {
        out_ += anchor;
        return {true, true};
      }
    }
    if (const auto set = class_escape(false)) {
      previous_letter_ = 0;
      write(*set);
    } else {
      literal(literal_escape(), fold);
    }
    return {false, false};
  }

  /// \s, \p{L} and the like; nothing where another escape stands here.
  std::optional<CodePointSet> class_escape(bool in_brackets) {
    const char32_t kind = peek(1);
    const auto flagged = [&](PropertyFlag flag, bool wanted) -> CodePointSet {
      at_ += 2;
      return [flag, wanted](char32_t c) { return has_flag(c, flag) == wanted; };
    };
    switch (kind) {
      case 's':
        return flagged(kRegexSpace, true);
      case 'S':
        return flagged(kRegexSpace, false);
      case 'w':
      case 'W':
        if (!in_brackets) return flagged(kRegexWord, kind == 'w');
        at_ += 2;
        // Oniguruma does not count superscripts and fractions here, though it does outside of brackets.
        return [wanted = kind == 'w'](char32_t c) {
          const PropertyRow& row = properties(c);
          return ((row.flags & kRegexWord) != 0 && row.category != static_cast<std::uint8_t>(Category::No)) ==
                 wanted;
        };
      case 'd':
      case 'D': {
        at_ += 2;
        return [wanted = kind == 'd'](char32_t c) {
          return (properties(c).category == static_cast<std::uint8_t>(Category::Nd)) == wanted;
        };
      }
      case 'p':
      case 'P':
        return property();
      default:
        return std::nullopt;
    }
  }

  CodePointSet property() {
    bool wanted = peek(1) == 'p';
    at_ += 2;
    if (!take("{")) broken("\\p without a name");
    if (take("^")) wanted = !wanted;
    std::string name;
    while (!done() && peek() != '}') append_utf8(name, code_points_[at_++]);
    if (!take("}")) broken("missing } of \\p{");
    std::uint32_t categories = 0;
    for (int i = 0; i < kCategories; ++i) {
      const std::string_view full = kCategoryNames[i];
      if (name == full || (name.size() == 1 && name[0] == full[0])) categories |= 1u << i;
    }
    if (categories == 0) unsupported("\\p{" + name + "}");
    return [=](char32_t c) { return ((categories >> properties(c).category & 1) != 0) == wanted; };
  }

  char32_t literal_escape() {
    ++at_;
    if (done()) broken("a \\ at the end");
    const char32_t c = code_points_[at_++];
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case 'x':
        return hexadecimal(peek() == '{', 2);
      case 'u':
        return hexadecimal(false, 4);
      default:
        break;
    }
    if (is_ascii_letter(c) || is_digit(c) || c >= 0x80) unsupported("\\" + to_utf8(c));
    return c;
  }

  char32_t hexadecimal(bool braced, int digits) {
    if (braced) ++at_;
    char32_t value = 0;
    int count = 0;
    for (; count < (braced ? 8 : digits); ++count) {
      const char32_t c = peek();
      const bool letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      if (!letter && !is_digit(c)) break;
      value = value * 16 + (is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
      ++at_;
    }
    if (count == 0 || (!braced && count < digits) || (braced && !take("}")))
      unsupported("this spelling of \\x or \\u");
    // A lone \x80 is a byte to the other engine, not a code point.
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000) ||
        (!braced && digits == 2 && value >= 0x80)) {
      unsupported("this code point in \\x or \\u");
    }
    return value;
  }

  CodePointSet char_class(bool fold) {
    const bool negated = take("^");
    if (negated && fold) unsupported("a negated class without regard to case");
    std::vector<CodePointSet> parts;
    if (peek() == ']') unsupported("an empty class");
    while (!take("]")) {
      if (done()) broken("missing ]");
      if (peek() == '[') unsupported("an unescaped [ in a class");
      if (peek() == '&' && peek(1) == '&') unsupported("&& in a class");
      if (peek() == '\\') {
        if (auto set = class_escape(true)) {
          if (fold) unsupported("a class escape without regard to case");
          if (peek() == '-' && peek(1) != ']') unsupported("- after a class escape");
          parts.push_back(std::move(*set));
          continue;
        }
      }
      parts.push_back(range(fold));
    }
    return [parts = std::move(parts), negated](char32_t c) {
      return std::any_of(parts.begin(), parts.end(), [&](const CodePointSet& part) { return part(c); }) !=
             negated;
    };
  }

  char32_t class_member() {
    if (peek() != '\\') return code_points_[at_++];
    if (peek(1) == 'b') unsupported("\\b in a class");
    return literal_escape();
  }

  CodePointSet range(bool fold) {
    const char32_t low = class_member();
    char32_t high = low;
    if (peek() == '-' && peek(1) != ']') {
      ++at_;
      if (done()) broken("missing ]");
      if (peek() == '[' || (peek() == '\\' && std::string_view("sSwWdDpP").find(static_cast<char>(peek(1))) !=
                                                  std::string_view::npos)) {
        unsupported("this end of a range");
      }
      high = class_member();
      if (high < low) broken("a range that runs backwards");
    }
    if (fold && high >= 0x80) unsupported("non-ASCII without regard to case");
    tell_apart(low, high);
    const auto within = [low, high](char32_t c) { return c >= low && c <= high; };
    if (!fold) return within;
    tell_apart(kLongS, kLongS);
    tell_apart(kKelvin, kKelvin);
    return [within](char32_t c) {
      const char32_t base = c == kLongS ? 's' : c == kKelvin ? 'k' : c;
      return within(base) || (is_ascii_letter(base) && within(base ^ 0x20));
    };
  }

  void literal(char32_t c, bool fold) {
    tell_apart(c, c);
    if (!fold || !is_ascii_letter(c)) {
      if (fold && c >= 0x80) unsupported("non-ASCII without regard to case");
      previous_letter_ = 0;
      write([c](char32_t x) { return x == c; });
      return;
    }
    // Oniguruma also lets ligatures and sharp s match these.
    const char32_t lower = c | 0x20;
    for (const char* pair : {"ss", "st", "ff", "fi", "fl"}) {
      if (previous_letter_ == static_cast<unsigned char>(pair[0]) &&
          lower == static_cast<unsigned char>(pair[1])) {
        unsupported(std::string(pair) + " without regard to case");
      }
    }
    previous_letter_ = lower;
    if (lower == 's') tell_apart(kLongS, kLongS);
    if (lower == 'k') tell_apart(kKelvin, kKelvin);
    write([lower](char32_t x) {
      return (is_ascii_letter(x) && (x | 0x20) == lower) || (x == kLongS && lower == 's') ||
             (x == kKelvin && lower == 'k');
    });
  }

  void tell_apart(char32_t low, char32_t high) {
    if (alphabet_ != nullptr) return;
    boundaries_.push_back(low);
    boundaries_.push_back(high + 1);
  }

  void write(const CodePointSet& set) { out_ += letters(set); }

  std::string letters(const CodePointSet& set) const {
    if (alphabet_ == nullptr) return {};
    std::array<bool, 256> members{};
    for (const auto& [letter, example] : alphabet_->examples()) members[letter] = set(example);
    const auto hex = [](int byte) {
      constexpr std::string_view kDigits = "0123456789abcdef";
      std::string text = "\\x";
      text += kDigits[static_cast<std::size_t>(byte >> 4)];
      return text += kDigits[static_cast<std::size_t>(byte & 15)];
    };
    std::string result;
    for (int begin = 0; begin < 256; ++begin) {
      if (!members[static_cast<std::size_t>(begin)]) continue;
      int end = begin;
      while (end < 255 && members[static_cast<std::size_t>(end + 1)]) ++end;
      result += hex(begin);
      if (end > begin) result.append("-").append(hex(end));
      begin = end;
    }
    if (result.empty()) return "[^\\x00-\\xff]";
    return std::string("[").append(result).append("]");
  }

  static std::string to_utf8(char32_t c) {
    std::string result;
    append_utf8(result, c);
    return result;
  }

  std::string_view source_;
  std::vector<char32_t> code_points_;
  std::size_t at_ = 0;
  std::string out_;
  std::vector<char32_t> boundaries_;
  const Alphabet* alphabet_ = nullptr;
  char32_t previous_letter_ = 0;  ///< the literal before, where it is a letter matched without regard to case
};

}  // namespace

TranslatedPattern translate_pattern(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace modicum::text
