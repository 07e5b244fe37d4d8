// SPDX-License-Identifier: Apache-2.0
// MODICUM_TARGET_BEGIN("avx2,fma") … MODICUM_TARGET_END: the functions in between may use those instructions
// (…_BEGIN_512: in vectors of 512 bits, where a compiler would rather take half of them).
// Flags for a whole file would let the linker pick a wide copy of a shared template for everybody. Nothing is
// included in between.
#pragma once

#define MODICUM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define MODICUM_TARGET_BEGIN(isa) \
  MODICUM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
// It knows no preferred width among targets, and ignores all of them for one that it does not know.
#define MODICUM_TARGET_BEGIN_512(isa) MODICUM_TARGET_BEGIN(isa)
#define MODICUM_TARGET_END _Pragma("clang attribute pop")
#else
#define MODICUM_TARGET_BEGIN(isa) _Pragma("GCC push_options") MODICUM_PRAGMA(GCC target(isa))
#define MODICUM_TARGET_BEGIN_512(isa) \
  _Pragma("GCC push_options") MODICUM_PRAGMA(GCC target(isa, "prefer-vector-width=512"))
#define MODICUM_TARGET_END _Pragma("GCC pop_options")
#endif
