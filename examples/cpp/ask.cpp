// SPDX-License-Identifier: Apache-2.0
// Answers one question from a knowledge cache:  ask MODEL CACHE QUESTION
// (build the cache with:  modicum cag build --model MODEL --out CACHE DOCUMENTS…)
#include <iostream>

#include <modicum/modicum.hpp>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: ask MODEL CACHE QUESTION\n";
    return 2;
  }
  try {
    const auto model = modicum::Model::load(argv[1]);
    const auto knowledge = modicum::cag::Knowledge::open(argv[2], model);
    const auto stream = [](const modicum::GeneratedToken& token) {
      std::cout << token.text << std::flush;
      return true;
    };
    const modicum::cag::Answer answer = knowledge.ask(argv[3], {.max_new_tokens = 64}, stream);
    std::cout << '\n';
    for (const modicum::cag::Citation& c : answer.citations) {
      std::cout << "  " << c.source << ", line " << c.line << ", bytes " << c.bytes.begin << "-"
                << c.bytes.end << ": " << c.quote << '\n';
    }
    std::cout << "  " << answer.cost.cached_tokens << " tokens from the cache, "
              << answer.cost.question_tokens << " read, " << answer.cost.new_tokens << " written, in "
              << 1e3 * (answer.cost.prefill_seconds + answer.cost.decode_seconds) << " ms\n";
  } catch (const modicum::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
