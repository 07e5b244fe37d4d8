// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace modicum {

/// Whether a file of a Hugging Face directory holds weights, in whatever format, or tells where they are.
bool is_weights(const std::filesystem::path& name);

/// Tokenizer, generation_config.json, licence and the like; not config.json, weights or hidden files.
void copy_other_files(const std::filesystem::path& from, const std::filesystem::path& to,
                      std::string_view op);

/// One file, byte for byte, atomically. `tell`, where given, hears of the bytes that are done now and then,
/// and stops the copy by throwing.
void copy_verbatim(const std::filesystem::path& from, const std::filesystem::path& to,
                   const std::function<void(std::uint64_t)>& tell = {});

void write_text(const std::filesystem::path& path, std::string_view text);

}  // namespace modicum
