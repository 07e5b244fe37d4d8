// SPDX-License-Identifier: Apache-2.0
// What somebody else's program does first: it includes the one header, and meets an error that helps.
#include <cstdio>

#include <modicum/modicum.hpp>

int main() {
  try {
    modicum::Model::load("no-such-directory");
  } catch (const modicum::Error& error) {
    std::printf("consumer: %s\n", error.what());
    return 0;
  }
  return 1;
}
