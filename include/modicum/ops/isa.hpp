// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

namespace modicum::ops {

/// Instruction sets that kernels are written for, narrowest first.
enum class Isa { plain, avx2, avx512, avx512vnni, avx512bf16, amx };

std::string_view name_of(Isa isa);
/// What this processor (and its kernel) can run, narrowest first; `plain` always.
const std::vector<Isa>& supported_isas();
/// The widest supported one, or what the environment variable MODICUM_ISA names. Throws `InvalidArgument` for
/// an unknown name and `Unsupported` for one that this processor lacks.
Isa active_isa();
/// Makes `isa` the active one for this process; for tests that compare kernels. Throws `Unsupported`.
void force_isa(Isa isa);

}  // namespace modicum::ops
