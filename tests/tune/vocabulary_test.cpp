// SPDX-License-Identifier: Apache-2.0
#include "../../src/tune/vocabulary.hpp"

#include <modicum/base/error.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;
using Names = std::vector<std::string>;
using Rows = std::vector<std::int64_t>;

namespace {

constexpr std::int64_t kAbsent = RowPlan::kAbsent;

/// Tokens by id, "" where there is none.
Vocabulary vocabulary(Names names, Names added = {}) {
  Vocabulary out{.ids = {}, .names = std::move(names), .added = std::move(added)};
  for (std::size_t i = 0; i < out.names.size(); ++i) {
    if (!out.names[i].empty()) out.ids[out.names[i]] = static_cast<TokenId>(i);
  }
  return out;
}

RowsOf rows_of(const char* name, const Vocabulary& tokens, std::size_t rows) {
  return {.name = name, .vocabulary = &tokens, .rows = rows, .fingerprint = name};
}

}  // namespace

TEST_CASE("a vocabulary is read from tokenizer.json, of either form, with its added tokens") {
  const TemporaryDirectory directory;
  CHECK_FALSE(Vocabulary::read(directory.path()));
  directory.write("tokenizer.json",
                  R"({"model":{"vocab":{"a":0,"c":3,"b":1}},"added_tokens":[{"id":5,"content":"<u>"},)"
                  R"({"id":4,"content":"<e>"}]})");
  const Vocabulary tokens = Vocabulary::read(directory.path()).value();
  CHECK(tokens.names == Names{"a", "b", "", "c", "<e>", "<u>"});
  CHECK(tokens.added == Names{"<e>", "<u>"});
  CHECK(tokens.id_of("c") == 3);
  CHECK_FALSE(tokens.id_of("d"));
  directory.write("tokenizer.json", R"({"model":{"vocab":[["a",-1.5],["b",0]]}})");
  CHECK(Vocabulary::read(directory.path()).value().names == Names{"a", "b"});
}

TEST_CASE("a tokenizer.json without a vocabulary is refused") {
  const TemporaryDirectory directory;
  for (const char* const text :
       {"[]", "{}", R"({"model":{}})", R"({"model":{"vocab":1}})", R"({"model":{"vocab":{"a":-1}}})",
        R"({"model":{"vocab":{"a":99999999999}}})", R"({"model":{"vocab":[1]}})",
        R"({"model":{"vocab":{}},"added_tokens":{}})",
        R"({"model":{"vocab":{}},"added_tokens":[{"id":1}]})"}) {
    directory.write("tokenizer.json", text);
    INFO(text);
    CHECK_THROWS_AS(Vocabulary::read(directory.path()), FormatError);
  }
}

TEST_CASE("what differs between vocabularies is named") {
  const Vocabulary one = vocabulary({"a", "b", "c"}), other = vocabulary({"a", "x", "c", "d"});
  CHECK(difference({rows_of("m", one, 4), rows_of("n", one, 4)}).empty());
  CHECK_THAT(difference({rows_of("m", one, 4), rows_of("n", other, 4)}),
             Contains("2 tokens") && Contains("'b', 'd'"));
  CHECK_THAT(difference({rows_of("m", one, 4), rows_of("n", one, 8)}),
             Contains("4 rows") && Contains("8 in"));
  Names many(30);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = "t" + std::to_string(i);
  const Vocabulary long_one = vocabulary(many), empty = vocabulary({});
  CHECK_THAT(difference({rows_of("m", long_one, 30), rows_of("n", empty, 30)}), Contains("and 18 more"));
}

TEST_CASE("rows of one token belong together, whatever their numbers") {
  const Vocabulary own = vocabulary({"a", "b", "c"}), other = vocabulary({"c", "x", "a"});
  const RowPlan plan = match_rows({rows_of("m", own, 3), rows_of("n", other, 3)}, 0, false, {});
  CHECK(plan.rows == 3);
  CHECK(plan.mapped());
  CHECK(plan.row_of[0] == Rows{0, 1, 2});
  CHECK(plan.row_of[1] == Rows{2, kAbsent, 0});
  CHECK(plan.partial == Names{"b"});
  CHECK(plan.dropped == Names{"x"});
  CHECK(plan.added.empty());
}

TEST_CASE("with all tokens, those that others added get rows of their own") {
  const Vocabulary own = vocabulary({"a", "b", "", "c"});
  const Vocabulary other = vocabulary({"a", "b", "x", "<u>", "<e>", "<t>"}, {"<u>", "<e>", "<t>"});
  // Row 2 has no token, row 4 is padding, and the third is put behind the last.
  const RowPlan plan = match_rows({rows_of("m", own, 5), rows_of("n", other, 6)}, 0, true, {});
  CHECK(plan.rows == 6);
  CHECK(plan.added == Names{"<u>", "<e>", "<t>"});
  CHECK(plan.added_ids == std::vector<TokenId>{2, 4, 5});
  CHECK(plan.row_of[0] == Rows{0, 1, kAbsent, 3, kAbsent, kAbsent});
  CHECK(plan.row_of[1] == Rows{0, 1, 3, kAbsent, 4, 5});
  CHECK(plan.dropped == Names{"x"});
  CHECK(plan.partial == Names{"<u>", "c", "<e>", "<t>"});
}

TEST_CASE("tokens that are said to stand for each other share a row") {
  const Vocabulary own = vocabulary({"a", "<end>"}), other = vocabulary({"<|im_end|>", "a"});
  const RowPlan plan =
      match_rows({rows_of("m", own, 2), rows_of("n", other, 2)}, 0, false, {{"<end>", "<|im_end|>"}});
  CHECK(plan.row_of[1] == Rows{1, 0});
  CHECK(plan.partial.empty());
}

TEST_CASE("padding rows belong together only where both are padding") {
  const Vocabulary own = vocabulary({"a"}), other = vocabulary({"a", "b"});
  const RowPlan plan = match_rows({rows_of("m", own, 4), rows_of("n", other, 3)}, 0, false, {});
  CHECK(plan.row_of[0] == Rows{0, 1, 2, 3});
  CHECK(plan.row_of[1] == Rows{0, kAbsent, 2, kAbsent});
}

TEST_CASE("a token without a row in its model is one that the model lacks") {
  const Vocabulary own = vocabulary({"a", "b"}), other = vocabulary({"b", "a"});
  const RowPlan plan = match_rows({rows_of("m", own, 2), rows_of("n", other, 1)}, 0, false, {});
  CHECK(plan.row_of[1] == Rows{kAbsent, 0});
  CHECK(plan.partial == Names{"a"});
}

TEST_CASE("rows cannot be matched by token without a tokenizer") {
  const Vocabulary own = vocabulary({"a"});
  const RowsOf without{.name = "n", .vocabulary = nullptr, .rows = 1, .fingerprint = ""};
  CHECK_THROWS_WITH(match_rows({rows_of("m", own, 1), without}, 0, false, {}), Contains("tokenizer.json"));
}
