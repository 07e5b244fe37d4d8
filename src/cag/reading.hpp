// SPDX-License-Identifier: Apache-2.0
// What a model makes of a prompt, on its way into a knowledge file.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/cag/knowledge_file.hpp>
#include <modicum/cag/prompt.hpp>
#include <modicum/model/transformer.hpp>

namespace modicum::cag {

class Journal;

/// So many first tokens stay wide whatever the encoding: attention leans on them wherever it looks (Xiao et
/// al. 2024, "attention sinks", arXiv:2309.17453).
inline constexpr std::size_t kSinkTokens = 16;

/// Segments with their keys and values, wide or encoded, that stand in memory or in another knowledge file.
struct Reading {
  std::vector<KnownSegment> segments;
  std::vector<std::shared_ptr<const KvSegment>> rows;  ///< of each
  std::vector<float> hidden;                           ///< joint: the model's output at the last token
  std::size_t computed = 0;                            ///< tokens that were not taken over
};

/// Reads a prompt. What `old`, if given, has read before of the same tokens is taken over: of a joint prompt
/// the tokens before the first that differs (from wide segments only), of blocks every segment that stands in
/// it as well, in the encoding it has there. The result is bit-identical to a reading
/// without `old`. Now and then what was read so far goes to `journal`, if given.
Reading read_prompt(const Transformer& transformer, const KvTree& tree, const SharedPrompt& prompt,
                    Layout layout, const KnowledgeFile* old, Journal* journal, const Progress& progress);

/// The same reading with the segments that may be encoded in `encoding`: of a joint prompt all but the sinks,
/// of blocks all documents.
Reading encode(const Reading& reading, const Manifest& manifest, KvEncoding encoding);

/// Writes a knowledge file (see `write_knowledge`) of what was read; `manifest` names its segments.
void write_reading(const std::filesystem::path& path, const Manifest& manifest, const SharedPrompt& prompt,
                   const Reading& reading, const std::optional<FileIdentity>& replaced = std::nullopt);

/// A path of the tree through the chosen segments, in that order. The first `recompute` tokens of a segment
/// that does not stand where it was read are computed anew, in place: they had taken the part of attention
/// sinks (Hu et al. 2025, "EPIC", arXiv:2410.15332, section 4).
Branch compose(const Transformer& transformer, const KvTree& tree, std::span<const TokenId> ids,
               std::span<const KnownSegment> segments, std::span<const std::shared_ptr<const KvSegment>> rows,
               std::span<const std::size_t> chosen, std::size_t recompute,
               std::span<const float> hidden = {});

}  // namespace modicum::cag
