// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/isa.hpp>

#if defined(MODICUM_X86)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include <modicum/base/error.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {
namespace {

constexpr Isa kAll[] = {Isa::plain, Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::avx512bf16, Isa::amx};

#if defined(MODICUM_X86)
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d >> 22 & 1u) != 0 && (d >> 24 & 1u) != 0 && (d >> 25 & 1u) != 0 && cpu::amx_request();
}

std::vector<Isa> detect() {
  __builtin_cpu_init();
  std::vector<Isa> found{Isa::plain};
  const auto add = [&](Isa isa, bool here) {
    if (here) found.push_back(isa);
    return here;
  };
  if (!add(Isa::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return found;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!add(Isa::avx512, wide)) return found;
  if (!add(Isa::avx512vnni, __builtin_cpu_supports("avx512vnni"))) return found;
  if (!add(Isa::avx512bf16, __builtin_cpu_supports("avx512bf16"))) return found;
  add(Isa::amx, has_amx());
  return found;
}
#else
std::vector<Isa> detect() {
  return {Isa::plain};
}
#endif

std::string names_of(const std::vector<Isa>& isas) {
  std::string text;
  for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(name_of(isa));
  return text;
}

void require_supported(Isa isa) {
  const auto& here = supported_isas();
  if (std::find(here.begin(), here.end(), isa) == here.end()) {
    fail<Unsupported>({.op = "isa",
                       .what = "MODICUM_ISA",
                       .expected = "one of " + names_of(here),
                       .got = std::string(name_of(isa)) + ", which this processor lacks"});
  }
}

Isa choose() {
  const char* wanted = std::getenv("MODICUM_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported_isas().back();
  for (const Isa isa : kAll) {
    if (name_of(isa) != wanted) continue;
    require_supported(isa);
    return isa;
  }
  fail({.op = "isa",
        .what = "MODICUM_ISA",
        .expected = "one of " + names_of({std::begin(kAll), std::end(kAll)}),
        .got = "'" + std::string(wanted) + "'"});
}

std::atomic<const cpu::KernelTable*> active{nullptr};

const cpu::KernelTable& table_of(Isa isa) {
  switch (isa) {
#if defined(MODICUM_X86)
    case Isa::amx:
      return cpu::amx_kernels();
    case Isa::avx512vnni:
      return cpu::avx512vnni_kernels();
    case Isa::avx512bf16:
      return cpu::avx512bf16_kernels();
    case Isa::avx512:
      return cpu::avx512_kernels();
    case Isa::avx2:
      return cpu::avx2_kernels();
#endif
    default:
      break;
  }
  return cpu::plain_kernels();
}

}  // namespace

std::string_view name_of(Isa isa) {
  static constexpr std::string_view names[] = {"plain", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"};
  return names[static_cast<int>(isa)];
}

const std::vector<Isa>& supported_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

Isa active_isa() {
  return cpu::kernels().isa;
}

void force_isa(Isa isa) {
  require_supported(isa);
  active.store(&table_of(isa));
}

}  // namespace modicum::ops

namespace modicum::cpu {

const KernelTable& kernels() {
  const KernelTable* table = ops::active.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = &ops::table_of(ops::choose());
    ops::active.store(table, std::memory_order_release);
  }
  return *table;
}

}  // namespace modicum::cpu
