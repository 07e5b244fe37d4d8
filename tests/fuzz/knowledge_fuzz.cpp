// SPDX-License-Identifier: Apache-2.0
// The manifest of a knowledge file is refused with FormatError, Unsupported or InvalidArgument, or gives segments
// that cover all tokens, places that ascend, and a manifest that reads back as it was written.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/cag/manifest.hpp>

namespace {

using modicum::cag::Manifest;

void check(bool holds) {
  if (!holds) std::abort();
}

void check_manifest(const Manifest& manifest) {
  check(manifest.kv_heads > 0 && manifest.shape.layers > 0 && manifest.shape.width % manifest.kv_heads == 0);
  check(manifest.wide_tokens() + manifest.coded_tokens() == manifest.tokens);
  check(manifest.groups() <= manifest.coded_tokens());
  std::size_t reached = 0;
  for (const auto& segment : manifest.segments) {
    check(segment.token_begin == reached && segment.token_end > reached);
    check(segment.rotation <= segment.token_begin);
    check(!segment.document || *segment.document < manifest.documents.size());
    reached = segment.token_end;
  }
  check(reached == manifest.tokens && manifest.resume_token <= manifest.tokens);
  for (const auto& document : manifest.documents) {
    check(document.span.text_begin <= document.span.text_end && document.span.token_end <= manifest.tokens);
    for (const std::size_t page : document.pages) {
      check(page <= document.span.text_end - document.span.text_begin);
    }
  }
  if (manifest.version < modicum::cag::kFormatVersion) return;
  const std::string json = manifest.to_json();
  check(Manifest::parse(json, "again").to_json() == json);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check_manifest(Manifest::parse({reinterpret_cast<const char*>(data), size}, "fuzz"));
  } catch (const modicum::FormatError&) {
  } catch (const modicum::Unsupported&) {
  } catch (const modicum::InvalidArgument&) {
  }
  return 0;
}
