// SPDX-License-Identifier: Apache-2.0
// Models without weights, for tests of what stands on `StepModel`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include <modicum/decode/step_model.hpp>

namespace toy {

using modicum::Step;
using modicum::TokenId;

inline std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Its logits are a hash of all tokens read so far: multiples of 2^-19 in [0, 16), exact in f32, equal ones
/// rare. Tokens 1 to 3, which tests use as stop tokens, get 4 more so that they are chosen now and then.
struct HashModel {
  using State = std::uint64_t;
  std::size_t vocabulary = 160;

  std::size_t vocabulary_size() const { return vocabulary; }

  static State read(State state, TokenId token) {
    return mix(state ^ (static_cast<std::uint64_t>(token) + 1) * 0x9e3779b97f4a7c15u);
  }
  static State read_all(std::span<const TokenId> tokens) {
    State state = 1;
    for (const TokenId token : tokens) {
      state = read(state, token);
    }
    return state;
  }

  std::vector<float> logits(State state) const {
    std::vector<float> out(vocabulary);
    for (std::size_t t = 0; t < vocabulary; ++t) {
      const auto hash = static_cast<float>(mix(state + t * 0xd1b54a32d192ed03u) >> 41);
      out[t] = hash * 0x1p-19f + (t >= 1 && t <= 3 ? 4.0f : 0.0f);
    }
    return out;
  }

  std::vector<State> step(std::span<const Step<State>> steps, std::span<float> out) {
    std::vector<State> states;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      states.push_back(read(steps[i].parent, steps[i].token));
      std::ranges::copy(logits(states.back()), out.begin() + static_cast<std::ptrdiff_t>(i * vocabulary));
    }
    return states;
  }
};

/// Says one fixed sequence of tokens whatever it is fed; its state counts what it was fed.
struct ScriptModel {
  using State = std::size_t;
  std::size_t vocabulary;
  std::vector<TokenId> script;

  std::size_t vocabulary_size() const { return vocabulary; }

  std::vector<float> logits(State state) const {
    std::vector<float> out(vocabulary, 0.0f);
    out.at(static_cast<std::size_t>(script.at(state))) = 10.0f;
    return out;
  }

  std::vector<State> step(std::span<const Step<State>> steps, std::span<float> out) {
    const State next = steps.front().parent + 1;
    std::ranges::copy(logits(next), out.begin());
    return {next};
  }
};

/// `HashModel` on a tree of nodes that die with their last handle, as a transformer's keys and values do.
class TreeModel {
 public:
  struct Node {
    std::uint64_t hash;
    std::shared_ptr<Node> parent;
    std::size_t* alive;

    Node(std::uint64_t h, std::shared_ptr<Node> p, std::size_t* count)
        : hash(h), parent(std::move(p)), alive(count) {
      ++*alive;
    }
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;
    ~Node() { --*alive; }
  };

  /// A counted handle; one that was moved from counts no more.
  class State {
   public:
    State(std::shared_ptr<Node> node, std::size_t* handles) : node_(std::move(node)), handles_(handles) {
      ++*handles_;
    }
    State(const State& other) : node_(other.node_), handles_(other.handles_) { *handles_ += node_ ? 1 : 0; }
    State(State&& other) noexcept : node_(std::move(other.node_)), handles_(other.handles_) {}
    State& operator=(State other) noexcept {
      std::swap(node_, other.node_);
      return *this;
    }
    ~State() { *handles_ -= node_ ? 1 : 0; }
    const std::shared_ptr<Node>& node() const { return node_; }

   private:
    std::shared_ptr<Node> node_;
    std::size_t* handles_;
  };

  /// What was alive when a step began, i.e. after the step before it was over.
  struct Snapshot {
    std::size_t steps;
    std::size_t handles;
    std::size_t nodes_alive;
    std::size_t nodes_reachable;  ///< from the parents in the step
  };

  std::vector<Snapshot> snapshots;
  std::size_t handles = 0;
  std::size_t nodes = 0;
  std::size_t fail_at = static_cast<std::size_t>(-1);  ///< the step that throws

  std::size_t vocabulary_size() const { return model_.vocabulary; }
  std::vector<float> logits(const State& state) const { return model_.logits(state.node()->hash); }
  State start(std::span<const TokenId> prompt) {
    return {std::make_shared<Node>(HashModel::read_all(prompt), nullptr, &nodes), &handles};
  }

  std::vector<State> step(std::span<const Step<State>> steps, std::span<float> out) {
    std::set<const Node*> reachable;
    for (const auto& s : steps) {
      for (const Node* node = s.parent.node().get(); node != nullptr; node = node->parent.get()) {
        reachable.insert(node);
      }
    }
    snapshots.push_back({steps.size(), handles, nodes, reachable.size()});
    if (snapshots.size() > fail_at) {
      throw std::runtime_error("out of luck");
    }
    std::vector<State> states;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const auto& parent = steps[i].parent.node();
      const std::uint64_t hash = HashModel::read(parent->hash, steps[i].token);
      states.emplace_back(std::make_shared<Node>(hash, parent, &nodes), &handles);
      std::ranges::copy(model_.logits(hash),
                        out.begin() + static_cast<std::ptrdiff_t>(i * model_.vocabulary));
    }
    return states;
  }

 private:
  HashModel model_;
};

static_assert(modicum::StepModel<HashModel>);
static_assert(modicum::StepModel<ScriptModel>);
static_assert(modicum::StepModel<TreeModel>);

}  // namespace toy
