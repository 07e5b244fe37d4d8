// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/tensor/dtype.hpp>
#include <modicum/tune/merge_plan.hpp>

namespace modicum::tune {

/// What becomes of changes that two factors cannot hold: of norms, embedding and head.
enum class OtherTensors {
  save,  ///< whole in the adapter (PEFT's modules_to_save)
  drop,  ///< left out, and told
};

struct PatchOptions {
  std::size_t rank = 16;     ///< at most
  double error = 0;          ///< smaller ranks where this relative error is met: ‖ΔW − BA‖ / ‖ΔW‖
  DType dtype = DType::f32;  ///< of the factors
  OtherTensors others = OtherTensors::save;
};

/// A linear layer's change as two factors.
struct PatchedModule {
  std::string module;
  std::size_t rank = 0;
  double size = 0;             ///< ‖ΔW‖, Frobenius
  double relative = 0;         ///< ‖ΔW‖ / ‖W‖
  std::vector<double> errors;  ///< relative error with 1, 2, 4, … factors, and with `rank` at the end
};

struct PatchReport {
  std::vector<PatchedModule> modules;
  std::vector<std::string> whole;    ///< tensors that the adapter holds as they are
  std::vector<std::string> dropped;  ///< tensors whose change is lost
  std::uint64_t bytes = 0;
  double seconds = 0;
};

/// Two factors of a matrix [rows, cols], the best of their rank in the Frobenius norm: B [rows, rank] and
/// A [rank, cols], each with the square root of the singular values (Eckart & Young 1936).
struct Factors {
  linalg::Matrix b, a;
  linalg::Vector singular_values;  ///< all of them, descending
};
/// By the eigenvectors of the smaller Gram matrix, in f64: singular values below 1e-8 of the largest are lost
/// in its rounding.
Factors factorize(const linalg::Matrix& matrix, std::size_t rank);

/// What a merge would change of the model that is built upon, as a PEFT LoRA adapter in the new directory
/// `to`: small changes are kept as they are, where weights of bf16 would round them away, and go on and off
/// with the adapter. The difference of a tuned model from its base is the patch of {task_arithmetic, base,
/// [tuned]}. One matrix is in memory at a time.
///
/// Throws as `merge` does, and `Unsupported` where the vocabulary changes or, with `OtherTensors::save`,
/// biases of linear layers do, which PEFT has no place for.
PatchReport write_patch(const MergePlan& plan, const std::filesystem::path& to, const PatchOptions& options,
                        ThreadPool& pool, const Progress& progress = {});

}  // namespace modicum::tune
