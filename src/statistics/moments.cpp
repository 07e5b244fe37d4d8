// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include <modicum/base/error.hpp>
#include <modicum/statistics/moments.hpp>

namespace modicum {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{48} << 20;
constexpr std::size_t kMaxBlockRows = 4096;
/// Rows of a block are a multiple of it: whole vectors for the kernels.
constexpr std::size_t kRowStep = 64;
/// Channels whose products with all others are computed at a time: their sums stay in the cache.
constexpr std::size_t kPanel = 128;
/// Channels that a task transposes.
constexpr std::size_t kTransposed = 64;

std::size_t block_rows(std::size_t inputs, DType dtype, std::size_t expected_rows) {
  const std::size_t fitting = kBlockBytes / std::max<std::size_t>(1, inputs * size_of(dtype));
  const std::size_t expected = (expected_rows + kRowStep - 1) / kRowStep * kRowStep;
  const std::size_t most = std::min({fitting / kRowStep * kRowStep, kMaxBlockRows, expected});
  return std::max(most, kRowStep);
}

/// out[c, at + r] = x[r, c] · factor, in elements of T, and where `rest` is given what T leaves of it there.
template <class T>
void transpose(ThreadPool& pool, const float* x, std::size_t rows, std::size_t width,
               std::span<const float> factors, std::size_t capacity, std::size_t at, T* out, T* rest) {
  pool.run((width + kTransposed - 1) / kTransposed, [&](std::size_t task) {
    const std::size_t end = std::min(width, (task + 1) * kTransposed);
    for (std::size_t r = 0; r < rows; ++r) {
      const float factor = factors.empty() ? 1.0f : factors[r];
      for (std::size_t c = task * kTransposed; c < end; ++c) {
        const float value = x[r * width + c] * factor;
        const T stored = from_f32<T>(value);
        out[c * capacity + at + r] = stored;
        if (rest != nullptr) rest[c * capacity + at + r] = from_f32<T>(value - to_f32(stored));
      }
    }
  });
}

}  // namespace

SecondMoments::SecondMoments(std::size_t inputs, std::size_t targets, DType dtype, std::size_t expected_rows)
    : inputs_(inputs),
      targets_(targets),
      dtype_(dtype == DType::bf16 ? DType::bf16 : DType::f32),
      capacity_(block_rows(inputs, dtype_, expected_rows)) {
  const std::size_t size = size_of(dtype_);
  x_.resize(inputs * capacity_ * size);
  t_.resize(targets * capacity_ * size);
  if (dtype_ == DType::bf16) rest_.resize(t_.size());
  sums_.gram = linalg::Matrix::Zero(static_cast<Eigen::Index>(inputs), static_cast<Eigen::Index>(inputs));
  sums_.cross = linalg::Matrix::Zero(static_cast<Eigen::Index>(targets), static_cast<Eigen::Index>(inputs));
  sums_.energy = linalg::Vector::Zero(static_cast<Eigen::Index>(targets));
}

std::size_t SecondMoments::bytes(std::size_t inputs, std::size_t targets, DType dtype,
                                 std::size_t expected_rows) {
  const DType kept = dtype == DType::bf16 ? DType::bf16 : DType::f32;
  const std::size_t rows = block_rows(inputs, kept, expected_rows);
  const std::size_t copies = kept == DType::bf16 ? 2 : 1;
  return (inputs + targets) * inputs * sizeof(double) + (inputs + copies * targets) * rows * size_of(kept) +
         kPanel * (rows + inputs) * sizeof(float);
}

void SecondMoments::add(ThreadPool& pool, const float* x, const float* t, std::size_t rows,
                        std::span<const float> factors) {
  for (std::size_t done = 0; done < rows;) {
    const std::size_t taken = std::min(rows - done, capacity_ - filled_);
    const auto part = factors.empty() ? factors : factors.subspan(done, taken);
    dispatch(dtype_, [&](auto tag) {
      using T = decltype(tag);
      const auto of = [](std::vector<std::byte>& bytes) { return reinterpret_cast<T*>(bytes.data()); };
      transpose<T>(pool, x + done * inputs_, taken, inputs_, part, capacity_, filled_, of(x_), nullptr);
      if (targets_ == 0) return;
      transpose<T>(pool, t + done * targets_, taken, targets_, part, capacity_, filled_, of(t_),
                   rest_.empty() ? nullptr : of(rest_));
    });
    for (std::size_t r = 0; r < taken && targets_ != 0; ++r) {
      const double factor = part.empty() ? 1.0 : part[r];
      for (std::size_t c = 0; c < targets_; ++c) {
        const double value = t[(done + r) * targets_ + c] * factor;
        sums_.energy[static_cast<Eigen::Index>(c)] += value * value;
      }
    }
    filled_ += taken;
    done += taken;
    if (filled_ == capacity_) flush(pool);
  }
  rows_ += rows;
}

void SecondMoments::finish(ThreadPool& pool) {
  if (filled_ != 0) {
    // What an earlier block left behind the last row would count again.
    const std::size_t size = size_of(dtype_);
    for (std::vector<std::byte>* bytes : {&x_, &t_, &rest_}) {
      for (std::size_t row = 0; row < bytes->size(); row += capacity_ * size) {
        std::fill_n(bytes->begin() + static_cast<std::ptrdiff_t>(row + filled_ * size),
                    (capacity_ - filled_) * size, std::byte{0});
      }
    }
    flush(pool);
  }
  sums_.gram.triangularView<Eigen::StrictlyLower>() = sums_.gram.transpose();
}

void SecondMoments::flush(ThreadPool& pool) {
  const WeightView block{.data = x_.data(), .dtype = dtype_, .rows = inputs_, .cols = capacity_};
  panel_.resize(kPanel * capacity_);
  products_.resize(kPanel * inputs_);
  flush_gram(pool, block);
  if (targets_ != 0) flush_cross(pool, block, t_);
  if (!rest_.empty()) flush_cross(pool, block, rest_);
  filled_ = 0;
}

namespace {

/// Rows [first, first + count) of a [.., capacity] matrix as f32.
void widen(ThreadPool& pool, const std::vector<std::byte>& bytes, DType dtype, std::size_t capacity,
           std::size_t first, std::size_t count, float* out) {
  pool.run(count, [&](std::size_t r) {
    dispatch(dtype, [&](auto tag) {
      const auto* row = reinterpret_cast<const decltype(tag)*>(bytes.data()) + (first + r) * capacity;
      for (std::size_t i = 0; i < capacity; ++i) out[r * capacity + i] = to_f32(row[i]);
    });
  });
}

}  // namespace

void SecondMoments::flush_gram(ThreadPool& pool, const WeightView& block) {
  for (std::size_t first = 0; first < inputs_; first += kPanel) {
    const std::size_t count = std::min(kPanel, inputs_ - first);
    WeightView left = block;
    left.rows = first + count;  // the upper triangle: the rest mirrors it
    widen(pool, x_, dtype_, capacity_, first, count, panel_.data());
    const ops::Product product[] = {{left, nullptr, products_.data(), left.rows}};
    ops::matmul(pool, panel_.data(), count, capacity_, product, scratch_);
    pool.run(count, [&](std::size_t r) {
      double* const column = sums_.gram.col(static_cast<Eigen::Index>(first + r)).data();
      for (std::size_t i = 0; i <= first + r; ++i) column[i] += products_[r * left.rows + i];
    });
  }
}

void SecondMoments::flush_cross(ThreadPool& pool, const WeightView& block,
                                const std::vector<std::byte>& targets) {
  for (std::size_t first = 0; first < targets_; first += kPanel) {
    const std::size_t count = std::min(kPanel, targets_ - first);
    widen(pool, targets, dtype_, capacity_, first, count, panel_.data());
    const ops::Product product[] = {{block, nullptr, products_.data(), inputs_}};
    ops::matmul(pool, panel_.data(), count, capacity_, product, scratch_);
    pool.run(count, [&](std::size_t r) {
      for (std::size_t i = 0; i < inputs_; ++i) {
        sums_.cross(static_cast<Eigen::Index>(first + r), static_cast<Eigen::Index>(i)) +=
            products_[r * inputs_ + i];
      }
    });
  }
}

void SecondMoments::merge(const SecondMoments& part) {
  if (part.inputs_ != inputs_ || part.targets_ != targets_ || filled_ != 0 || part.filled_ != 0) {
    fail({.op = "statistics.merge",
          .what = "parts",
          .expected = "finished ones of " + std::to_string(inputs_) + " inputs and " +
                      std::to_string(targets_) + " targets",
          .got = std::to_string(part.inputs_) + " and " + std::to_string(part.targets_)});
  }
  sums_.gram += part.sums_.gram;
  sums_.cross += part.sums_.cross;
  sums_.energy += part.sums_.energy;
  rows_ += part.rows_;
}

void ChannelMagnitudes::add(const float* x, std::size_t rows) {
  const std::size_t channels = largest_.size();
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < channels; ++c) {
      const float magnitude = std::abs(x[r * channels + c]);
      largest_[c] = std::max(largest_[c], magnitude);
      sums_[c] += magnitude;
    }
  }
  rows_ += rows;
}

void ChannelMagnitudes::merge(const ChannelMagnitudes& part) {
  if (part.largest_.size() != largest_.size()) {
    fail({.op = "statistics.merge",
          .what = "channels",
          .expected = std::to_string(largest_.size()),
          .got = std::to_string(part.largest_.size())});
  }
  for (std::size_t c = 0; c < largest_.size(); ++c) {
    largest_[c] = std::max(largest_[c], part.largest_[c]);
    sums_[c] += part.sums_[c];
  }
  rows_ += part.rows_;
}

std::vector<float> ChannelMagnitudes::mean() const {
  std::vector<float> means(sums_.size());
  for (std::size_t c = 0; c < means.size(); ++c) {
    means[c] = static_cast<float>(sums_[c] / static_cast<double>(std::max<std::size_t>(1, rows_)));
  }
  return means;
}

std::vector<float> relative_factors(const float* reference, std::size_t rows, std::size_t width) {
  std::vector<float> factors(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::size_t c = 0; c < width; ++c) {
      const double value = reference[r * width + c];
      sum += value * value;
    }
    const double rms = std::sqrt(sum / static_cast<double>(width));
    factors[r] = rms > 0 ? static_cast<float>(std::exp2(-std::round(std::log2(rms)))) : 1.0f;
  }
  return factors;
}

}  // namespace modicum
