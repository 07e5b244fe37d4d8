// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/model/model.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::string chat_template(const TemporaryDirectory& directory) {
  return Model::load(directory.path(), {.threads = 1}).fingerprint().chat_template;
}

/// The fingerprint's chat template with this tokenizer_config.json.
std::string chat_template(const TemporaryDirectory& directory, std::string_view tokenizer_config) {
  directory.write("tokenizer_config.json", tokenizer_config);
  return chat_template(directory);
}

}  // namespace

TEST_CASE("a fingerprint holds what decides about tokens, keys and values") {
  const TemporaryDirectory directory;
  write_tiny_model(directory.path());
  const Model model = Model::load(directory.path(), {.dtype = DType::bf16, .threads = 2});
  const ModelFingerprint& fingerprint = model.fingerprint();
  CHECK(fingerprint.weights == model.checkpoint().fingerprint());
  CHECK(fingerprint.tokenizer == model.tokenizer().fingerprint());
  CHECK(fingerprint.dtype == "bf16");
  CHECK(fingerprint.chat_template.empty());
  CHECK(fingerprint.adapter.empty());
  CHECK(fingerprint == Model::load(directory.path(), {.dtype = DType::bf16}).fingerprint());
}

TEST_CASE("a fingerprint follows the text of the chat template, wherever it stands") {
  const TemporaryDirectory directory;
  write_tiny_model(directory.path());
  CHECK(chat_template(directory, R"({"eos_token":"x"})").empty());
  CHECK(chat_template(directory, R"({"chat_template":null})").empty());
  CHECK(chat_template(directory, R"({"chat_template":[]})").empty());
  CHECK(chat_template(directory, R"({"chat_template":[{"name":"tools","template":"a"},7]})").empty());
  CHECK(chat_template(directory, R"({"chat_template":"{{ messages }}\r\n"})") ==
        hash128_hex("{{ messages }}\r\n"));
  CHECK(chat_template(directory, R"({"chat_template":""})") == hash128_hex(""));
  CHECK(chat_template(
            directory,
            R"({"chat_template":[{"name":"default","template":"a"},{"name":"tools","template":"b"}]})") ==
        hash128_hex("a"));
  // A file of its own comes first, and Python reads its line ends as \n.
  directory.write("chat_template.jinja", "{{ own }}\r\n\r{# é #}\n");
  CHECK(chat_template(directory) == hash128_hex("{{ own }}\n\n{# é #}\n"));
}

TEST_CASE("a broken tokenizer_config.json is named") {
  const TemporaryDirectory directory;
  write_tiny_model(directory.path());
  for (const char* text : {"{", "[]", R"({"chat_template":7})",
                           R"({"chat_template":[{"name":"default",)"
                           R"("template":{}}]})"}) {
    INFO(text);
    CHECK_THROWS_AS(chat_template(directory, text), FormatError);
    CHECK_THROWS_WITH(chat_template(directory, text), Contains("tokenizer_config.json"));
  }
}

TEST_CASE("an adapter is refused, alone and beside its model") {
  const TemporaryDirectory directory;
  directory.write("adapter_config.json", R"({"peft_type":"LORA"})");
  CHECK_THROWS_AS(Model::load(directory.path()), Unsupported);
  write_tiny_model(directory.path());
  CHECK_THROWS_WITH(Model::load(directory.path()),
                    Contains("adapter_config.json") && Contains("merge_and_unload"));
}
