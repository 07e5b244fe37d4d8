// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <modicum/search/constraint.hpp>

namespace modicum {

/// Texts that several constraints allow: a grammar without certain words, say.
class AllOf : public Constraint {
 public:
  /// Throws `InvalidArgument` for none.
  explicit AllOf(std::vector<std::shared_ptr<const Constraint>> parts);

  State root() const override;
  AllowedTokens allowed(State state, AllowedScratch& scratch) const override;
  State advance(State state, TokenId token) const override;
  bool allows(State state, TokenId token) const override;
  Ending ending(State state) const override;
  bool ends_by_itself() const override;
  std::size_t progress(State state) const override;
  std::size_t required() const override;
  void release(State state) const noexcept override;
  std::string_view tokenizer_fingerprint() const override;

 private:
  std::vector<State> states(State state) const;
  State keep(std::vector<State> states) const;

  std::vector<std::shared_ptr<const Constraint>> parts_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<State, std::vector<State>> states_;  ///< of each part
  mutable State next_ = 0;
};

}  // namespace modicum
