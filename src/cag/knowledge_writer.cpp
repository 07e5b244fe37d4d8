// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/hash.hpp>
#include <modicum/cag/knowledge_file.hpp>

#include "knowledge_layout.hpp"

namespace modicum::cag {
namespace {

std::string_view safetensors_name(DType dtype) {
  return dtype == DType::f32 ? "F32" : dtype == DType::bf16 ? "BF16" : "F16";
}

std::uint64_t bytes_of(const std::vector<TensorSpec>& specs) {
  std::uint64_t bytes = 0;
  for (const TensorSpec& spec : specs) {
    std::uint64_t count = safetensors_bits(spec.dtype) / 8;
    for (const std::uint64_t extent : spec.shape) count *= extent;
    bytes += count;
  }
  return bytes;
}

/// Passes bytes on to a writer and sums them up in blocks.
class SummingWriter {
 public:
  explicit SummingWriter(SafetensorsWriter& writer) : writer_(writer) { block_.reserve(kChecksumBlock); }

  void append(std::span<const std::byte> bytes) {
    writer_.append(bytes);
    while (!bytes.empty()) {
      const std::size_t taken = std::min(bytes.size(), kChecksumBlock - block_.size());
      block_.insert(block_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
      bytes = bytes.subspan(taken);
      if (block_.size() == kChecksumBlock) finish_block();
    }
  }

  std::vector<std::uint64_t> finish() {
    if (!block_.empty()) finish_block();
    return std::move(sums_);
  }

 private:
  void finish_block() {
    sums_.push_back(hash64(block_));
    block_.clear();
  }

  SafetensorsWriter& writer_;
  std::vector<std::byte> block_;
  std::vector<std::uint64_t> sums_;
};

/// Writes one tensor: of each layer, what `pick(run, layer)` gives for each run of the wide, or coded,
/// segments.
template <class Pick>
void append_rows(SummingWriter& out, const KnowledgeContent& content, bool wide, const Pick& pick) {
  const Manifest& manifest = content.manifest;
  for (std::size_t layer = 0; layer < manifest.shape.layers; ++layer) {
    for (std::size_t i = 0; i < manifest.segments.size(); ++i) {
      if (manifest.segments[i].wide != wide) continue;
      for (const ops::KeyRun& run : content.rows[i]) out.append(pick(run, layer));
    }
  }
}

std::span<const std::byte> rows_of(const std::byte* base, const ops::KeyRun& run, std::size_t layer,
                                   std::size_t row_bytes) {
  return {base + layer * run.layer_stride + run.first * row_bytes, run.count * row_bytes};
}

void append_wide(SummingWriter& out, const KnowledgeContent& content) {
  const std::size_t row = content.manifest.shape.row_bytes();
  append_rows(out, content, true,
              [&](const ops::KeyRun& r, std::size_t l) { return rows_of(r.k, r, l, row); });
  append_rows(out, content, true,
              [&](const ops::KeyRun& r, std::size_t l) { return rows_of(r.v, r, l, row); });
}

void append_coded(SummingWriter& out, const KnowledgeContent& content) {
  const Manifest& m = content.manifest;
  if (m.coded_tokens() == 0) return;
  const std::size_t row = m.shape.width * static_cast<std::size_t>(bits_of(m.encoding)) / 8;
  append_rows(out, content, false, [&](const ops::KeyRun& r, std::size_t l) {
    return std::as_bytes(
        std::span(r.scales->k + l * r.scales->k_stride, groups_of(r.count) * 2 * m.shape.width));
  });
  append_rows(out, content, false, [&](const ops::KeyRun& r, std::size_t l) {
    return std::as_bytes(std::span(r.scales->v + l * r.scales->v_stride, r.count * 2 * m.kv_heads));
  });
  append_rows(out, content, false,
              [&](const ops::KeyRun& r, std::size_t l) { return rows_of(r.k, r, l, row); });
  append_rows(out, content, false,
              [&](const ops::KeyRun& r, std::size_t l) { return rows_of(r.v, r, l, row); });
}

}  // namespace

std::vector<TensorSpec> knowledge_layout(const Manifest& m, std::size_t prompt_bytes) {
  const std::string kv_type(safetensors_name(m.shape.dtype));
  const std::uint64_t layers = m.shape.layers, heads = m.kv_heads, dim = m.head_dim(),
                      coded = m.coded_tokens();
  std::vector<TensorSpec> specs{{"k", kv_type, {layers, m.wide_tokens(), heads, dim}},
                                {"v", kv_type, {layers, m.wide_tokens(), heads, dim}}};
  if (coded > 0) {
    const std::uint64_t code_bytes = dim * static_cast<std::uint64_t>(bits_of(m.encoding)) / 8;
    specs.push_back({"k_scales", "F16", {layers, m.groups(), 2, heads, dim}});
    specs.push_back({"v_scales", "F16", {layers, coded, heads, 2}});
    specs.push_back({"k_codes", "U8", {layers, coded, heads, code_bytes}});
    specs.push_back({"v_codes", "U8", {layers, coded, heads, code_bytes}});
  }
  if (m.layout == Layout::joint) specs.push_back({"hidden", "F32", {m.hidden_size}});
  specs.push_back({"token_ids", "I32", {m.tokens}});
  specs.push_back({"token_bytes", "U64", {m.tokens}});
  const std::uint64_t covered = bytes_of(specs);
  specs.push_back({"checksums", "U64", {(covered + kChecksumBlock - 1) / kChecksumBlock}});
  specs.push_back({"prompt", "U8", {prompt_bytes}});
  specs.push_back({"seal", "U8", {16}});
  return specs;
}

std::string seal_of(std::span<const std::byte> header, std::span<const std::byte> sums,
                    std::span<const std::byte> prompt) {
  const std::string parts = hash128_hex(header) + hash128_hex(sums) + hash128_hex(prompt);
  return hash128_hex(parts).substr(0, 16);
}

ops::KeyRun run_of(const KvSegment& segment) {
  return {.k = segment.k,
          .v = segment.v,
          .layer_stride = segment.layer_stride,
          .origin = 0,
          .count = static_cast<std::uint32_t>(segment.rows),
          .first = 0,
          .scales = segment.scales ? &*segment.scales : nullptr};
}

void write_knowledge(const std::filesystem::path& path, const KnowledgeContent& content,
                     const std::optional<FileIdentity>& replaced) {
  const SharedPrompt& prompt = content.prompt;
  SafetensorsWriter writer(path, knowledge_layout(content.manifest, prompt.text.size()),
                           {{"format", std::string(kFormatName)},
                            {"version", std::to_string(kFormatVersion)},
                            {"manifest", content.manifest.to_json()}},
                           kPage, 0600);
  SummingWriter out(writer);
  append_wide(out, content);
  append_coded(out, content);
  if (content.manifest.layout == Layout::joint) out.append(std::as_bytes(content.hidden));
  out.append(std::as_bytes(std::span(prompt.ids)));
  const std::vector<std::uint64_t> begins(prompt.begins.begin(), prompt.begins.end());
  out.append(std::as_bytes(std::span(begins)));
  const std::vector<std::uint64_t> sums = out.finish();
  const auto sum_bytes = std::as_bytes(std::span(sums));
  writer.append(sum_bytes);
  writer.append(cag::bytes_of(prompt.text));
  writer.append(
      cag::bytes_of(seal_of(cag::bytes_of(writer.header()), sum_bytes, cag::bytes_of(prompt.text))));
  writer.commit(replaced);
}

}  // namespace modicum::cag
