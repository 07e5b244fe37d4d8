// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include <modicum/base/atomic_directory.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/lane_sum.hpp>
#include <modicum/retrofit/quantize.hpp>
#include <modicum/retrofit/round.hpp>

#include "../base/quote.hpp"
#include "../io/checkpoint_layout.hpp"
#include "../io/copy_files.hpp"
#include "packed_linear.hpp"
#include "quantize_plan.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "quantize";
/// Weights that a thread rounds at a time: large beside the cost of handing out work, small beside a matrix.
constexpr std::size_t kTaskWeights = std::size_t{1} << 16;
constexpr std::size_t kTasksPerThread = 8;
constexpr std::size_t kCopyBytes = std::size_t{16} << 20;
/// Tensors whose size is a multiple of a cache line come first, so that each begins on one. Integers, whose
/// size is a multiple of 16 bytes, come with them in any case: they are written as they are made.
constexpr std::uint64_t kAlignment = 64;

using Bytes = std::vector<std::byte>;

/// Some rows of a matrix as integers.
struct RoundedRows {
  Bytes integers;  ///< as compressed-tensors packs them
  Bytes scales;
  double square_error = 0;
  double square = 0;
};

void check_finite(std::span<const float> row, const std::string& tensor, std::size_t index) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (std::isfinite(row[i])) continue;
    fail<FormatError>(
        {.op = kOp,
         .what = "tensor " + quote(tensor) + " at [" + std::to_string(index) + ", " + std::to_string(i) + "]",
         .expected = "a finite weight",
         .got = std::isnan(row[i]) ? "NaN" : "infinity"});
  }
}

/// Σ value(i)², i < count.
template <class F>
double sum_of_squares(std::size_t count, F value) {
  Lanes sums{};
  for_each_lane(count, [&](std::size_t i, std::size_t lane) {
    sums[lane] += static_cast<double>(value(i)) * value(i);
  });
  return sum(sums);
}

template <class T>
RoundedRows round_rows(const WeightView& weights, const QuantizeStep& step, std::size_t columns,
                       std::size_t begin, std::size_t end) {
  const std::size_t cols = weights.cols;
  const std::size_t group = columns == 0 ? cols : columns;
  RoundedRows out;
  out.integers.resize((end - begin) * cols * step.bits / 8);
  out.scales.resize((end - begin) * cols / group * sizeof(T));
  std::vector<float> row(cols);
  std::vector<std::int8_t> integers(group);
  std::byte* packed = out.integers.data();
  auto* scales = reinterpret_cast<T*>(out.scales.data());
  for (std::size_t r = begin; r < end; ++r) {
    const T* stored = static_cast<const T*>(weights.data) + r * cols;
    for (std::size_t c = 0; c < cols; ++c) row[c] = to_f32(stored[c]);
    check_finite(row, step.source, r);
    for (std::size_t c = 0; c < cols; c += group, packed += group * step.bits / 8) {
      const std::span<const float> values = std::span(row).subspan(c, group);
      const float scale = round_group(values, step.bits, weights.dtype, integers);
      *scales++ = from_f32<T>(scale);
      pack_integers(integers, step.bits, columns, packed);
      out.square += sum_of_squares(group, [&](std::size_t i) { return values[i]; });
      out.square_error += sum_of_squares(
          group, [&](std::size_t i) { return values[i] - scale * static_cast<float>(integers[i]); });
    }
  }
  return out;
}

/// Carries out a plan: writes tensor after tensor and counts.
class Writer {
 public:
  Writer(const Checkpoint& from, const fs::path& to, const QuantizePlan& plan, const QuantizeOptions& options,
         ThreadPool& pool, const Progress& progress)
      : from_(from), options_(options), pool_(pool), progress_(progress) {
    std::vector<TensorSpec> specs;
    std::vector<TensorSpec> late;
    for (const QuantizeStep& step : plan.steps) {
      total_ += from.info(step.source).bytes();
      for (TensorSpec& spec : outputs_of(step, from, options.group)) {
        (is_late(spec) ? late : specs).push_back(std::move(spec));
      }
    }
    std::stable_sort(late.begin(), late.end(), [](const TensorSpec& a, const TensorSpec& b) {
      return alignment(size_of_spec(a)) > alignment(size_of_spec(b));
    });
    for (TensorSpec& spec : late) late_names_.push_back(spec.name);
    specs.insert(specs.end(), std::make_move_iterator(late.begin()), std::make_move_iterator(late.end()));
    writer_.emplace(to, std::move(specs), shard_bytes_of(from));
  }

  void write(const QuantizeStep& step) {
    Tally& tally = tally_of(step.kind);
    ++tally.kind.tensors;
    const bool tied_head = step.kind == "head" && step.source != "lm_head.weight";
    tally.kind.bytes_before += tied_head ? 0 : from_.info(step.source).bytes();
    step.bits == 0 ? copy(step, tally) : round(step, tally);
    done_ += from_.info(step.source).bytes();
  }

  /// What came last in the file, and the commit.
  void finish() {
    for (const std::string& name : late_names_) writer_->append(late_.at(name));
    writer_->commit();
    report(progress_, kOp, total_, total_);
  }

  std::vector<QuantizedKind> kinds() const {
    std::vector<QuantizedKind> kinds;
    for (const Tally& tally : tallies_) {
      kinds.push_back(tally.kind);
      if (tally.rounded == 0) continue;
      kinds.back().mean_square_error /= static_cast<double>(tally.rounded);
      kinds.back().mean_square /= static_cast<double>(tally.rounded);
    }
    return kinds;
  }

 private:
  /// Sums where the report has means.
  struct Tally {
    QuantizedKind kind;
    std::uint64_t rounded = 0;  ///< weights that became integers
  };

  static std::uint64_t size_of_spec(const TensorSpec& spec) {
    std::uint64_t bits = safetensors_bits(spec.dtype);
    for (const std::uint64_t extent : spec.shape) bits *= extent;
    return bits / 8;
  }
  static std::uint64_t alignment(std::uint64_t size) { return size & (~size + 1); }
  static bool is_late(const TensorSpec& spec) {
    const bool integers = spec.name.ends_with(".weight_packed") || spec.dtype == "I8";
    return size_of_spec(spec) % kAlignment != 0 && !integers;
  }

  Tally& tally_of(const std::string& kind) {
    for (Tally& tally : tallies_) {
      if (tally.kind.kind == kind) return tally;
    }
    tallies_.push_back({.kind = {.kind = kind}});
    return tallies_.back();
  }

  void put(const TensorSpec& spec, Bytes bytes) {
    if (!is_late(spec)) return writer_->append(bytes);
    owned_.push_back(std::move(bytes));
    late_[spec.name] = owned_.back();
  }

  void copy(const QuantizeStep& step, Tally& tally) {
    const std::span<const std::byte> bytes = from_.bytes(step.source);
    const TensorSpec spec = outputs_of(step, from_, options_.group)[0];
    tally.kind.bytes_after += bytes.size();
    if (is_late(spec)) {
      late_[spec.name] = bytes;
      return;
    }
    for (std::size_t begin = 0; begin < bytes.size(); begin += kCopyBytes) {
      report(progress_, kOp, done_ + begin, total_);
      writer_->append(bytes.subspan(begin, std::min(kCopyBytes, bytes.size() - begin)));
    }
  }

  void round(const QuantizeStep& step, Tally& tally) {
    const std::vector<TensorSpec> specs = outputs_of(step, from_, options_.group);
    const WeightView weights = from_.weight(step.source, step.rows, step.cols);
    const std::size_t task_rows = std::max<std::size_t>(1, kTaskWeights / step.cols);
    const std::size_t rows_at_once = task_rows * kTasksPerThread * pool_.size();
    Bytes scales;
    for (std::size_t first = 0; first < step.rows; first += rows_at_once) {
      report(progress_, kOp, done_ + from_.info(step.source).bytes() * first / step.rows, total_);
      const std::size_t end = std::min(step.rows, first + rows_at_once);
      for (const RoundedRows& rows : rounded(weights, step, first, end, task_rows)) {
        writer_->append(rows.integers);
        scales.insert(scales.end(), rows.scales.begin(), rows.scales.end());
        tally.kind.mean_square_error += rows.square_error;
        tally.kind.mean_square += rows.square;
      }
    }
    const std::uint64_t shape[2] = {step.rows, step.cols};
    const auto shape_bytes = std::as_bytes(std::span(shape));
    tally.rounded += step.rows * step.cols;
    for (const TensorSpec& spec : specs) tally.kind.bytes_after += size_of_spec(spec);
    put(specs[1], std::move(scales));
    if (specs.size() > 2) put(specs[2], Bytes(shape_bytes.begin(), shape_bytes.end()));
  }

  std::vector<RoundedRows> rounded(const WeightView& weights, const QuantizeStep& step, std::size_t first,
                                   std::size_t end, std::size_t task_rows) {
    std::vector<RoundedRows> parts((end - first + task_rows - 1) / task_rows);
    pool_.run(parts.size(), [&](std::size_t i) {
      const std::size_t begin = first + i * task_rows;
      dispatch(weights.dtype, [&](auto t) {
        parts[i] =
            round_rows<decltype(t)>(weights, step, options_.group, begin, std::min(end, begin + task_rows));
      });
    });
    return parts;
  }

  const Checkpoint& from_;
  const QuantizeOptions& options_;
  ThreadPool& pool_;
  const Progress& progress_;
  std::optional<CheckpointWriter> writer_;
  std::vector<std::string> late_names_;
  std::map<std::string, std::span<const std::byte>> late_;
  std::vector<Bytes> owned_;  ///< what `late_` shows of it that the source does not hold
  std::vector<Tally> tallies_;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

/// What the head would take with each choice, beside what everything else takes.
void count_choices(const Checkpoint& from, const QuantizeOptions& options, QuantizeReport& report) {
  const ModelConfig& config = from.config();
  std::uint64_t head_now = 0;
  for (const QuantizedKind& kind : report.kinds) {
    if (kind.kind == "head") head_now = kind.bytes_after;
  }
  const std::uint64_t rest = report.bytes_after - head_now;
  const bool stored = from.contains("lm_head.weight");
  const std::uint64_t weights = config.vocab_size * config.hidden_size;
  const std::string source = stored ? "lm_head.weight" : "model.embed_tokens.weight";
  const std::uint64_t group = options.group == 0 ? config.hidden_size : options.group;
  const std::uint64_t scales = weights / group * safetensors_bits(from.info(source).dtype) / 8;
  const std::uint64_t shape_bytes = options.group == 0 ? 0 : 16;
  report.bytes_head_kept = rest + (stored ? from.info(source).bytes() : 0);
  report.bytes_head_int8 = rest + weights + scales + shape_bytes;
  report.bytes_head_int4 = options.group == 0 ? 0 : rest + weights / 2 + scales + shape_bytes;
}

}  // namespace

QuantizeReport quantize(const Checkpoint& from, const fs::path& to, const QuantizeOptions& options,
                        ThreadPool& pool, const Progress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const QuantizePlan plan = make_plan(from, options);
  AtomicDirectory directory(to);
  Writer writer(from, directory.temporary(), plan, options, pool, progress);
  for (const QuantizeStep& step : plan.steps) writer.write(step);
  writer.finish();
  copy_other_files(from.directory(), directory.temporary(), kOp);
  write_text(directory.temporary() / "config.json", quantized_config(from, plan, options));
  directory.commit();

  QuantizeReport report{.kinds = writer.kinds(), .kept = plan.kept};
  for (const std::string& name : from.names()) report.bytes_before += from.info(name).bytes();
  for (const QuantizedKind& kind : report.kinds) report.bytes_after += kind.bytes_after;
  count_choices(from, options, report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace modicum::retrofit
