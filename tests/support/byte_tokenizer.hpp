// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <string>

/// A tokenizer.json of byte-level BPE without merges: ids 0 to 255 stand for the bytes, "<|end|>" is 256,
/// "<|user|>" 257.
inline std::string byte_tokenizer_json() {
  std::string vocabulary;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    // GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    char entry[32];
    std::snprintf(entry, sizeof entry, "%s\"\\u%04x\":%u", byte == 0 ? "" : ",", printable ? byte : next++,
                  byte);
    vocabulary += entry;
  }
  const auto added = [](int id, const char* text) {
    return R"({"id":)" + std::to_string(id) + R"(,"content":")" + text +
           R"(","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})";
  };
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added(256, "<|end|>") +
         "," + added(257, "<|user|>") +
         R"(],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,)"
         R"("use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,)"
         R"("trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,)"
         R"("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,)"
         R"("ignore_merges":false,"vocab":{)" +
         vocabulary + R"(},"merges":[]}})";
}
