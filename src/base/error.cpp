// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>

namespace modicum {

std::string describe(const Failure& failure) {
  std::string text = "[" + std::string(failure.op) + "] " + failure.what;
  if (!failure.expected.empty()) text += ": expected " + failure.expected;
  if (!failure.got.empty()) text += (failure.expected.empty() ? ": got " : ", got ") + failure.got;
  if (!failure.todo.empty()) text += "; " + failure.todo;
  return text;
}

}  // namespace modicum
