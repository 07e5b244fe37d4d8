// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/checkpoint.hpp>

namespace modicum::retrofit {

struct QuantizeOptions {
  std::size_t bits = 8;  ///< 4 or 8
  /// Columns that share a scale: a multiple of 32; or 0, with 8 bits: all of a row, for activations that are
  /// rounded to int8 with a scale a token ("W8A8"). That is faster with many tokens and less exact.
  std::size_t group = 32;
  /// Of the output head. Empty: it stays in floats, and tied where it is tied. Else it becomes integers of
  /// its own, and a tied embedding stays in floats beside it, since rows are looked up from that.
  std::optional<std::size_t> head_bits = std::nullopt;
};

/// What became of all tensors of one kind ("q_proj", …, "embedding", "head", "others").
struct QuantizedKind {
  std::string kind;
  std::size_t tensors = 0;
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  double mean_square_error = 0;  ///< of the weights that became integers
  double mean_square = 0;        ///< of those weights as they were
};

struct QuantizeReport {
  std::vector<QuantizedKind> kinds;
  std::vector<std::string> kept;  ///< linear layers that stay in floats, the head aside
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  /// Bytes of the whole checkpoint's weights with each choice for the head.
  std::uint64_t bytes_head_kept = 0;
  std::uint64_t bytes_head_int8 = 0;
  std::uint64_t bytes_head_int4 = 0;  ///< 0 with whole rows, which have 8 bits
  double seconds = 0;
};

/// Rounds the linear layers of a checkpoint to integers by groups of columns (`round_group`) and writes the
/// checkpoint `to`, which modicum and transformers read: weights in compressed-tensors' (and vLLM's)
/// "pack-quantized" (group 0: "int-quantized"), scales in the dtype of their weights, config.json with a
/// quantization_config, every other file but weights copied as it is. Layers whose columns are no multiple of
/// `group` stay as they are, and so do embedding, norms and biases. Data-free; a block of rows at a time, so
/// memory does not grow with the model (but for the scales of a matrix).
///
/// `to` appears whole or not at all. Throws `InvalidArgument` for options that make no sense and where `to`
/// holds something already, `FormatError` for a weight that is not finite and as `ModelWeights::load`,
/// `Unsupported` where `from` is quantised already or no layer fits `group`, `IoError`, `Cancelled`.
QuantizeReport quantize(const Checkpoint& from, const std::filesystem::path& to,
                        const QuantizeOptions& options, ThreadPool& pool, const Progress& progress = {});

}  // namespace modicum::retrofit
