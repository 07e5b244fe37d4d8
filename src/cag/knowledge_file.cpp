// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/cag/knowledge_file.hpp>

#include "../text/unicode.hpp"
#include "knowledge_layout.hpp"

namespace modicum::cag {
namespace {

constexpr std::string_view kOp = "cag.open";

template <class T>
std::vector<T> read_array(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

/// Files that this process has verified, as they were then.
class VerifiedFiles {
 public:
  static VerifiedFiles& all() {
    static VerifiedFiles files;
    return files;
  }
  bool has(const FileIdentity& file) {
    const std::lock_guard lock(mutex_);
    return std::ranges::find(files_, file) != files_.end();
  }
  /// Only what was not written to just now: the next write might carry the same time.
  void add(const FileIdentity& file) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto age = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() - file.changed_ns;
    if (age < kSettledNs) return;
    const std::lock_guard lock(mutex_);
    files_.push_back(file);
  }

 private:
  static constexpr std::int64_t kSettledNs = 2'000'000'000;
  std::mutex mutex_;
  std::vector<FileIdentity> files_;
};

}  // namespace

KnowledgeFile KnowledgeFile::open(const std::filesystem::path& path) {
  KnowledgeFile file(SafetensorsFile::open(path, Guard::yes));
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
  file.manifest_ = Manifest::parse(value("manifest"), name);
  if (value("version") != std::to_string(file.manifest_.version)) {
    fail<Unsupported>({.op = kOp,
                       .what = name + ": version",
                       .expected = "1 to " + std::to_string(kFormatVersion) + ", as in the manifest",
                       .got = "'" + value("version") + "'",
                       .todo = "build it again with this version of modicum"});
  }
  file.check_arrays();
  file.check_seal();
  file.read_arrays();
  file.find_segments();
  return file;
}

void KnowledgeFile::check_arrays() const {
  const auto& tensors = file_.header().tensors;
  const auto prompt = tensors.find("prompt");
  const std::size_t text = prompt == tensors.end() ? 0 : prompt->second.bytes();
  const std::vector<TensorSpec> specs = knowledge_layout(manifest_, text);
  const std::string name = "'" + path().string() + "'";
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
                       .expected = "the tensors of version " + std::to_string(manifest_.version) +
                                   ", aligned to 4096 bytes",
                       .got = std::to_string(tensors.size()) + " tensors from byte " +
                              std::to_string(file_.header().data_begin)});
  }
  bool inside = manifest_.resume_byte <= text;
  for (const KnownDocument& document : manifest_.documents) inside = inside && document.span.text_end <= text;
  if (!inside) {
    fail<FormatError>({.op = kOp,
                       .what = name + ": manifest",
                       .expected = "places within the prompt's " + std::to_string(text) + " bytes",
                       .got = "one beyond"});
  }
}

void KnowledgeFile::fail_corrupt(const std::string& where) const {
  fail<Corrupt>({.op = kOp,
                 .what = "'" + path().string() + "': " + where,
                 .expected = "bytes as they were written",
                 .got = "others (a checksum differs)",
                 .todo = "build it again, or restore it from a copy"});
}

void KnowledgeFile::check_seal() const {
  const auto header = file_.file().bytes().first(file_.header().data_begin);
  const std::string expected = seal_of(header, file_.bytes("checksums"), file_.bytes("prompt"));
  if (!std::ranges::equal(file_.bytes("seal"), bytes_of(expected))) fail_corrupt("header or prompt");
}

void KnowledgeFile::verify(ThreadPool& pool) const {
  if (VerifiedFiles::all().has(identity())) return;
  verify_again(pool);
  VerifiedFiles::all().add(identity());
}

void KnowledgeFile::check_unchanged() const {
  if (file_.file().unchanged() && !file_.file().damaged()) return;
  fail<Corrupt>({.op = "cag.ask",
                 .what = "'" + path().string() + "'",
                 .expected = "the file as it was when it was opened",
                 .got = "one that was written to or cut in place meanwhile",
                 .todo = "open it again; caches are replaced by renaming, never edited in place"});
}

void KnowledgeFile::verify_again(ThreadPool& pool) const {
  check_seal();
  const auto data = file_.file().bytes().subspan(file_.header().data_begin, file_.info("checksums").begin);
  const auto sums = read_array<std::uint64_t>(file_.bytes("checksums"));
  pool.run(sums.size(), [&](std::size_t i) {
    const auto block =
        data.subspan(i * kChecksumBlock, std::min(kChecksumBlock, data.size() - i * kChecksumBlock));
    if (hash64(block) != sums[i]) {
      fail_corrupt("bytes from " + std::to_string(file_.header().data_begin + i * kChecksumBlock));
    }
  });
}

void KnowledgeFile::read_arrays() {
  if (manifest_.layout == Layout::joint) hidden_ = read_array<float>(file_.bytes("hidden"));
  token_ids_ = read_array<TokenId>(file_.bytes("token_ids"));
  token_bytes_ = read_array<std::uint64_t>(file_.bytes("token_bytes"));
  const auto prompt = file_.bytes("prompt");
  prompt_ = {reinterpret_cast<const char*>(prompt.data()), prompt.size()};
  if (const std::size_t at = text::find_invalid_utf8(prompt_); at < prompt_.size()) {
    fail<FormatError>({.op = kOp,
                       .what = "'" + path().string() + "': prompt",
                       .expected = "UTF-8",
                       .got = "an invalid byte at offset " + std::to_string(at)});
  }
  if (!std::ranges::is_sorted(token_bytes_) || token_bytes_.back() > prompt_.size()) {
    fail<FormatError>(
        {.op = kOp,
         .what = "'" + path().string() + "': tensor 'token_bytes'",
         .expected = "ascending places within the prompt's " + std::to_string(prompt_.size()) + " bytes",
         .got = "others"});
  }
}

void KnowledgeFile::find_segments() {
  // Mapped read-only: nothing writes below a mounted node.
  const auto at = [&](const char* name, std::size_t bytes) {
    return const_cast<std::byte*>(file_.bytes(name).data()) + bytes;
  };
  const std::size_t wide_row = manifest_.shape.row_bytes();
  const std::size_t width = manifest_.shape.width;
  const int bits = bits_of(manifest_.encoding);
  const std::size_t code_row = width * static_cast<std::size_t>(bits) / 8;
  const std::size_t wide_rows = manifest_.wide_tokens();
  const std::size_t coded_rows = manifest_.coded_tokens();
  const std::size_t groups = manifest_.groups();
  std::size_t wide = 0, coded = 0, group = 0;
  for (const KnownSegment& known : manifest_.segments) {
    auto segment = std::make_shared<KvSegment>();
    segment->rows = known.tokens();
    segment->rotation = known.rotation;
    segment->owner = file_.file().owner();
    if (known.wide) {
      segment->k = at("k", wide * wide_row);
      segment->v = at("v", wide * wide_row);
      segment->layer_stride = wide_rows * wide_row;
      wide += known.tokens();
    } else {
      const std::size_t v_scales = 2 * manifest_.kv_heads;
      segment->k = at("k_codes", coded * code_row);
      segment->v = at("v_codes", coded * code_row);
      segment->layer_stride = coded_rows * code_row;
      segment->scales =
          ops::KvScales{.bits = bits,
                        .k = reinterpret_cast<const f16*>(at("k_scales", group * 2 * width * sizeof(f16))),
                        .v = reinterpret_cast<const f16*>(at("v_scales", coded * v_scales * sizeof(f16))),
                        .k_stride = groups * 2 * width,
                        .v_stride = coded_rows * v_scales};
      coded += known.tokens();
      group += groups_of(known.tokens());
    }
    segments_.push_back(std::move(segment));
  }
}

std::string_view KnowledgeFile::document_text(std::size_t document) const {
  const DocumentSpan& span = manifest_.documents[document].span;
  return prompt_.substr(span.text_begin, span.text_end - span.text_begin);
}

}  // namespace modicum::cag
