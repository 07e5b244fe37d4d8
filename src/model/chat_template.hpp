// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

namespace modicum {

/// XXH3-128 of the chat template of a Hugging Face directory, as transformers looks for it:
/// chat_template.jinja, else `chat_template` in tokenizer_config.json, of several the one named "default".
/// Empty where there is none. Throws `FormatError` where tokenizer_config.json is broken.
std::string chat_template_hash(const std::filesystem::path& directory);

}  // namespace modicum
