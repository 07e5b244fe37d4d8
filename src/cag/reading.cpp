// SPDX-License-Identifier: Apache-2.0
#include "reading.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include <modicum/base/error.hpp>

#include "journal.hpp"
#include "knowledge_layout.hpp"
#include "rows.hpp"

namespace modicum::cag {
namespace {

/// Keys and values of a branch's last `count` tokens, gathered: the arena may hold them in pieces.
std::shared_ptr<const KvSegment> gather(const KvShape& shape, const Branch& leaf, std::size_t first,
                                        std::size_t count, std::size_t rotation) {
  const std::size_t row = shape.row_bytes();
  const auto memory = std::make_shared<std::vector<std::byte>>(2 * shape.layers * count * row);
  auto segment = std::make_shared<KvSegment>();
  segment->k = memory->data();
  segment->v = memory->data() + shape.layers * count * row;
  segment->layer_stride = count * row;
  segment->rows = count;
  segment->rotation = rotation;
  segment->owner = memory;
  std::size_t position = 0;
  for (const ops::KeyTile* tile : leaf.tiles()) {
    for (const ops::KeyRun& run : tile->runs) {
      const std::size_t begin = std::max(position, first);
      const std::size_t end = std::min(position + run.count, first + count);
      for (std::size_t layer = 0; begin < end && layer < shape.layers; ++layer) {
        const std::size_t from = layer * run.layer_stride + (run.first + begin - position) * row;
        const std::size_t to = layer * segment->layer_stride + (begin - first) * row;
        std::memcpy(segment->k + to, run.k + from, (end - begin) * row);
        std::memcpy(segment->v + to, run.v + from, (end - begin) * row);
      }
      position += run.count;
    }
  }
  return segment;
}

/// How many of the first tokens `old` has read, all wide and each after the same.
std::size_t common_tokens(const SharedPrompt& prompt, const KnowledgeFile& old) {
  const auto& ids = old.token_ids();
  const auto [end, unused] = std::mismatch(ids.begin(), ids.end(), prompt.ids.begin(), prompt.ids.end());
  auto common = static_cast<std::size_t>(end - ids.begin());
  for (const KnownSegment& segment : old.manifest().segments) {
    if (!segment.wide) common = std::min(common, segment.token_begin);
  }
  // Of the last token there must be the model's output, which the file has of its own last token alone.
  if (common == prompt.ids.size() && common != ids.size()) --common;
  return common;
}

/// Tokens that are read between two looks at the journal.
constexpr std::size_t kPieceTokens = 2048;

/// The progress of a part that begins at `done` of `total`.
Progress part_of(const Progress& progress, std::size_t done, std::size_t total) {
  if (!progress) return {};
  return [&progress, done, total](std::string_view stage, std::size_t of_part, std::size_t) {
    return progress(stage, done + of_part, total);
  };
}

Reading read_joint(const Transformer& transformer, const KvTree& tree, const SharedPrompt& prompt,
                   const KnowledgeFile* old, Journal* journal, const Progress& progress) {
  const std::span<const TokenId> ids(prompt.ids);
  const std::size_t common = old == nullptr ? 0 : common_tokens(prompt, *old);
  Reading reading;
  reading.segments = {{.token_begin = 0, .token_end = ids.size(), .document = {}}};
  Branch leaf = tree.root();
  for (std::size_t i = 0; common > 0 && i < old->segments().size(); ++i) {
    const KnownSegment& known = old->manifest().segments[i];
    if (known.token_begin >= common) break;
    const std::size_t count = std::min(known.token_end, common) - known.token_begin;
    leaf = tree.mount(leaf, ids.subspan(known.token_begin, count), old->segments()[i], old->hidden());
  }
  const auto finish = [&] {
    reading.segments.front().token_end = leaf.size();
    reading.hidden.assign(leaf.hidden().begin(), leaf.hidden().end());
    reading.rows = {gather(tree.shape(), leaf, 0, leaf.size(), 0)};
  };
  while (leaf.size() < ids.size()) {
    const std::size_t at = leaf.size();
    const Extension piece{leaf, ids.subspan(at, std::min(kPieceTokens, ids.size() - at))};
    leaf = transformer.extend(tree, {&piece, 1}, nullptr, part_of(progress, at - common, ids.size() - common))
               .front();
    if (journal != nullptr && journal->due() && leaf.size() < ids.size()) {
      finish();
      journal->save(reading, {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(leaf.size())});
    }
  }
  reading.computed = ids.size() - common;
  finish();
  return reading;
}

using Ids = std::vector<TokenId>;

/// Which segments of `old` hold which tokens, where it has the same instruction.
std::map<Ids, std::size_t> known_blocks(const SharedPrompt& prompt, const KnowledgeFile* old) {
  std::map<Ids, std::size_t> blocks;
  if (old == nullptr || old->manifest().layout != Layout::blocks) return blocks;
  const auto ids_of = [&](std::size_t i) {
    const KnownSegment& s = old->manifest().segments[i];
    return Ids(old->token_ids().begin() + static_cast<std::ptrdiff_t>(s.token_begin),
               old->token_ids().begin() + static_cast<std::ptrdiff_t>(s.token_end));
  };
  const PromptSegment& first = prompt.segments.front();
  const bool instruction = !first.document.has_value();
  const auto& segments = old->manifest().segments;
  if (instruction != !segments.front().document.has_value()) return blocks;
  const std::span<const TokenId> own(prompt.ids.data(), instruction ? first.token_end : 0);
  if (instruction && !std::ranges::equal(ids_of(0), own)) return blocks;
  for (std::size_t i = 0; i < segments.size(); ++i) blocks.emplace(ids_of(i), i);
  return blocks;
}

/// The segments that have been read, and their tokens.
void save_part(Journal& journal, const Reading& reading, const SharedPrompt& prompt) {
  Reading part;
  Ids ids;
  for (std::size_t i = 0; i < reading.segments.size(); ++i) {
    if (reading.rows[i] == nullptr || !reading.segments[i].wide) continue;
    const KnownSegment& segment = reading.segments[i];
    part.segments.push_back(segment);
    part.rows.push_back(reading.rows[i]);
    ids.insert(ids.end(), prompt.ids.begin() + static_cast<std::ptrdiff_t>(segment.token_begin),
               prompt.ids.begin() + static_cast<std::ptrdiff_t>(segment.token_end));
  }
  journal.save(part, std::move(ids));
}

Reading read_blocks(const Transformer& transformer, const KvTree& tree, const SharedPrompt& prompt,
                    const KnowledgeFile* old, Journal* journal, const Progress& progress) {
  const auto known = known_blocks(prompt, old);
  Reading reading;
  Branch instruction = tree.root();
  std::vector<Extension> extensions;
  std::vector<std::size_t> waiting;
  for (std::size_t i = 0; i < prompt.segments.size(); ++i) {
    const PromptSegment& segment = prompt.segments[i];
    const auto ids = std::span<const TokenId>(prompt.ids)
                         .subspan(segment.token_begin, segment.token_end - segment.token_begin);
    KnownSegment to{.token_begin = segment.token_begin,
                    .token_end = segment.token_end,
                    .rotation = instruction.size(),
                    .document = segment.document};
    std::shared_ptr<const KvSegment> rows;
    if (const auto at = known.find(Ids(ids.begin(), ids.end())); at != known.end()) {
      rows = old->segments()[at->second];
      to.wide = old->manifest().segments[at->second].wide;
      if (!segment.document) instruction = tree.mount(tree.root(), ids, rows);
    } else if (!segment.document) {
      const Extension extension{tree.root(), ids};
      instruction = transformer.extend(tree, {&extension, 1}).front();
      rows = gather(tree.shape(), instruction, 0, ids.size(), 0);
      reading.computed += ids.size();
    } else {
      extensions.push_back({instruction, ids});
      waiting.push_back(i);
      reading.computed += ids.size();
    }
    reading.segments.push_back(to);
    reading.rows.push_back(std::move(rows));
  }
  std::size_t total = 0, done = 0;
  for (const Extension& extension : extensions) total += extension.tokens.size();
  for (std::size_t first = 0, end = 0; first < extensions.size(); first = end) {
    std::size_t tokens = 0;
    while (end < extensions.size() &&
           (end == first || tokens + extensions[end].tokens.size() <= kPieceTokens)) {
      tokens += extensions[end++].tokens.size();
    }
    const auto piece = std::span(extensions).subspan(first, end - first);
    const std::vector<Branch> leaves =
        transformer.extend(tree, piece, nullptr, part_of(progress, done, total));
    for (std::size_t n = 0; n < leaves.size(); ++n) {
      const KnownSegment& segment = reading.segments[waiting[first + n]];
      reading.rows[waiting[first + n]] =
          gather(tree.shape(), leaves[n], segment.rotation, segment.tokens(), segment.rotation);
    }
    done += tokens;
    if (journal != nullptr && journal->due() && end < extensions.size()) save_part(*journal, reading, prompt);
  }
  return reading;
}

/// Rows [first, first + count) of a wide segment as codes.
std::shared_ptr<const KvSegment> encode_rows(const KvSegment& wide, std::size_t first, std::size_t count,
                                             const Manifest& manifest, int bits) {
  struct Memory {
    std::vector<std::byte> k, v;
    std::vector<f16> k_scales, v_scales;
  };
  const auto memory = std::make_shared<Memory>();
  const ops::KvCodesShape shape = codes_shape(manifest, count, bits);
  const auto add = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  for (std::size_t layer = 0; layer < manifest.shape.layers; ++layer) {
    const std::size_t at = layer * wide.layer_stride + first * manifest.shape.row_bytes();
    const ops::KvCodes codes = ops::quantize_kv(shape, wide.k + at, wide.v + at);
    add(memory->k, codes.k);
    add(memory->v, codes.v);
    add(memory->k_scales, codes.k_scales);
    add(memory->v_scales, codes.v_scales);
  }
  auto segment = std::make_shared<KvSegment>();
  segment->k = memory->k.data();
  segment->v = memory->v.data();
  segment->layer_stride = count * shape.row_bytes();
  segment->rows = count;
  segment->rotation = wide.rotation + first;
  segment->scales = ops::KvScales{.bits = bits,
                                  .k = memory->k_scales.data(),
                                  .v = memory->v_scales.data(),
                                  .k_stride = groups_of(count) * 2 * shape.width(),
                                  .v_stride = count * 2 * manifest.kv_heads};
  segment->owner = memory;
  return segment;
}

/// Rows [0, count) of a wide segment.
std::shared_ptr<const KvSegment> head_of(const std::shared_ptr<const KvSegment>& wide, std::size_t count) {
  auto segment = std::make_shared<KvSegment>(*wide);
  segment->rows = count;
  return segment;
}

}  // namespace

Reading read_prompt(const Transformer& transformer, const KvTree& tree, const SharedPrompt& prompt,
                    Layout layout, const KnowledgeFile* old, Journal* journal, const Progress& progress) {
  return layout == Layout::joint ? read_joint(transformer, tree, prompt, old, journal, progress)
                                 : read_blocks(transformer, tree, prompt, old, journal, progress);
}

Reading encode(const Reading& reading, const Manifest& manifest, KvEncoding encoding) {
  if (encoding == KvEncoding::wide) return reading;
  const int bits = bits_of(encoding);
  Reading out;
  out.hidden = reading.hidden;
  out.computed = reading.computed;
  for (std::size_t i = 0; i < reading.segments.size(); ++i) {
    KnownSegment segment = reading.segments[i];
    const auto& rows = reading.rows[i];
    const bool instruction = manifest.layout == Layout::blocks && !segment.document;
    const std::size_t sinks =
        manifest.layout == Layout::joint ? std::min(kSinkTokens, segment.tokens()) : std::size_t{0};
    if (!segment.wide || instruction || sinks == segment.tokens()) {
      out.segments.push_back(segment);
      out.rows.push_back(rows);
      continue;
    }
    if (sinks > 0) {
      KnownSegment first = segment;
      first.token_end = segment.token_begin + sinks;
      out.segments.push_back(first);
      out.rows.push_back(head_of(rows, sinks));
    }
    out.rows.push_back(encode_rows(*rows, sinks, segment.tokens() - sinks, manifest, bits));
    segment.token_begin += sinks;
    segment.rotation += sinks;
    segment.wide = false;
    out.segments.push_back(segment);
  }
  return out;
}

void write_reading(const std::filesystem::path& path, const Manifest& manifest, const SharedPrompt& prompt,
                   const Reading& reading, const std::optional<FileIdentity>& replaced) {
  KnowledgeContent content{.manifest = manifest, .prompt = prompt, .hidden = reading.hidden, .rows = {}};
  for (const auto& rows : reading.rows) content.rows.push_back({run_of(*rows)});
  write_knowledge(path, content, replaced);
}

Branch compose(const Transformer& transformer, const KvTree& tree, std::span<const TokenId> ids,
               std::span<const KnownSegment> segments, std::span<const std::shared_ptr<const KvSegment>> rows,
               std::span<const std::size_t> chosen, std::size_t recompute, std::span<const float> hidden) {
  Branch leaf = tree.root();
  std::vector<Branch> anew;
  for (const std::size_t i : chosen) {
    const KnownSegment& segment = segments[i];
    const auto own = ids.subspan(segment.token_begin, segment.tokens());
    std::size_t first = 0;
    if (leaf.size() != segment.rotation && recompute > 0) {
      first = std::min(recompute, own.size());
      leaf = tree.grow(leaf, own.first(first));
      anew.push_back(leaf);
    }
    if (first < own.size()) {
      std::vector<float> last(i == chosen.back() ? hidden.begin() : hidden.end(), hidden.end());
      leaf = tree.mount(leaf, own.subspan(first), rows[i], std::move(last), first);
    }
  }
  if (!anew.empty()) transformer.read(anew);
  return leaf;
}

}  // namespace modicum::cag
