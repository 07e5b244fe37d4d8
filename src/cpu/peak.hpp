// SPDX-License-Identifier: Apache-2.0
// Loops that do nothing but multiply and add, to measure what an instruction set can do at most.
#pragma once

#include <modicum/ops/isa.hpp>

namespace modicum::cpu {

/// `run` makes `steps` times `operations` operations: independent multiply-adds in registers, enough of them
/// that none waits for another.
struct Chain {
  void (*run)(int steps) = nullptr;
  double operations = 0;
};

struct Chains {
  Chain f32;
  Chain bf16;  ///< that of f32 where there are no such instructions; int8 likewise
  Chain int8;
};

Chains chains(ops::Isa isa);

}  // namespace modicum::cpu
