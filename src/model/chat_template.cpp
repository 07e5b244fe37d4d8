// SPDX-License-Identifier: Apache-2.0
#include "chat_template.hpp"

#include <string_view>
#include <system_error>

#include <modicum/base/hash.hpp>
#include <modicum/base/mapped_file.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "model.chat_template";

/// Line ends as Python reads a text file: each becomes one \n.
std::string with_unix_lines(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    result += text[i] == '\r' ? '\n' : text[i];
  }
  return result;
}

/// The last of the named templates that is called "default", or null.
Json default_of(const Json& templates) {
  Json found;
  for (const Json& entry : templates) {
    if (!entry.is_object() || entry.value("name", Json()) != "default") continue;
    found = entry.value("template", Json());
  }
  return found;
}

}  // namespace

std::string chat_template_hash(const fs::path& directory) {
  const fs::path own = directory / "chat_template.jinja";
  if (is_there(own)) return hash128_hex(with_unix_lines(read_text(own)));
  const fs::path path = directory / "tokenizer_config.json";
  if (!is_there(path)) return {};
  const Json config = parse_json(read_text(path), kOp, quote(path.string()));
  const JsonFields fields(config, kOp, quote(path.string()) + ": ");
  if (!fields.has_value("chat_template")) return {};
  Json source = fields.at("chat_template");
  if (source.is_array()) source = default_of(source);
  if (source.is_null()) return {};
  if (!source.is_string()) fields.refuse("chat_template", "text");
  return hash128_hex(source.get_ref<const std::string&>());
}

}  // namespace modicum
