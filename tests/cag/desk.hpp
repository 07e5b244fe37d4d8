// SPDX-License-Identifier: Apache-2.0
// What the tests of knowledge caches share: a tiny model, two documents and a place for caches.
#pragma once

#include <cstring>
#include <filesystem>
#include <string_view>
#include <vector>

#include <modicum/cag/build.hpp>

#include "base/temporary_directory.hpp"
#include "support/tiny_model.hpp"

inline constexpr std::string_view kFees = "# Fees\nDay ticket: 4 euros\nYear card: 30 euros\n";
inline constexpr std::string_view kHours = "# Hours\nMonday: 9:00 to 17:00\n";

/// A model, two documents and a place for a cache.
struct Desk {
  Desk() {
    write_tiny_model(folder / "model");
    std::filesystem::create_directories(folder / "documents");
    folder.write("documents/fees.md", kFees);
    folder.write("documents/hours.md", kHours);
  }
  modicum::cag::Knowledge build(const modicum::Model& model, std::string_view name = "a.kv",
                                const modicum::cag::BuildOptions& options = {},
                                const modicum::Progress& progress = {}) const {
    const std::vector<std::filesystem::path> sources{folder / "documents"};
    return modicum::cag::build(model, sources, folder / name, options, progress);
  }
  TemporaryDirectory folder;
};

/// Logits of the token after `ids`, read from `from` on.
inline std::vector<float> logits_after(const modicum::Model& model, const modicum::KvTree& tree,
                                       const modicum::Branch& from, std::span<const modicum::TokenId> ids) {
  const modicum::Extension extension{from, ids};
  const modicum::Branch leaf = model.transformer().extend(tree, {&extension, 1}).front();
  std::vector<float> logits(model.config().vocab_size);
  model.transformer().logits({&leaf, 1}, logits);
  return logits;
}

/// Logits after the documents and a question.
inline std::vector<float> logits_of(const modicum::cag::Knowledge& knowledge, std::string_view question) {
  return logits_after(knowledge.model(), knowledge.tree(), knowledge.branch(),
                      knowledge.question_ids(question));
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
