// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include <modicum/decode/text_stream.hpp>

#include "support/catch.hpp"

using modicum::StopStrings;

namespace {

/// Feeds `text` in pieces of every size and returns what came through, which must not depend on the size.
std::string let_through(const std::vector<std::string>& stops, const std::string& text) {
  std::string expected;
  for (std::size_t size = 1; size <= text.size(); ++size) {
    StopStrings filter(stops);
    std::string out;
    for (std::size_t i = 0; i < text.size(); i += size) {
      out += filter.push(text.substr(i, size));
    }
    out += filter.finish();
    if (size == 1) {
      expected = out;
    }
    CHECK(out == expected);
  }
  return expected;
}

}  // namespace

TEST_CASE("text ends before the first stop string, however it arrives") {
  CHECK(let_through({}, "any text") == "any text");
  CHECK(let_through({"END"}, "the END of it") == "the ");
  CHECK(let_through({"END"}, "ENEND") == "EN");
  CHECK(let_through({"aab"}, "aaaab") == "aa");
  CHECK(let_through({"x", "END"}, "the ENx") == "the EN");
  CHECK(let_through({"END"}, "the EN") == "the EN");
}

TEST_CASE("an end that may become a stop string is held back until it is decided") {
  StopStrings filter({"\nUser:"});
  CHECK(filter.push("Hello") == "Hello");
  CHECK(filter.push(" you.\nUs") == " you.");
  CHECK(filter.push("ual") == "\nUsual");
  CHECK(filter.push("\nUser") == "");
  CHECK_FALSE(filter.found());
  CHECK(filter.push(": more") == "");
  CHECK(filter.found());
  CHECK(filter.push("nothing") == "");
  CHECK(filter.finish() == "");
}

TEST_CASE("an empty stop string is refused, and so are stop strings without a tokenizer") {
  CHECK_THROWS_AS(StopStrings({"a", ""}), modicum::InvalidArgument);
  CHECK_THROWS_AS(modicum::TextStream(nullptr, {"a"}), modicum::InvalidArgument);
}

TEST_CASE("without a tokenizer there is no text") {
  modicum::TextStream stream(nullptr, {});
  CHECK(stream.push(3) == "");
  CHECK(stream.finish() == "");
  CHECK_FALSE(stream.stopped());
}
