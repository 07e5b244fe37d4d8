// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include <modicum/base/error.hpp>
#include <modicum/cag/build.hpp>
#include <modicum/ops/quantize_kv.hpp>

#include "../base/quote.hpp"
#include "draft.hpp"
#include "measure.hpp"

namespace modicum::cag {
namespace {

/// Relative differences that rounding explains: of bf16 rows on another instruction set, and of codes, whose
/// errors later layers carry on. Keys of another model differ by more than 1.
constexpr double kWideTolerance = 0.02;
constexpr double kCodedTolerance = 0.5;

void check_removed(std::span<const Document> documents, std::span<const std::string> remove) {
  for (const std::string& name : remove) {
    if (std::ranges::find(documents, name, &Document::name) != documents.end()) continue;
    std::string names;
    for (std::size_t i = 0; i < documents.size() && i < 20; ++i)
      names += (i == 0 ? "" : ", ") + documents[i].name;
    fail({.op = "cag.remove", .what = "document", .expected = "one of " + names, .got = quote(name)});
  }
}

void check_new(std::span<const Document> documents, std::span<const Document> put) {
  std::string known;
  for (const Document& document : put) {
    if (std::ranges::find(documents, document.name, &Document::name) == documents.end()) continue;
    known += (known.empty() ? "" : ", ") + quote(document.name);
  }
  if (known.empty()) return;
  fail({.op = "cag.add",
        .what = "documents",
        .expected = "new names",
        .got = known,
        .todo = "replace them with update"});
}

/// In anything that the file keeps: a citation names the source and the page, too.
bool differs(const Document& a, const Document& b) {
  return a.text != b.text || a.source != b.source || a.pages != b.pages || a.converted != b.converted ||
         a.changes_often != b.changes_often;
}

/// The documents after the change.
std::vector<Document> changed(std::vector<Document> documents, std::span<const Document> put,
                              std::span<const std::string> remove, Expected expected, Changes& changes) {
  const std::set<std::string> removed(remove.begin(), remove.end());
  std::erase_if(documents, [&](const Document& d) { return removed.contains(d.name); });
  changes.removed.assign(removed.begin(), removed.end());
  for (const Document& document : put) {
    const auto at = std::ranges::find(documents, document.name, &Document::name);
    if (at == documents.end() && expected == Expected::known_names) continue;
    if (at == documents.end()) {
      documents.push_back(document);
      changes.added.push_back(document.name);
    } else if (differs(*at, document)) {
      *at = document;
      changes.replaced.push_back(document.name);
    }
  }
  for (const Document& document : documents) {
    const auto listed = [&](const std::vector<std::string>& names) {
      return std::ranges::find(names, document.name) != names.end();
    };
    if (!listed(changes.added) && !listed(changes.replaced)) changes.unchanged.push_back(document.name);
  }
  return documents;
}

/// Wide rows of one layer as f32: of keys, or values.
std::vector<float> widened(DType dtype, const std::byte* rows, std::size_t count) {
  std::vector<float> out(count);
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    const T* from = reinterpret_cast<const T*>(rows);
    for (std::size_t i = 0; i < count; ++i) out[i] = to_f32(from[i]);
  });
  return out;
}

float decoded(const KvSegment& segment, const Manifest& m, std::size_t layer, std::size_t row, std::size_t i,
              bool key) {
  const ops::KvScales& s = *segment.scales;
  const std::size_t dim = m.head_dim(), head = i / dim, d = i % dim;
  const std::size_t row_bytes = m.shape.width * static_cast<std::size_t>(s.bits) / 8;
  const std::byte* at = (key ? segment.k : segment.v) + layer * segment.layer_stride + row * row_bytes +
                        head * dim * static_cast<std::size_t>(s.bits) / 8;
  const auto code = s.bits == 8   ? static_cast<unsigned>(at[d])
                    : d < dim / 2 ? static_cast<unsigned>(at[d]) & 15u
                                  : static_cast<unsigned>(at[d - dim / 2]) >> 4;
  const f16* scale = key ? s.k + layer * s.k_stride + row / ops::kKeyGroup * 2 * m.shape.width + i
                         : s.v + layer * s.v_stride + (row * m.kv_heads + head) * 2;
  return to_f32(scale[0]) * static_cast<float>(code) + to_f32(scale[key ? m.shape.width : 1]);
}

/// How far the rows of `leaf`'s own tokens are from rows [first, …) of a segment: root mean square of the
/// difference by that of the rows.
double difference(const Manifest& m, const KvSegment& segment, std::size_t first, const Branch& leaf) {
  double apart = 0, size = 0;
  const std::size_t width = m.shape.width;
  for (std::size_t layer = 0; layer < m.shape.layers; ++layer) {
    for (std::size_t r = 0; r < leaf.node_size(); ++r) {
      const auto [k, v] = leaf.write_row(layer, r);
      for (const bool key : {true, false}) {
        const std::vector<float> anew = widened(m.shape.dtype, key ? k : v, width);
        std::vector<float> kept(width);
        if (segment.scales) {
          for (std::size_t i = 0; i < width; ++i) kept[i] = decoded(segment, m, layer, first + r, i, key);
        } else {
          kept = widened(m.shape.dtype,
                         (key ? segment.k : segment.v) + layer * segment.layer_stride +
                             (first + r) * m.shape.row_bytes(),
                         width);
        }
        for (std::size_t i = 0; i < width; ++i) {
          apart += std::pow(static_cast<double>(anew[i]) - static_cast<double>(kept[i]), 2);
          size += std::pow(static_cast<double>(anew[i]), 2);
        }
      }
    }
  }
  return size > 0 ? std::sqrt(apart / size) : std::sqrt(apart);
}

/// Writes a knowledge file of `documents` in the place of `old`, in its layout and encoding, taking over what
/// `old` has read.
Changes write_update(const Model& model, const std::filesystem::path& path, const KnowledgeFile& old,
                     std::vector<Document> documents, const Progress& progress) {
  Manifest manifest = old.manifest();
  manifest.version = kFormatVersion;
  manifest.fingerprint = model.fingerprint();
  Draft draft = make_draft(model, std::move(documents), std::move(manifest));
  check_possible(model, draft, path);
  const KvTree tree = model.transformer().tree();
  const Reading reading =
      read_prompt(model.transformer(), tree, draft.prompt, draft.manifest.layout, &old, nullptr, progress);
  // In blocks, measuring would read everything again: new segments take the encoding of those that were kept,
  // and the certificate of the build stands.
  const bool keep = draft.manifest.layout == Layout::blocks;
  write_draft(
      path, draft,
      keep ? encode(reading, draft.manifest, draft.manifest.encoding) : certify(model, tree, draft, reading),
      old.identity());
  return {.computed_tokens = reading.computed, .tokens = draft.prompt.ids.size()};
}

}  // namespace

std::vector<Document> documents_of(const KnowledgeFile& file) {
  std::vector<Document> documents;
  for (std::size_t i = 0; i < file.manifest().documents.size(); ++i) {
    const KnownDocument& known = file.manifest().documents[i];
    documents.push_back({known.name, known.source, std::string(file.document_text(i)), known.pages,
                         known.converted, known.changes_often});
  }
  return documents;
}

Changes update(const Model& model, const std::filesystem::path& path, std::span<const Document> put,
               std::span<const std::string> remove, const Progress& progress, Expected expected) {
  if (!put.empty()) check_documents(put);
  const Knowledge knowledge = Knowledge::open(path, model);
  const KnowledgeFile& old = knowledge.file();
  old.verify(model.transformer().pool());
  Changes changes;
  std::vector<Document> before = documents_of(old);
  check_removed(before, remove);
  if (expected == Expected::new_names) check_new(before, put);
  std::vector<Document> after = changed(std::move(before), put, remove, expected, changes);
  changes.tokens = old.manifest().tokens;
  if (changes.added.empty() && changes.replaced.empty() && changes.removed.empty()) return changes;
  check_documents(after);
  const Changes written = write_update(model, path, old, std::move(after), progress);
  changes.computed_tokens = written.computed_tokens;
  changes.tokens = written.tokens;
  return changes;
}

void copy_rows(const KnowledgeFile& file, std::byte* k, std::byte* v) {
  const Manifest& m = file.manifest();
  const std::size_t row = m.shape.row_bytes();
  for (std::size_t layer = 0; layer < m.shape.layers; ++layer) {
    for (std::size_t i = 0; i < m.segments.size(); ++i) {
      const KvSegment& segment = *file.segments()[i];
      const std::size_t to = (layer * m.tokens + m.segments[i].token_begin) * row;
      if (!segment.scales) {
        std::memcpy(k + to, segment.k + layer * segment.layer_stride, segment.rows * row);
        std::memcpy(v + to, segment.v + layer * segment.layer_stride, segment.rows * row);
        continue;
      }
      dispatch(m.shape.dtype, [&](auto t) {
        using T = decltype(t);
        for (std::size_t e = 0; e < segment.rows * m.shape.width; ++e) {
          const std::size_t r = e / m.shape.width, d = e % m.shape.width;
          reinterpret_cast<T*>(k + to)[e] = from_f32<T>(decoded(segment, m, layer, r, d, true));
          reinterpret_cast<T*>(v + to)[e] = from_f32<T>(decoded(segment, m, layer, r, d, false));
        }
      });
    }
  }
}

DeepCheck verify_deep(const Model& model, const std::filesystem::path& path, std::size_t samples,
                      const Progress& progress) {
  const Knowledge knowledge = Knowledge::open(path, model);
  const KnowledgeFile& file = knowledge.file();
  const Manifest& m = file.manifest();
  file.verify_again(model.transformer().pool());
  const KvTree tree = model.transformer().tree();
  const std::span<const TokenId> ids(file.token_ids());
  constexpr std::size_t kRun = 16;
  const std::size_t runs = std::clamp<std::size_t>(samples / kRun, 1, (m.tokens + kRun - 1) / kRun);
  DeepCheck check;
  for (std::size_t n = 0; n < runs; ++n) {
    report(progress, "verify", n, runs);
    const std::size_t at = n * m.tokens / runs;
    const auto segment =
        std::ranges::find_if(m.segments, [&](const KnownSegment& s) { return at < s.token_end; });
    const auto index = static_cast<std::size_t>(segment - m.segments.begin());
    const std::size_t first = at - segment->token_begin;
    // What stood before it when it was read: in blocks the instruction and its own beginning.
    Branch before = tree.root();
    for (std::size_t i = 0; i < index; ++i) {
      if (m.layout == Layout::blocks && m.segments[i].document) continue;
      before = tree.mount(before, ids.subspan(m.segments[i].token_begin, m.segments[i].tokens()),
                          file.segments()[i]);
    }
    if (first > 0)
      before = tree.mount(before, ids.subspan(segment->token_begin, first), file.segments()[index]);
    const Extension extension{before, ids.subspan(at, std::min(kRun, segment->token_end - at))};
    const Branch leaf = model.transformer().extend(tree, {&extension, 1}).front();
    const double apart = difference(m, *file.segments()[index], first, leaf);
    check.positions += leaf.node_size();
    check.difference = std::max(check.difference, apart);
    // A NaN must not pass.
    if (!(apart <= (m.encoding == KvEncoding::wide ? kWideTolerance : kCodedTolerance))) {
      fail<Corrupt>({.op = "cag.verify",
                     .what = quote(path.string()) + ": keys and values of tokens from " + std::to_string(at),
                     .expected = "what the model computes",
                     .got = "a relative difference of " + std::to_string(apart),
                     .todo = "build it again"});
    }
  }
  report(progress, "verify", runs, runs);
  return check;
}

}  // namespace modicum::cag
