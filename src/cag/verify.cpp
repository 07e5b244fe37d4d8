// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <span>

#include <modicum/base/error.hpp>
#include <modicum/cag/build.hpp>

#include "../base/quote.hpp"
#include "rows.hpp"

namespace modicum::cag {
namespace {

/// Relative differences that rounding explains: of bf16 rows on another instruction set, and of codes, whose
/// errors later layers carry on. Keys of another model differ by more than 1.
constexpr double kWideTolerance = 0.02;
constexpr double kCodedTolerance = 0.5;

/// Sums of squares.
struct Distance {
  double apart = 0, size = 0;

  void add(std::span<const float> anew, std::span<const float> kept) {
    for (std::size_t i = 0; i < anew.size(); ++i) {
      apart += std::pow(static_cast<double>(anew[i]) - static_cast<double>(kept[i]), 2);
      size += std::pow(static_cast<double>(anew[i]), 2);
    }
  }
  double relative() const { return size > 0 ? std::sqrt(apart / size) : std::sqrt(apart); }
};

/// How far the rows of `leaf`'s own tokens are from rows [first, …) of a segment: root mean square of the
/// difference by that of the rows.
double difference(const Manifest& m, const KvSegment& segment, std::size_t first, const Branch& leaf) {
  Distance distance;
  const std::size_t width = m.shape.width;
  for (std::size_t layer = 0; layer < m.shape.layers; ++layer) {
    const LayerRows kept = layer_rows(m, segment, layer, first, leaf.node_size());
    for (std::size_t r = 0; r < leaf.node_size(); ++r) {
      const auto [k, v] = leaf.write_row(layer, r);
      distance.add(widened(m.shape.dtype, k, width), std::span(kept.k).subspan(r * width, width));
      distance.add(widened(m.shape.dtype, v, width), std::span(kept.v).subspan(r * width, width));
    }
  }
  return distance.relative();
}

/// What stood before row `first` of a segment when it was read: in blocks the instruction and the segment's
/// own beginning.
Branch path_to(const KnowledgeFile& file, const KvTree& tree, std::size_t segment, std::size_t first) {
  const Manifest& m = file.manifest();
  const std::span<const TokenId> ids(file.token_ids());
  Branch path = tree.root();
  for (std::size_t i = 0; i < segment; ++i) {
    if (m.layout == Layout::blocks && m.segments[i].document) continue;
    path =
        tree.mount(path, ids.subspan(m.segments[i].token_begin, m.segments[i].tokens()), file.segments()[i]);
  }
  if (first == 0) return path;
  return tree.mount(path, ids.subspan(m.segments[segment].token_begin, first), file.segments()[segment]);
}

}  // namespace

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
    const Extension extension{path_to(file, tree, index, first),
                              ids.subspan(at, std::min(kRun, segment->token_end - at))};
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
