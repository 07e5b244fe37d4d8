// SPDX-License-Identifier: Apache-2.0
// What a form of a cache loses, on the build's own text.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <modicum/cag/manifest.hpp>
#include <modicum/cag/prompt.hpp>
#include <modicum/model/transformer.hpp>

namespace modicum::cag {

/// Up to eight spans of up to 32 tokens, evenly from the documents: what a question and its answer talk
/// about. As many fewer tokens a span as the context leaves.
std::vector<std::vector<TokenId>> probe_spans(const SharedPrompt& prompt, std::size_t room);

/// Reads each span after both branches and compares the distributions of the next token. Both are of `tree`.
Measurement compare(const Transformer& transformer, const KvTree& tree, const Branch& reference,
                    const Branch& candidate, std::span<const std::vector<TokenId>> spans);

}  // namespace modicum::cag
