// SPDX-License-Identifier: Apache-2.0
#include "name_pattern.hpp"

#include <cstddef>
#include <vector>

namespace modicum {
namespace {

struct Atom {
  enum class Kind { character, any, digit, end } kind = Kind::character;
  char character = '\0';
  bool optional = false;
  bool repeated = false;

  bool accepts(char c) const {
    switch (kind) {
      case Kind::character:
        return c == character;
      case Kind::any:
        return c != '\n';
      case Kind::digit:
        return c >= '0' && c <= '9';
      case Kind::end:
        break;
    }
    return false;
  }
};

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::optional<Atom> escaped(char c) {
  if (c == 'd') return Atom{.kind = Atom::Kind::digit};
  if (is_alphanumeric(c)) return std::nullopt;
  return Atom{.character = c};
}

std::optional<std::vector<Atom>> parse(std::string_view pattern) {
  constexpr std::string_view kSpecial = "*+?()[]{}|^$\\";
  std::vector<Atom> atoms;
  std::size_t i = pattern.starts_with('^') ? 1 : 0;
  while (i < pattern.size()) {
    Atom atom{.character = pattern[i]};
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      const std::optional<Atom> known = escaped(pattern[++i]);
      if (!known) return std::nullopt;
      atom = *known;
    } else if (pattern[i] == '.') {
      atom.kind = Atom::Kind::any;
    } else if (pattern[i] == '$' && i + 1 == pattern.size()) {
      atom.kind = Atom::Kind::end;
    } else if (kSpecial.find(pattern[i]) != std::string_view::npos) {
      return std::nullopt;
    }
    ++i;
    if (i < pattern.size() && (pattern[i] == '*' || pattern[i] == '+' || pattern[i] == '?')) {
      atom.optional = pattern[i] != '+';
      atom.repeated = pattern[i] != '?';
      ++i;
    }
    atoms.push_back(atom);
  }
  return atoms;
}

/// Marks what can be reached without reading a character.
void skip_optional(const std::vector<Atom>& atoms, std::vector<char>& reached) {
  for (std::size_t i = 0; i < atoms.size(); ++i) {
    if (reached[i] != 0 && atoms[i].optional) reached[i + 1] = 1;
  }
}

}  // namespace

std::optional<bool> matches_pattern(std::string_view pattern, std::string_view name) {
  const std::optional<std::vector<Atom>> atoms = parse(pattern);
  if (!atoms) return std::nullopt;
  const std::size_t count = atoms->size();
  std::vector<char> reached(count + 1, 0);  // reached[i]: the atoms before i match what was read
  reached[0] = 1;
  skip_optional(*atoms, reached);
  for (const char c : name) {
    if (reached[count] != 0) return true;
    std::vector<char> next(count + 1, 0);
    for (std::size_t i = 0; i < count; ++i) {
      if (reached[i] == 0 || !(*atoms)[i].accepts(c)) continue;
      next[i + 1] = 1;
      if ((*atoms)[i].repeated) next[i] = 1;
    }
    skip_optional(*atoms, next);
    reached = next;
  }
  const bool at_end = count > 0 && (*atoms)[count - 1].kind == Atom::Kind::end && reached[count - 1] != 0;
  return reached[count] != 0 || at_end;
}

}  // namespace modicum
