// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/cag/knowledge_file.hpp>

namespace modicum::cag {
namespace {

constexpr std::string_view kOp = "cag.open";
constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::size_t kPage = 4096;

std::string_view safetensors_name(DType dtype) {
  return dtype == DType::f32 ? "F32" : dtype == DType::bf16 ? "BF16" : "F16";
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// Tensors as version 1 has them, in order; what comes before `checksums` is what they cover.
std::vector<TensorSpec> layout(const Manifest& m, std::size_t prompt_bytes) {
  const std::string kv_type(safetensors_name(m.shape.dtype));
  const std::vector<std::uint64_t> kv_shape{m.shape.layers, m.tokens, m.kv_heads, m.shape.width / m.kv_heads};
  const std::size_t covered =
      m.tokens * m.shape.token_bytes() + m.hidden_size * 4 + m.tokens * 4 + m.tokens * 8;
  return {{"k", kv_type, kv_shape},           {"v", kv_type, kv_shape},
          {"hidden", "F32", {m.hidden_size}}, {"token_ids", "I32", {m.tokens}},
          {"token_bytes", "U64", {m.tokens}}, {"checksums", "U64", {(covered + kBlock - 1) / kBlock}},
          {"prompt", "U8", {prompt_bytes}},   {"seal", "U8", {16}}};
}

std::string seal_of(std::span<const std::byte> header, std::span<const std::byte> sums,
                    std::span<const std::byte> prompt) {
  const std::string parts = hash128_hex(header) + hash128_hex(sums) + hash128_hex(prompt);
  return hash128_hex(parts).substr(0, 16);
}

/// Passes bytes on to a writer and sums them up in blocks.
class SummingWriter {
 public:
  explicit SummingWriter(SafetensorsWriter& writer) : writer_(writer) { block_.reserve(kBlock); }

  void append(std::span<const std::byte> bytes) {
    writer_.append(bytes);
    while (!bytes.empty()) {
      const std::size_t taken = std::min(bytes.size(), kBlock - block_.size());
      block_.insert(block_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
      bytes = bytes.subspan(taken);
      if (block_.size() == kBlock) finish_block();
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

/// All rows of one layer's keys, or values, in order of position.
template <class Pick>
void append_rows(SummingWriter& out, const Branch& leaf, const KvShape& shape, std::size_t layer,
                 const Pick& pick) {
  for (const ops::KeyTile* tile : leaf.tiles()) {
    for (const ops::KeyRun& run : tile->runs) {
      const std::byte* rows = pick(run) + layer * run.layer_stride + run.first * shape.row_bytes();
      out.append({rows, run.count * shape.row_bytes()});
    }
  }
}

template <class T>
std::vector<T> read_array(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

void write_knowledge(const std::filesystem::path& path, const Manifest& manifest, const SharedPrompt& prompt,
                     const Branch& leaf) {
  SafetensorsWriter writer(path, layout(manifest, prompt.text.size()),
                           {{"format", std::string(kFormatName)},
                            {"version", std::to_string(kFormatVersion)},
                            {"manifest", manifest.to_json()}},
                           kPage, 0600);
  SummingWriter out(writer);
  for (std::size_t layer = 0; layer < manifest.shape.layers; ++layer) {
    append_rows(out, leaf, manifest.shape, layer, [](const ops::KeyRun& run) { return run.k; });
  }
  for (std::size_t layer = 0; layer < manifest.shape.layers; ++layer) {
    append_rows(out, leaf, manifest.shape, layer, [](const ops::KeyRun& run) { return run.v; });
  }
  out.append(std::as_bytes(leaf.hidden()));
  out.append(std::as_bytes(std::span(prompt.ids)));
  const std::vector<std::uint64_t> begins(prompt.begins.begin(), prompt.begins.end());
  out.append(std::as_bytes(std::span(begins)));
  const std::vector<std::uint64_t> sums = out.finish();
  const auto sum_bytes = std::as_bytes(std::span(sums));
  writer.append(sum_bytes);
  writer.append(bytes_of(prompt.text));
  writer.append(bytes_of(seal_of(bytes_of(writer.header()), sum_bytes, bytes_of(prompt.text))));
  writer.commit();
}

KnowledgeFile KnowledgeFile::open(const std::filesystem::path& path, ThreadPool& pool) {
  KnowledgeFile file(SafetensorsFile::open(path));
  const auto& metadata = file.file_.header().metadata;
  const std::string name = "'" + path.string() + "'";
  const auto value = [&](const char* key) {
    const auto at = metadata.find(key);
    return at == metadata.end() ? std::string() : at->second;
  };
  if (value("format") != kFormatName) {
    fail<FormatError>({.op = kOp,
                       .what = name,
                       .expected = "a modicum knowledge cache",
                       .got = "a safetensors file of another kind",
                       .todo = "build one with `modicum cag build`"});
  }
  if (value("version") != std::to_string(kFormatVersion)) {
    fail<Unsupported>({.op = kOp,
                       .what = name + ": version",
                       .expected = std::to_string(kFormatVersion),
                       .got = "'" + value("version") + "'",
                       .todo = "build it again with this version of modicum"});
  }
  file.manifest_ = Manifest::parse(value("manifest"), name);
  file.check_arrays();
  file.check_sums(pool);
  file.read_arrays();
  return file;
}

void KnowledgeFile::check_arrays() const {
  const auto& tensors = file_.header().tensors;
  const auto prompt = tensors.find("prompt");
  const std::vector<TensorSpec> specs =
      layout(manifest_, prompt == tensors.end() ? 0 : prompt->second.bytes());
  const std::string name = "'" + file_.file().path().string() + "'";
  for (const TensorSpec& spec : specs) {
    const TensorInfo& info = file_.info(spec.name);
    if (info.dtype != spec.dtype || info.shape != spec.shape) {
      fail<FormatError>({.op = kOp,
                         .what = name + ": tensor '" + spec.name + "'",
                         .expected = "the dtype and shape that the manifest says",
                         .got = "others"});
    }
  }
  if (tensors.size() != specs.size() || file_.header().data_begin % kPage != 0) {
    fail<FormatError>({.op = kOp,
                       .what = name,
                       .expected = "the tensors of version 1, aligned to 4096 bytes",
                       .got = std::to_string(tensors.size()) + " tensors from byte " +
                              std::to_string(file_.header().data_begin)});
  }
  const std::size_t text = prompt->second.bytes();
  bool inside = manifest_.resume_byte <= text;
  for (const KnownDocument& document : manifest_.documents) inside = inside && document.span.text_end <= text;
  if (!inside) {
    fail<FormatError>({.op = kOp,
                       .what = name + ": manifest",
                       .expected = "places within the prompt's " + std::to_string(text) + " bytes",
                       .got = "one beyond"});
  }
}

void KnowledgeFile::check_sums(ThreadPool& pool) const {
  const auto corrupt = [&](const std::string& where) {
    fail<Corrupt>({.op = kOp,
                   .what = "'" + file_.file().path().string() + "': " + where,
                   .expected = "bytes as they were written",
                   .got = "others (a checksum differs)",
                   .todo = "build it again, or restore it from a copy"});
  };
  const auto header = file_.file().bytes().first(file_.header().data_begin);
  const auto seal = file_.bytes("seal");
  const std::string expected = seal_of(header, file_.bytes("checksums"), file_.bytes("prompt"));
  if (!std::ranges::equal(seal, bytes_of(expected))) corrupt("header or prompt");
  const auto data = file_.file().bytes().subspan(file_.header().data_begin, file_.info("checksums").begin);
  const auto sums = read_array<std::uint64_t>(file_.bytes("checksums"));
  pool.run(sums.size(), [&](std::size_t i) {
    const auto block = data.subspan(i * kBlock, std::min(kBlock, data.size() - i * kBlock));
    if (hash64(block) != sums[i]) {
      corrupt("bytes from " + std::to_string(file_.header().data_begin + i * kBlock));
    }
  });
}

void KnowledgeFile::read_arrays() {
  hidden_ = read_array<float>(file_.bytes("hidden"));
  token_ids_ = read_array<TokenId>(file_.bytes("token_ids"));
  token_bytes_ = read_array<std::uint64_t>(file_.bytes("token_bytes"));
  const auto prompt = file_.bytes("prompt");
  prompt_ = {reinterpret_cast<const char*>(prompt.data()), prompt.size()};
}

std::shared_ptr<const KvSegment> KnowledgeFile::segment() const {
  auto segment = std::make_shared<KvSegment>();
  // Mapped read-only: nothing writes below a mounted node.
  segment->k = const_cast<std::byte*>(file_.bytes("k").data());
  segment->v = const_cast<std::byte*>(file_.bytes("v").data());
  segment->layer_stride = manifest_.tokens * manifest_.shape.row_bytes();
  segment->rows = manifest_.tokens;
  segment->owner = file_.file().owner();
  return segment;
}

}  // namespace modicum::cag
