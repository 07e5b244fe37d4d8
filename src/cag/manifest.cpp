// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/cag/knowledge_file.hpp>

#include "../base/json.hpp"

namespace modicum::cag {
namespace {

constexpr std::string_view kOp = "cag.open";
constexpr std::uint64_t kMost = std::uint64_t{1} << 40;

Json to_json(const KnownDocument& document) {
  return {{"name", document.name},
          {"source", document.source},
          {"hash", document.hash},
          {"bytes", {document.span.text_begin, document.span.text_end}},
          {"tokens", {document.span.token_begin, document.span.token_end}}};
}

std::pair<std::size_t, std::size_t> range(const JsonFields& fields, const char* field, std::size_t most) {
  const Json& value = fields.at(field);
  if (!value.is_array() || value.size() != 2 || !value[0].is_number_unsigned() ||
      !value[1].is_number_unsigned() || value[0] > value[1] || value[1] > most) {
    fields.refuse(field, "[begin, end] within " + std::to_string(most));
  }
  return {value[0].get<std::size_t>(), value[1].get<std::size_t>()};
}

KnownDocument parse_document(const Json& json, const std::string& where, std::size_t tokens) {
  const JsonFields fields(json, kOp, where);
  KnownDocument document{fields.text("name"), fields.text("source"), fields.text("hash"), {}};
  std::tie(document.span.text_begin, document.span.text_end) = range(fields, "bytes", kMost);
  std::tie(document.span.token_begin, document.span.token_end) = range(fields, "tokens", tokens);
  return document;
}

}  // namespace

std::string Manifest::to_json() const {
  Json json{{"format", kFormatName},
            {"version", kFormatVersion},
            {"model",
             {{"type", model_type},
              {"weights", fingerprint.weights},
              {"tokenizer", fingerprint.tokenizer},
              {"hidden_size", hidden_size}}},
            {"kv",
             {{"dtype", fingerprint.dtype},
              {"layers", shape.layers},
              {"heads", kv_heads},
              {"head_dim", shape.width / kv_heads},
              {"quantisation", "none"},
              {"quantisation_loss", 0.0}}},
            {"tokens", tokens},
            {"resume", {{"byte", resume_byte}, {"token", resume_token}}},
            {"prompt",
             {{"before_documents", format.before_documents},
              {"before_question", format.before_question},
              {"after_question", format.after_question},
              {"add_special_tokens", format.add_special_tokens}}},
            {"documents", Json::array()}};
  for (const KnownDocument& document : documents) json["documents"].push_back(cag::to_json(document));
  return json.dump();
}

Manifest Manifest::parse(std::string_view json, const std::string& file_name) {
  const Json root = parse_json(json, kOp, file_name + ": manifest");
  const JsonFields fields(root, kOp, file_name + ": manifest.");
  const JsonFields model(fields.at("model"), kOp, file_name + ": manifest.model.");
  const JsonFields kv(fields.at("kv"), kOp, file_name + ": manifest.kv.");
  const JsonFields resume(fields.at("resume"), kOp, file_name + ": manifest.resume.");
  const JsonFields prompt(fields.at("prompt"), kOp, file_name + ": manifest.prompt.");
  Manifest manifest;
  manifest.model_type = model.text("type");
  manifest.fingerprint = {model.text("weights"), model.text("tokenizer"), kv.text("dtype")};
  manifest.hidden_size = model.integer("hidden_size", 1, 1 << 24);
  manifest.kv_heads = kv.integer("heads", 1, 1 << 16);
  manifest.shape = {.layers = kv.integer("layers", 1, 1 << 16),
                    .width = manifest.kv_heads * kv.integer("head_dim", 1, 1 << 16),
                    .dtype = dtype_from_name(manifest.fingerprint.dtype)};
  if (kv.text("quantisation") != "none") kv.refuse<Unsupported>("quantisation", "none in version 1");
  manifest.tokens = fields.integer("tokens", 1, std::uint64_t{1} << 31);
  manifest.resume_byte = resume.integer("byte", 0, kMost);
  manifest.resume_token = resume.integer("token", 0, manifest.tokens);
  manifest.format = {prompt.text("before_documents"), prompt.text("before_question"),
                     prompt.text("after_question"), prompt.boolean_or("add_special_tokens", true)};
  if (!fields.at("documents").is_array()) fields.refuse("documents", "an array");
  for (const Json& document : root["documents"]) {
    manifest.documents.push_back(
        parse_document(document, file_name + ": manifest.documents.", manifest.tokens));
  }
  return manifest;
}

}  // namespace modicum::cag
