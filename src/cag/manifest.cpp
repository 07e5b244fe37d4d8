// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/error.hpp>
#include <modicum/cag/manifest.hpp>

#include "../base/json.hpp"

namespace modicum::cag {
namespace {

constexpr std::string_view kOp = "cag.open";
constexpr std::uint64_t kMost = std::uint64_t{1} << 40;

Json range_json(std::size_t begin, std::size_t end) {
  return {begin, end};
}

std::pair<std::size_t, std::size_t> range(const JsonFields& fields, const char* field, std::size_t most) {
  const Json& value = fields.at(field);
  if (!value.is_array() || value.size() != 2 || !value[0].is_number_unsigned() ||
      !value[1].is_number_unsigned() || value[0] > value[1] || value[1] > most) {
    fields.refuse(field, "[begin, end] within " + std::to_string(most));
  }
  return {value[0].get<std::size_t>(), value[1].get<std::size_t>()};
}

const Json& array(const JsonFields& fields, const char* field) {
  if (!fields.at(field).is_array()) fields.refuse(field, "an array");
  return fields.at(field);
}

Json to_json(const KnownDocument& document) {
  Json json{{"name", document.name},
            {"source", document.source},
            {"hash", document.hash},
            {"bytes", range_json(document.span.text_begin, document.span.text_end)},
            {"tokens", range_json(document.span.token_begin, document.span.token_end)}};
  if (document.converted) json["converted"] = true;
  if (document.changes_often) json["changes_often"] = true;
  if (!document.pages.empty()) json["pages"] = document.pages;
  return json;
}

KnownDocument parse_document(const Json& json, const std::string& where, std::size_t tokens) {
  const JsonFields fields(json, kOp, where);
  KnownDocument document{fields.text("name"), fields.text("source"), fields.text("hash"), {}};
  std::tie(document.span.text_begin, document.span.text_end) = range(fields, "bytes", kMost);
  std::tie(document.span.token_begin, document.span.token_end) = range(fields, "tokens", tokens);
  document.converted = fields.boolean_or("converted", false);
  document.changes_often = fields.boolean_or("changes_often", false);
  if (fields.has("pages")) {
    for (const Json& page : array(fields, "pages")) {
      if (!page.is_number_unsigned() || page > document.span.text_end - document.span.text_begin ||
          (!document.pages.empty() && page < document.pages.back())) {
        fields.refuse("pages", "ascending offsets within the text");
      }
      document.pages.push_back(page.get<std::size_t>());
    }
  }
  return document;
}

Json to_json(const KnownSegment& segment) {
  return {{"tokens", range_json(segment.token_begin, segment.token_end)},
          {"rotation", segment.rotation},
          {"wide", segment.wide},
          {"document", segment.document ? Json(*segment.document) : Json(nullptr)}};
}

KnownSegment parse_segment(const Json& json, const std::string& where, const Manifest& manifest) {
  const JsonFields fields(json, kOp, where);
  KnownSegment segment;
  std::tie(segment.token_begin, segment.token_end) = range(fields, "tokens", manifest.tokens);
  // Keys are rotated by where a segment stood when it was read, which is never behind where it stands now.
  segment.rotation = fields.integer("rotation", 0, segment.token_begin);
  segment.wide = fields.boolean_or("wide", true);
  if (fields.has_value("document")) {
    if (manifest.documents.empty()) fields.refuse("document", "a document");
    segment.document = fields.integer("document", 0, manifest.documents.size() - 1);
  }
  return segment;
}

Json to_json(const Certificate& certificate) {
  Json measurements = Json::array();
  for (const Measurement& m : certificate.measurements) {
    measurements.push_back({{"what", m.what},
                            {"against", m.against},
                            {"kl", m.kl},
                            {"perplexity_change", m.perplexity_change},
                            {"top1_agreement", m.top1_agreement}});
  }
  return {{"bound", certificate.bound}, {"tokens", certificate.tokens}, {"measurements", measurements}};
}

Certificate parse_certificate(const Json& json, const std::string& where) {
  const JsonFields fields(json, kOp, where);
  Certificate certificate{.bound = fields.number("bound", -1, 1e9),
                          .tokens = fields.integer("tokens", 0, kMost),
                          .measurements = {}};
  for (const Json& entry : array(fields, "measurements")) {
    const JsonFields m(entry, kOp, where + "measurements.");
    certificate.measurements.push_back({m.text("what"), m.text("against"), m.number("kl", -1, 1e300),
                                        m.number("perplexity_change", -1e300, 1e300),
                                        m.number("top1_agreement", -1, 1)});
  }
  return certificate;
}

Json to_json(const PromptFormat& format) {
  return {{"before_documents", format.before_documents},
          {"before_question", format.before_question},
          {"after_question", format.after_question},
          {"after_answer", format.after_answer},
          {"add_special_tokens", format.add_special_tokens}};
}

void parse_segments(const JsonFields& fields, const std::string& where, Manifest& manifest) {
  std::size_t reached = 0;
  for (const Json& entry : array(fields, "segments")) {
    manifest.segments.push_back(parse_segment(entry, where + "segments.", manifest));
    const KnownSegment& segment = manifest.segments.back();
    if (segment.token_begin != reached || segment.tokens() == 0) {
      fields.refuse("segments", "segments that follow each other without gaps");
    }
    if (!segment.wide && manifest.encoding == KvEncoding::wide) {
      fields.refuse("segments", "wide ones, as the encoding says");
    }
    // Where it was read: in its place, or after the instruction alone.
    const KnownSegment& first = manifest.segments.front();
    const std::size_t instruction = first.document || segment.token_begin == 0 ? 0 : first.token_end;
    if (segment.rotation != (manifest.layout == Layout::joint ? segment.token_begin : instruction)) {
      fields.refuse("segments", "keys rotated by where they were read");
    }
    reached = segment.token_end;
  }
  if (reached != manifest.tokens)
    fields.refuse("segments", "all " + std::to_string(manifest.tokens) + " tokens");
}

/// What version 2 says beyond version 1.
void parse_version_2(const JsonFields& fields, const JsonFields& model, const JsonFields& kv,
                     const std::string& where, Manifest& manifest) {
  manifest.fingerprint.chat_template = model.text("chat_template");
  manifest.fingerprint.adapter = model.text("adapter");
  const std::string layout = fields.text("layout");
  if (layout != "joint" && layout != "blocks") fields.refuse<Unsupported>("layout", "joint or blocks");
  manifest.layout = layout == "joint" ? Layout::joint : Layout::blocks;
  const std::string encoding = kv.text("encoding");
  if (encoding != "wide" && encoding != "int8" && encoding != "int4") {
    kv.refuse<Unsupported>("encoding", "wide, int8 or int4");
  }
  manifest.encoding = kv_encoding_from_name(encoding);
  manifest.automatic = kv.boolean_or("automatic", false);
  manifest.reserve = fields.integer("reserve", 0, kMost);
  manifest.segment_tokens = fields.integer("segment_tokens", 0, kMost);
  manifest.recompute = fields.integer("recompute", 0, kMost);
  manifest.select = fields.boolean_or("select", false);
  manifest.abstain_below = fields.number("abstain_below", -1, 1);
  manifest.certificate = parse_certificate(fields.at("certificate"), where + "certificate.");
  parse_segments(fields, where, manifest);
}

}  // namespace

std::string_view name_of(Layout layout) {
  return layout == Layout::joint ? "joint" : "blocks";
}

std::string_view name_of(KvEncoding encoding) {
  switch (encoding) {
    case KvEncoding::wide:
      return "wide";
    case KvEncoding::int8:
      return "int8";
    case KvEncoding::int4:
      break;
  }
  return "int4";
}

KvEncoding kv_encoding_from_name(std::string_view name) {
  for (const KvEncoding encoding : {KvEncoding::wide, KvEncoding::int8, KvEncoding::int4}) {
    if (name == name_of(encoding)) return encoding;
  }
  fail({.op = "cag.build", .what = "kv", .expected = "auto, wide, int8 or int4", .got = std::string(name)});
}

int bits_of(KvEncoding encoding) {
  return encoding == KvEncoding::int4 ? 4 : 8;
}

double bytes_per_token(const KvShape& shape, std::size_t kv_heads, KvEncoding encoding) {
  if (encoding == KvEncoding::wide) return static_cast<double>(shape.token_bytes());
  const auto width = static_cast<double>(shape.width);
  const double codes = 2 * width * bits_of(encoding) / 8;
  const double scales = 2 * sizeof(f16) * (width / ops::kKeyGroup + static_cast<double>(kv_heads));
  return static_cast<double>(shape.layers) * (codes + scales);
}

std::size_t Manifest::wide_tokens() const {
  std::size_t count = 0;
  for (const KnownSegment& segment : segments) count += segment.wide ? segment.tokens() : 0;
  return count;
}

std::size_t Manifest::coded_tokens() const {
  return tokens - wide_tokens();
}

std::size_t Manifest::groups() const {
  std::size_t count = 0;
  for (const KnownSegment& segment : segments) {
    if (!segment.wide) count += (segment.tokens() + ops::kKeyGroup - 1) / ops::kKeyGroup;
  }
  return count;
}

std::string Manifest::to_json() const {
  Json json{{"format", kFormatName},
            {"version", version},
            {"model",
             {{"type", model_type},
              {"weights", fingerprint.weights},
              {"tokenizer", fingerprint.tokenizer},
              {"chat_template", fingerprint.chat_template},
              {"adapter", fingerprint.adapter},
              {"hidden_size", hidden_size}}},
            {"kv",
             {{"dtype", fingerprint.dtype},
              {"layers", shape.layers},
              {"heads", kv_heads},
              {"head_dim", head_dim()},
              {"encoding", name_of(encoding)},
              {"automatic", automatic}}},
            {"layout", name_of(layout)},
            {"tokens", tokens},
            {"reserve", reserve},
            {"segment_tokens", segment_tokens},
            {"recompute", recompute},
            {"select", select},
            {"abstain_below", abstain_below},
            {"resume", {{"byte", resume_byte}, {"token", resume_token}}},
            {"prompt", cag::to_json(format)},
            {"documents", Json::array()},
            {"segments", Json::array()},
            {"certificate", cag::to_json(certificate)}};
  for (const KnownDocument& document : documents) json["documents"].push_back(cag::to_json(document));
  for (const KnownSegment& segment : segments) json["segments"].push_back(cag::to_json(segment));
  return json.dump();
}

Manifest Manifest::parse(std::string_view json, const std::string& file_name) {
  const std::string where = file_name + ": manifest.";
  const Json root = parse_json(json, kOp, file_name + ": manifest");
  const JsonFields fields(root, kOp, where);
  const JsonFields model(fields.at("model"), kOp, where + "model.");
  const JsonFields kv(fields.at("kv"), kOp, where + "kv.");
  const JsonFields resume(fields.at("resume"), kOp, where + "resume.");
  const JsonFields prompt(fields.at("prompt"), kOp, where + "prompt.");
  Manifest manifest;
  manifest.version = static_cast<int>(fields.integer("version", 0, 1 << 30));
  if (manifest.version < 1 || manifest.version > kFormatVersion) {
    fields.refuse<Unsupported>("version", "1 to " + std::to_string(kFormatVersion),
                               "build it again with this version of modicum");
  }
  manifest.model_type = model.text("type");
  manifest.fingerprint = {
      .weights = model.text("weights"), .tokenizer = model.text("tokenizer"), .dtype = kv.text("dtype")};
  manifest.hidden_size = model.integer("hidden_size", 1, 1 << 24);
  manifest.kv_heads = kv.integer("heads", 1, 1 << 16);
  manifest.shape = {.layers = kv.integer("layers", 1, 1 << 16),
                    .width = manifest.kv_heads * kv.integer("head_dim", 1, 1 << 16),
                    .dtype = dtype_from_name(manifest.fingerprint.dtype)};
  if (!is_float(manifest.shape.dtype)) kv.refuse<Unsupported>("dtype", "f32, bf16 or f16");
  manifest.tokens = fields.integer("tokens", 1, std::uint64_t{1} << 31);
  manifest.resume_byte = resume.integer("byte", 0, kMost);
  manifest.resume_token = resume.integer("token", 0, manifest.tokens);
  manifest.format = {prompt.text("before_documents"), prompt.text("before_question"),
                     prompt.text("after_question"),
                     prompt.text_or("after_answer", prompt.text("before_question")),
                     prompt.boolean_or("add_special_tokens", true)};
  for (const Json& document : array(fields, "documents")) {
    manifest.documents.push_back(parse_document(document, where + "documents.", manifest.tokens));
    if (manifest.documents.size() > 1) {
      const DocumentSpan& before = manifest.documents[manifest.documents.size() - 2].span;
      const DocumentSpan& span = manifest.documents.back().span;
      if (span.text_begin < before.text_end || span.token_begin < before.token_end) {
        fields.refuse("documents", "documents that follow each other");
      }
    }
  }
  if (manifest.version >= 2) {
    parse_version_2(fields, model, kv, where, manifest);
  } else {
    if (kv.text("quantisation") != "none") kv.refuse<Unsupported>("quantisation", "none in version 1");
    manifest.segments = {{.token_begin = 0, .token_end = manifest.tokens, .document = {}}};
  }
  return manifest;
}

}  // namespace modicum::cag
