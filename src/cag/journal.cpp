// SPDX-License-Identifier: Apache-2.0
#include "journal.hpp"

#include <system_error>

#include <modicum/base/error.hpp>

namespace modicum::cag {

Journal::Journal(const Model& model, const Manifest& manifest, const std::filesystem::path& path,
                 double seconds)
    : model_(model), manifest_(manifest), path_(path.string() + ".partial"), interval_(seconds) {}

std::optional<KnowledgeFile> Journal::find() const {
  std::error_code ignored;
  if (!std::filesystem::exists(path_, ignored)) return std::nullopt;
  try {
    KnowledgeFile file = KnowledgeFile::open(path_);
    const Manifest& found = file.manifest();
    if (!(found.fingerprint == manifest_.fingerprint) || !(found.shape == manifest_.shape) ||
        found.kv_heads != manifest_.kv_heads || found.layout != manifest_.layout) {
      return std::nullopt;
    }
    file.verify_again(model_.transformer().pool());
    return file;
  } catch (const Error&) {
    return std::nullopt;
  }
}

bool Journal::due() const {
  return std::chrono::steady_clock::now() - last_ >= interval_;
}

void Journal::save(const Reading& reading, std::vector<TokenId> ids) {
  Manifest manifest = manifest_;
  manifest.encoding = KvEncoding::wide;
  manifest.documents.clear();
  manifest.tokens = ids.size();
  manifest.segments.clear();
  std::size_t token = 0;
  for (KnownSegment segment : reading.segments) {
    segment.token_end = token + segment.tokens();
    segment.token_begin = token;
    segment.document.reset();
    token = segment.token_end;
    manifest.segments.push_back(segment);
  }
  SharedPrompt prompt;
  prompt.begins.assign(ids.size(), 0);
  prompt.ids = std::move(ids);
  write_reading(path_, manifest, prompt, reading);
  last_ = std::chrono::steady_clock::now();
}

void Journal::remove() const noexcept {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace modicum::cag
