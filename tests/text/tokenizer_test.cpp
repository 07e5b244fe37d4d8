// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/text/tokenizer.hpp>

#include "support/catch.hpp"

using modicum::Tokenizer;

TEST_CASE("a broken tokenizer.json is refused") {
  CHECK_THROWS_AS(Tokenizer::parse("{"), modicum::FormatError);
  CHECK_THROWS_AS(Tokenizer::parse("{}"), modicum::FormatError);
}
