// SPDX-License-Identifier: Apache-2.0
// A constraint that is written in Python.
#pragma once

#include <cstdint>
#include <unordered_map>

#include <modicum/search/constraint.hpp>

#include "bindings.hpp"

namespace modicum::python {

/// Around an object with `root()`, `allowed(state)` → (kind, data, may_end), `advance(state, token)` and
/// `ending(state)` → "no", "may" or "must"; states are any Python objects. Called with or without the GIL, by
/// one search at a time.
class PyConstraint : public Constraint {
 public:
  explicit PyConstraint(py::object automaton);
  ~PyConstraint() override;

  State root() const override;
  AllowedTokens allowed(State state, AllowedScratch& scratch) const override;
  State advance(State state, TokenId token) const override;
  Ending ending(State state) const override;
  bool ends_by_itself() const override { return ends_by_itself_; }
  void release(State state) const noexcept override;

 private:
  State keep(py::object object) const;

  py::object automaton_;
  bool ends_by_itself_;
  mutable std::unordered_map<State, py::object> states_;
  mutable State next_ = 0;
};

}  // namespace modicum::python
