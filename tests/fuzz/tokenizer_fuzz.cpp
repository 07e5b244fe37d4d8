// SPDX-License-Identifier: Apache-2.0
// The first byte chooses: 0 reads the rest as a tokenizer.json, anything else encodes the rest with one of a
// few tokenizers that between them use every component.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/text/tokenizer.hpp>

using namespace modicum;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

/// What holds for every tokenizer and every text.
void exercise(const Tokenizer& tokenizer, std::string_view text) {
  Encoding encoding;
  try {
    encoding = tokenizer.encode(text);
  } catch (const Error&) {
    return;
  }
  require(encoding.ids.size() == encoding.offsets.size());
  for (const ByteRange& range : encoding.offsets) {
    require(range.begin <= range.end && range.end <= text.size());
  }
  std::vector<TokenId> known;
  for (const TokenId id : encoding.ids) {
    if (tokenizer.token_of(id)) known.push_back(id);  // a post-processor may name others
  }
  try {
    StreamDecoder stream(tokenizer, SpecialTokens::keep);
    std::string streamed;
    for (const TokenId id : known) streamed += stream.push(id);
    streamed += stream.finish();
    require(streamed == tokenizer.decode(known, SpecialTokens::keep));
  } catch (const Error&) {
  }
}

std::string letters() {
  std::string vocabulary;
  int id = 0;
  for (int byte = 0, next = 0x100; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    std::array<char, 16> escaped{};
    std::snprintf(escaped.data(), escaped.size(), "\\u%04x", printable ? byte : next++);
    vocabulary += std::string(id > 0 ? "," : "") + "\"" + escaped.data() + "\":" + std::to_string(id);
    ++id;
  }
  return vocabulary;
}

std::string byte_tokens() {
  std::string vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    std::array<char, 16> token{};
    std::snprintf(token.data(), token.size(), "<0x%02X>", byte);
    vocabulary += ",\"" + std::string(token.data()) + "\":" + std::to_string(100 + byte);
  }
  return vocabulary;
}

/// The built-in tokenizers, as the parts before the model, the model's options, its vocabulary and its
/// merges.
Tokenizer assemble(std::string_view parts, std::string_view options, std::string_view vocabulary,
                   std::string_view merges) {
  std::string json = "{";
  json.append(parts).append(R"("model":{"type":"BPE",)").append(options).append(R"("vocab":{)");
  json.append(vocabulary).append(R"(},"merges":[)").append(merges).append("]}}");
  return Tokenizer::parse(json);
}

constexpr std::string_view kAdded = R"("added_tokens":[
  {"id":300,"content":"<s>","special":true,
   "single_word":false,"lstrip":true,"rstrip":true,"normalized":false},
  {"id":301,"content":"the","special":false,
   "single_word":true,"lstrip":false,"rstrip":false,"normalized":true}],)";
constexpr std::string_view kMerges = R"(["a","b"],["b","a"],["ab","a"],["t","h"],["th","e"],["\u0120","a"])";
constexpr std::string_view kJoined = R"(,"ab":256,"ba":257,"aba":258,"th":259,"the":260,"\u0120a":261)";

Tokenizer gpt2_like() {
  const std::string parts = R"("normalizer":{"type":"NFC"},
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true},
    "post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true},
    "decoder":{"type":"ByteLevel"},)";
  return assemble(std::string(kAdded) + parts, "", letters().append(kJoined), kMerges);
}

Tokenizer llama3_like() {
  std::string parts(kAdded);
  parts += R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")";
  parts += R"((?i:'s|'t|'re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*)";
  parts += R"(|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|[\u4e00-\u9fa5]+"},"behavior":"Isolated","invert":false},
    {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},"decoder":{"type":"ByteLevel"},)";
  return assemble(parts, R"("ignore_merges":true,)", letters().append(kJoined), kMerges);
}

Tokenizer llama2_like() {
  const std::string_view parts = R"("normalizer":{"type":"Sequence","normalizers":[
      {"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
    "decoder":{"type":"Sequence","decoders":[
      {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
      {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":1}]},)";
  const std::string_view pieces = R"("<unk>":0,"▁":1,"a":2,"b":3,"▁a":4,"▁▁":5,"ab":6)";
  return assemble(parts, R"("byte_fallback":true,"fuse_unk":true,"unk_token":"<unk>",)",
                  std::string(pieces) + byte_tokens(), R"("▁ a","▁ ▁","a b")");
}

Tokenizer everything_else() {
  const std::string parts = R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFKD"},
      {"type":"Lowercase"},{"type":"Strip","strip_left":true,"strip_right":true},
      {"type":"Replace","pattern":{"Regex":"\\p{M}*"},"content":"b"},{"type":"NFKC"}]},
    "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
      {"type":"Punctuation","behavior":"MergedWithNext"},
      {"type":"Metaspace","replacement":"_","prepend_scheme":"first"}]},
    "decoder":{"type":"Metaspace","replacement":"_"},)";
  return assemble(std::string(kAdded) + parts,
                  R"("continuing_subword_prefix":"#","end_of_word_suffix":"w","unk_token":"<unk>",)",
                  R"("<unk>":0,"a":1,"b":2,"#a":3,"#b":4,"#aw":5,"ab":6,"abb":7)",
                  R"(["a","#b"],["ab","#b"])");
}

const std::vector<Tokenizer>& tokenizers() {
  static const std::vector<Tokenizer> all{gpt2_like(), llama3_like(), llama2_like(), everything_else()};
  return all;
}

void read(std::string_view json) {
  try {
    const Tokenizer tokenizer = Tokenizer::parse(json);
    for (const char* text :
         {"", " a", "the <s> b\n\n12 abab \xC3\xA9\xE4\xB8\xAD", "\xCC\x81\xF0\x9F\x98\x80  '\xC5\xBF x"}) {
      exercise(tokenizer, text);
    }
    exercise(tokenizer, std::string(300, 'a') + std::string(60, ' '));
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 0) {
    read(rest);
  } else {
    exercise(tokenizers()[data[0] % tokenizers().size()], rest);
  }
  return 0;
}
