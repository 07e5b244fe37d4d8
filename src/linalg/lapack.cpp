// SPDX-License-Identifier: Apache-2.0
#include "lapack.hpp"

#include <cstdlib>
#include <mutex>
#include <optional>

#include <dlfcn.h>

#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>

namespace modicum::linalg {
namespace {

struct State {
  std::mutex mutex;
  bool tried = false;
  std::optional<Lapack> lapack;
  std::size_t threads = 0;
};

State& state() {
  static State instance;
  return instance;
}

void apply_threads(const Lapack& lapack, std::size_t threads) {
  if (lapack.set_threads == nullptr) return;
  const auto count = static_cast<int>(threads == 0 ? usable_processors() : threads);
  reinterpret_cast<void (*)(int)>(lapack.set_threads)(count);
}

std::string version_of(void* library, const std::string& prefix, const std::string& suffix) {
  void* const symbol = dlsym(library, (prefix + "openblas_get_config" + suffix).c_str());
  if (symbol == nullptr) return "LAPACK";
  const std::string config = reinterpret_cast<const char* (*)()>(symbol)();  // "OpenBLAS 0.3.21 NO_LAPACKE …"
  const std::size_t end = config.find(' ', config.find(' ') + 1);
  return config.substr(0, end);
}

/// The symbols of an opened library by one way of naming them; empty where one is missing.
std::optional<Lapack> symbols(void* library, const std::string& prefix, const std::string& suffix) {
  Lapack l;
  l.wide = suffix == "64_";
  const auto find = [&](const char* name) {
    // Fortran's own underscore comes before OpenBLAS's suffix: dgemm_, dgemm_64_.
    return dlsym(library, (prefix + name + "_" + suffix).c_str());
  };
  l.dgemm = find("dgemm");
  l.dtrsm = find("dtrsm");
  l.dpotrf = find("dpotrf");
  l.dpotri = find("dpotri");
  l.dsyevd = find("dsyevd");
  l.dgesdd = find("dgesdd");
  for (void* const symbol : {l.dgemm, l.dtrsm, l.dpotrf, l.dpotri, l.dsyevd, l.dgesdd}) {
    if (symbol == nullptr) return std::nullopt;
  }
  l.set_threads = dlsym(library, (prefix + "openblas_set_num_threads" + suffix).c_str());
  l.name = version_of(library, prefix, suffix);
  return l;
}

std::optional<Lapack> open(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::nullopt;
  for (const char* const prefix : {"", "scipy_"}) {
    for (const char* const suffix : {"", "64_"}) {
      if (std::optional<Lapack> found = symbols(library, prefix, suffix)) return found;
    }
  }
  dlclose(library);
  return std::nullopt;
}

/// Called with the mutex held.
void try_system(State& s) {
  if (s.tried) return;
  s.tried = true;
  const char* const named = std::getenv("MODICUM_LAPACK");
  if (named != nullptr && std::string(named) == "eigen") return;
  s.lapack = open(named != nullptr ? named : "libopenblas.so.0");
  if (s.lapack) apply_threads(*s.lapack, s.threads);
}

}  // namespace

const Lapack* lapack() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  try_system(s);
  return s.lapack ? &*s.lapack : nullptr;
}

bool open_lapack(const std::string& path) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  try_system(s);
  if (s.lapack) return true;
  if (std::getenv("MODICUM_LAPACK") != nullptr) return false;
  s.lapack = open(path.c_str());
  if (s.lapack) apply_threads(*s.lapack, s.threads);
  return s.lapack.has_value();
}

void set_threads(std::size_t threads) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  try_system(s);
  s.threads = threads;
  if (s.lapack) apply_threads(*s.lapack, threads);
}

}  // namespace modicum::linalg
