// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <unordered_map>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/base/mapped_file.hpp>
#include <modicum/text/tokenizer.hpp>

#include "component.hpp"
#include "tokenizer_state.hpp"

namespace modicum {
namespace {

const Json& part(const text::TokenizerJson& file, const char* field) {
  static const Json kNull;
  const auto found = file.rest.find(field);
  return found == file.rest.end() ? kNull : *found;
}

void check_frame(const text::TokenizerJson& file) {
  const JsonFields fields(file.rest, "tokenizer.load", "");
  if (fields.has("version") && fields.text("version") != "1.0") fields.refuse<Unsupported>("version", "1.0");
  // The original would cut texts short, or fill them up, without a word.
  for (const char* field : {"truncation", "padding"}) {
    if (fields.has_value(field))
      fields.refuse<Unsupported>(field, "null", "set it to null to encode whole texts");
  }
}

/// tokenizer.json: a file, or that of a directory.
MappedFile mapped_json(const std::filesystem::path& path) {
  return MappedFile(std::filesystem::is_directory(path) ? path / "tokenizer.json" : path);
}

}  // namespace

Tokenizer::State::State(text::TokenizerJson file, std::string hash)
    : normalizer(text::parse_normalizer(part(file, "normalizer"))),
      pre_tokenizer(text::parse_pre_tokenizer(part(file, "pre_tokenizer"))),
      model(text::build_bpe(file)),
      added(part(file, "added_tokens"), model.vocabulary(), normalizer.get()),
      post_processor(text::parse_post_processor(part(file, "post_processor"))),
      decoder(text::parse_decoder(part(file, "decoder"))),
      fingerprint(std::move(hash)) {}

std::optional<std::string_view> Tokenizer::State::text_of(TokenId id) const {
  const auto text = added.text(id);
  return text ? text : model.vocabulary().text(id);
}

void Tokenizer::State::pre_tokenize(text::Pieces& pieces) const {
  added.extract(pieces, normalizer.get());
  if (pre_tokenizer.steps) pre_tokenizer.steps->apply(pieces);
  if (pre_tokenizer.ends_in_bytes && !model.takes_bytes()) text::bytes_to_letters(pieces);
}

text::Processed Tokenizer::State::tokenize(std::string_view original, const text::Pieces& pieces) const {
  const bool bytes = pre_tokenizer.ends_in_bytes && model.takes_bytes();
  text::Bpe::Session session(original.size());
  text::Processed result{.original = original};
  std::unordered_map<std::size_t, std::string_view> matched;
  for (const text::Piece& piece : pieces.list) {
    const std::size_t first = session.tokens.size();
    if (piece.added != text::Piece::kNone) {
      matched.emplace(first, piece.text());
      session.tokens.push_back({piece.added, piece.end - piece.begin});
    } else if (bytes) {
      model.encode_bytes(piece.text(), session);
    } else {
      model.encode(piece.text(), session);
    }
    std::size_t at = piece.begin;
    for (std::size_t i = first; i < session.tokens.size(); ++i) {
      const text::Symbol& token = session.tokens[i];
      const text::Span span = piece.source->span(at, at + token.length);
      result.ids.push_back(token.id);
      result.offsets.push_back({span.begin, span.end});
      at += token.length;
    }
  }
  result.token_text = [this, matched = std::move(matched)](std::size_t place, TokenId id) {
    const auto found = matched.find(place);
    return found != matched.end() ? found->second : model.vocabulary().text(id).value_or(std::string_view());
  };
  return result;
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const MappedFile file = mapped_json(path);
  const auto bytes = file.bytes();
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

std::string Tokenizer::fingerprint_of(const std::filesystem::path& path) {
  return hash128_hex(mapped_json(path).bytes());
}

Tokenizer Tokenizer::parse(std::string_view json) {
  text::TokenizerJson file = text::read_tokenizer_json(json);
  check_frame(file);
  return Tokenizer(std::make_shared<const State>(std::move(file), hash128_hex(json)));
}

Encoding Tokenizer::encode(std::string_view text, AddSpecial add) const {
  const std::size_t invalid = text::find_invalid_utf8(text);
  if (invalid != std::string_view::npos) {
    fail({.op = "tokenizer.encode",
          .what = "text",
          .expected = "UTF-8",
          .got = "an ill-formed sequence at byte " + std::to_string(invalid)});
  }
  if (text.size() > std::numeric_limits<std::uint32_t>::max() / 4) {
    fail({.op = "tokenizer.encode",
          .what = "text",
          .expected = "at most 1 GiB",
          .got = std::to_string(text.size()) + " bytes",
          .todo = "encode it in parts"});
  }
  text::Pieces pieces;
  pieces.hold(text::NormalizedText(text, 0));
  state_->pre_tokenize(pieces);
  text::Processed tokens = state_->tokenize(text, pieces);

  const std::vector<TokenId>* frame = nullptr;
  for (const auto& step : state_->post_processor) {
    step->trim(tokens);
    if (step->frame() != nullptr) frame = step->frame();
  }
  if (frame == nullptr) return {std::move(tokens.ids), std::move(tokens.offsets)};
  Encoding result;
  for (const TokenId id : *frame) {
    if (id == text::PostProcessor::kText) {
      result.ids.insert(result.ids.end(), tokens.ids.begin(), tokens.ids.end());
      result.offsets.insert(result.offsets.end(), tokens.offsets.begin(), tokens.offsets.end());
    } else if (add == AddSpecial::yes) {
      result.ids.push_back(id);
      result.offsets.push_back({});
    }
  }
  return result;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, SpecialTokens special) const {
  StreamDecoder stream(*this, special);
  std::string result;
  for (const TokenId id : ids) result += stream.push(id);
  return result += stream.finish();
}

std::size_t Tokenizer::vocabulary_size() const {
  std::size_t size = state_->model.vocabulary().size();
  for (const auto& [token, id] : state_->added.ids()) size += !state_->model.vocabulary().find(token);
  return size;
}

std::optional<TokenId> Tokenizer::id_of(std::string_view token) const {
  const auto id = state_->added.find(token);
  return id ? id : state_->model.vocabulary().find(token);
}

std::optional<std::string> Tokenizer::token_of(TokenId id) const {
  const auto text = state_->text_of(id);
  return text ? std::optional(std::string(*text)) : std::nullopt;
}

bool Tokenizer::is_special(TokenId id) const {
  const auto text = state_->text_of(id);
  return text && state_->is_special(*text);
}

std::string Tokenizer::bytes_of(TokenId id) const {
  const auto text = state_->text_of(id);
  if (!text || state_->is_special(*text)) return {};
  return text::token_bytes(state_->decoder, *text);
}

const std::string& Tokenizer::fingerprint() const {
  return state_->fingerprint;
}

struct StreamDecoder::State {
  explicit State(const text::DecoderChain& chain) : decoding(chain) {}
  text::Decoding decoding;
};

StreamDecoder::StreamDecoder(Tokenizer tokenizer, SpecialTokens special)
    : tokenizer_(std::move(tokenizer)),
      special_(special),
      state_(std::make_unique<State>(tokenizer_.state_->decoder)) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(TokenId id) {
  const auto token = tokenizer_.state_->text_of(id);
  if (!token) {
    fail({.op = "tokenizer.decode",
          .what = "token id",
          .expected = "one of the vocabulary",
          .got = std::to_string(id)});
  }
  if (special_ == SpecialTokens::skip && tokenizer_.state_->is_special(*token)) return {};
  state_->decoding.push(*token);
  return state_->decoding.take();
}

std::string StreamDecoder::finish() {
  state_->decoding.finish();
  std::string rest = state_->decoding.take();
  state_ = std::make_unique<State>(tokenizer_.state_->decoder);
  return rest;
}

}  // namespace modicum
