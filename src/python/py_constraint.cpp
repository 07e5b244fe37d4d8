// SPDX-License-Identifier: Apache-2.0
#include "py_constraint.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace modicum::python {
namespace {

using MaskArray = py::array_t<std::uint32_t, py::array::c_style | py::array::forcecast>;

template <class Wanted>
Wanted returned(const py::object& value, const char* what, const char* expected) {
  try {
    return value.cast<Wanted>();
  } catch (const py::cast_error&) {
    fail({.op = "constraint",
          .what = what,
          .expected = expected,
          .got = py::repr(value).cast<std::string>().substr(0, 80)});
  }
}

}  // namespace

PyConstraint::PyConstraint(py::object automaton)
    : automaton_(std::move(automaton)), ends_by_itself_(automaton_.attr("ends_by_itself").cast<bool>()) {}

PyConstraint::~PyConstraint() {
  const py::gil_scoped_acquire gil;
  states_.clear();
  automaton_ = {};
}

Constraint::State PyConstraint::keep(py::object object) const {
  states_.emplace(next_, std::move(object));
  return next_++;
}

Constraint::State PyConstraint::root() const {
  const py::gil_scoped_acquire gil;
  return keep(automaton_.attr("root")());
}

AllowedTokens PyConstraint::allowed(State state, AllowedScratch& scratch) const {
  const py::gil_scoped_acquire gil;
  const py::object answer = automaton_.attr("allowed")(states_.at(state));
  const auto [kind, data, may_end] = returned<std::tuple<std::string, py::object, bool>>(
      answer, "allowed", "(\"all\", \"only\" or \"mask\"; its data; may_end)");
  AllowedTokens result{.may_end = may_end};
  if (kind == "only") {
    scratch.tokens = returned<Ids>(data, "allowed", "token ids");
    std::ranges::sort(scratch.tokens);
    const auto repeated = std::ranges::unique(scratch.tokens);
    scratch.tokens.erase(repeated.begin(), repeated.end());
    result.kind = AllowedTokens::Kind::only;
    result.tokens = scratch.tokens;
  } else if (kind == "mask") {
    const auto words = returned<MaskArray>(data, "allowed", "uint32 words of a bit mask");
    scratch.mask.assign(words.data(), words.data() + words.size());
    result.kind = AllowedTokens::Kind::mask;
    result.mask = scratch.mask;
  }
  return result;
}

Constraint::State PyConstraint::advance(State state, TokenId token) const {
  const py::gil_scoped_acquire gil;
  return keep(automaton_.attr("advance")(states_.at(state), token));
}

Constraint::Ending PyConstraint::ending(State state) const {
  const py::gil_scoped_acquire gil;
  const auto text = automaton_.attr("ending")(states_.at(state)).cast<std::string>();
  return text == "must" ? Ending::must : text == "may" ? Ending::may : Ending::no;
}

void PyConstraint::release(State state) const noexcept {
  const py::gil_scoped_acquire gil;
  states_.erase(state);
}

}  // namespace modicum::python
