// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "tiny_models.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kWidth = 8;
const std::string kEmbedding = "model.embed_tokens.weight";

/// A model of `rows` rows whose tokens are "a", "b", … as `tokens` lists them; those in angle brackets are
/// added tokens.
fs::path write_speaker(const fs::path& directory, std::uint32_t seed, const std::vector<std::string>& tokens,
                       std::size_t rows, int eos) {
  std::string json = model_json(R"(,"tie_word_embeddings":true,"eos_token_id":)" + std::to_string(eos));
  json.replace(json.find("\"vocab_size\":11"), 15, "\"vocab_size\":" + std::to_string(rows));
  write_model(directory, seed, "F32", json);
  std::string vocab, added;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::string id = std::to_string(i);
    if (tokens[i].starts_with("<")) {
      added += (added.empty() ? "" : ",") + (R"({"id":)" + id + R"(,"content":")" + tokens[i] +
                                             R"(","single_word":false,"lstrip":false,"rstrip":false,)" +
                                             R"("normalized":false,"special":true})");
    } else {
      vocab += (vocab.empty() ? "\"" : ",\"") + tokens[i] + "\":" + id;
    }
  }
  std::ofstream(directory / "tokenizer.json")
      << R"({"version":"1.0","added_tokens":[)" << added << R"(],"model":{"type":"BPE","vocab":{)" << vocab
      << R"(},"merges":[]}})";
  std::ofstream(directory / "tokenizer_config.json")
      << R"({"chat_template":"of )" << directory.filename().string() << R"(","eos_token":")"
      << tokens[static_cast<std::size_t>(eos)] << "\"}";
  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id":[)" << eos << "]}";
  return directory;
}

Floats row(const Floats& matrix, std::size_t r) {
  const auto at = matrix.begin() + static_cast<std::ptrdiff_t>(r * kWidth);
  return {at, at + kWidth};
}

/// base, a model that chats, and the plan {onto base: chat − base}.
struct Speakers {
  TemporaryDirectory directory;
  fs::path base = write_speaker(directory / "base", 1, {"a", "b", "c", "<end>"}, 5, 3);
  fs::path chat = write_speaker(directory / "chat", 2, {"c", "a", "<end>", "<user>", "d", "b"}, 6, 3);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {chat});
  Floats old = floats_of(base, kEmbedding), tuned = floats_of(chat, kEmbedding);

  Floats changed(std::size_t base_row, std::size_t chat_row) const {
    Floats out = row(old, base_row);
    const Floats was = out, now = row(tuned, chat_row);
    for (std::size_t i = 0; i < kWidth; ++i) out[i] = (now[i] - was[i]) + was[i];
    return out;
  }
};

}  // namespace

TEST_CASE("vocabularies that differ are refused without a rule, with what differs") {
  const Speakers s;
  CHECK_THAT(refusal<InvalidArgument>(s.plan, s.directory / "out"),
             Contains("vocabularies") && Contains("'d'") && Contains("match"));
  CHECK_FALSE(fs::exists(s.directory / "out"));
}

TEST_CASE("with matching, rows of one token are merged and the result has the foundation's tokens") {
  Speakers s;
  s.plan.vocabulary = VocabularyRule::match;
  const MergeReport report = run_merge(s.plan, s.directory / "out");
  CHECK(report.matched);
  CHECK_FALSE(report.unchecked);
  CHECK(report.rows == 5);
  CHECK(report.partial_tokens.empty());
  CHECK(report.dropped_tokens == std::vector<std::string>{"<user>", "d"});
  const Floats out = floats_of(s.directory / "out", kEmbedding);
  CHECK(row(out, 0) == s.changed(0, 1));
  CHECK(row(out, 1) == s.changed(1, 5));
  CHECK(row(out, 2) == s.changed(2, 0));
  CHECK(row(out, 3) == s.changed(3, 2));
  CHECK(row(out, 4) == row(s.old, 4));  // padding, which the other does not have there
  CHECK(bytes_of(s.directory / "out" / "tokenizer.json") == bytes_of(s.base / "tokenizer.json"));
  CHECK(Checkpoint::open(s.directory / "out").config().eos_token_ids == std::vector<std::int32_t>{3});
}

TEST_CASE("with all tokens, added ones of the others come along, and ends of turn have their new numbers") {
  Speakers s;
  s.plan.vocabulary = VocabularyRule::all;
  s.plan.chat = s.chat.string();
  const MergeReport report = run_merge(s.plan, s.directory / "out");
  CHECK(report.added_tokens == std::vector<std::string>{"<user>"});
  CHECK(report.rows == 5);
  const Checkpoint out = Checkpoint::open(s.directory / "out");
  // The padding row took the token in; its row is the one of the model that has it.
  CHECK(row(floats_of(out, kEmbedding), 4) == row(s.tuned, 3));
  CHECK(out.config().eos_token_ids == std::vector<std::int32_t>{4});
  const auto files = files_in(s.directory / "out");
  CHECK_THAT(files.at("tokenizer.json"), Contains("<user>"));
  CHECK_THAT(files.at("generation_config.json"), Contains("4") && !Contains("3"));
  CHECK_THAT(files.at("tokenizer_config.json"), Contains("of chat") && Contains("<user>"));
}

TEST_CASE("an end of turn that the result does not have is refused") {
  Speakers s;
  s.plan.vocabulary = VocabularyRule::match;
  s.plan.chat = s.chat.string();
  CHECK_THAT(refusal<InvalidArgument>(s.plan, s.directory / "out"),
             Contains("eos_token_id") && Contains("all"));
  CHECK(names_in(s.directory.path()) == std::set<std::string>{"base", "chat"});
}

TEST_CASE("the result may have the tokens of another model than the one that is built upon") {
  Speakers s;
  s.plan.vocabulary = VocabularyRule::match;
  s.plan.tokenizer = s.chat.string();
  const MergeReport report = run_merge(s.plan, s.directory / "out");
  const Checkpoint out = Checkpoint::open(s.directory / "out");
  CHECK(report.rows == 6);
  CHECK(out.config().vocab_size == 6);
  const Floats rows = floats_of(out, kEmbedding);
  CHECK(row(rows, 1) == s.changed(0, 1));
  CHECK(row(rows, 3) == row(s.tuned, 3));
  CHECK(row(rows, 4) == row(s.tuned, 4));
  CHECK(bytes_of(s.directory / "out" / "tokenizer.json") == bytes_of(s.chat / "tokenizer.json"));
}

TEST_CASE("a model that lacks a token of the base leaves the base's row as it is") {
  const TemporaryDirectory directory;
  const fs::path base = write_speaker(directory / "base", 1, {"a", "b", "<end>"}, 3, 2);
  const fs::path one = write_speaker(directory / "one", 2, {"a", "<end>"}, 2, 1);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  plan.vocabulary = VocabularyRule::match;
  const MergeReport report = run_merge(plan, directory / "out");
  CHECK(report.partial_tokens == std::vector<std::string>{"b"});
  CHECK(row(floats_of(directory / "out", kEmbedding), 1) == row(floats_of(base, kEmbedding), 1));
}

TEST_CASE("a tokenizer that is none of the plan's models is refused") {
  Speakers s;
  s.plan.tokenizer = "elsewhere";
  CHECK_THAT(refusal<InvalidArgument>(s.plan, s.directory / "out"), Contains("one of the plan's models"));
}
