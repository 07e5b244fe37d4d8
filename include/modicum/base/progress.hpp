// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include <modicum/base/error.hpp>

namespace modicum {

/// Called now and then during long work with (stage, done, total); `done` never falls within a stage.
/// Returning false cancels the work: it throws `Cancelled` and leaves files and objects as they were.
using Progress = std::function<bool(std::string_view stage, std::uint64_t done, std::uint64_t total)>;

/// Reports to `progress` if there is one and throws `Cancelled` when it asks to stop.
inline void report(const Progress& progress, std::string_view stage, std::uint64_t done,
                   std::uint64_t total) {
  if (progress && !progress(stage, done, total)) {
    fail<Cancelled>({.op = stage, .what = "stopped by the caller"});
  }
}

}  // namespace modicum
