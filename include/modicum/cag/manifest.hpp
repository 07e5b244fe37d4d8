// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/prompt.hpp>
#include <modicum/kv/storage.hpp>
#include <modicum/model/model.hpp>

namespace modicum::cag {

inline constexpr std::string_view kFormatName = "modicum.knowledge";
inline constexpr int kFormatVersion = 2;

/// How documents stand to each other.
enum class Layout {
  joint,   ///< one causal pass over all of them: exact
  blocks,  ///< each read by itself after the instruction, and placed by rotating the query
};
std::string_view name_of(Layout layout);

/// How keys and values are kept.
enum class KvEncoding {
  wide,  ///< as the model computes them
  int8,
  int4,
};
std::string_view name_of(KvEncoding encoding);
/// Throws `InvalidArgument` for another name.
KvEncoding kv_encoding_from_name(std::string_view name);
/// Of one code, 8 or 4.
int bits_of(KvEncoding encoding);
/// Bytes of one token's keys and values over all layers, scales included.
double bytes_per_token(const KvShape& shape, std::size_t kv_heads, KvEncoding encoding);

/// A document of a knowledge file: where it came from and where it lies.
struct KnownDocument {
  std::string name;
  std::string source;
  std::string hash;  ///< XXH3-128 of its text
  DocumentSpan span;
  std::vector<std::size_t> pages = {};  ///< where each page of the original begins, in bytes of the text
  bool converted = false;               ///< the text is not the file's own bytes
  bool changes_often = false;           ///< stands behind all others, so that its changes cost least
};

/// Consecutive tokens whose keys and values are kept in one way. They follow each other without gaps.
struct KnownSegment {
  std::size_t token_begin = 0;
  std::size_t token_end = 0;
  std::size_t rotation = 0;             ///< the position that the first token's keys were rotated by
  bool wide = true;                     ///< as the model computes them; else in the file's encoding
  std::optional<std::size_t> document;  ///< in blocks: which one (empty: the instruction)

  std::size_t tokens() const { return token_end - token_begin; }
};

/// What a form of the cache loses against another, measured on the build's own text.
struct Measurement {
  std::string what;              ///< "int8", "int4" or "blocks"
  std::string against;           ///< the reference: "wide", "joint"
  double kl = 0;                 ///< mean Kullback-Leibler divergence of the next token, nats
  double perplexity_change = 0;  ///< ratio of perplexities − 1
  double top1_agreement = 1;     ///< share of positions whose likeliest token is the same
};

/// The measurements by which a file's encoding was chosen.
struct Certificate {
  double bound = 0;        ///< on `kl`; of automatic choice
  std::size_t tokens = 0;  ///< positions measured
  std::vector<Measurement> measurements;
};

/// Everything in a knowledge file but its arrays: the JSON under the key "manifest" of the safetensors
/// metadata.
struct Manifest {
  int version = kFormatVersion;
  ModelFingerprint fingerprint;
  std::string model_type;
  KvShape shape;
  std::size_t kv_heads = 0;
  std::size_t hidden_size = 0;
  std::size_t tokens = 0;
  Layout layout = Layout::joint;
  KvEncoding encoding = KvEncoding::wide;
  bool automatic = false;          ///< the encoding was chosen by measuring
  std::size_t reserve = 64;        ///< tokens left for a question and its answer
  std::size_t segment_tokens = 0;  ///< blocks: longest segment
  std::size_t recompute = 0;       ///< blocks: tokens at a segment's beginning that are computed in place
  bool select = false;             ///< blocks: more than the context holds; segments are chosen by question
  double abstain_below = 0;        ///< confidence under which an answer counts as none
  std::size_t resume_byte = 0;
  std::size_t resume_token = 0;
  PromptFormat format;
  std::vector<KnownDocument> documents;
  std::vector<KnownSegment> segments;
  Certificate certificate;

  std::size_t head_dim() const { return shape.width / kv_heads; }
  /// Tokens of wide segments, of the others, and the others' groups of kKeyGroup rows.
  std::size_t wide_tokens() const;
  std::size_t coded_tokens() const;
  std::size_t groups() const;

  std::string to_json() const;
  /// Throws `FormatError` naming the field, `Unsupported` for a version that is not known.
  static Manifest parse(std::string_view json, const std::string& file_name);
};

}  // namespace modicum::cag
