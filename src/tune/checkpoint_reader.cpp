// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_reader.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"

namespace modicum::tune {
namespace {

/// Elements of a tile: with a handful of models the second-level cache holds them all.
constexpr std::size_t kTile = 16384;

/// All bits of the exponent are set in infinities and NaN alone.
constexpr std::uint32_t kExponent = 0x7f800000u;

bool all_finite(const float* x, std::size_t count) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    bad |= (std::bit_cast<std::uint32_t>(x[i]) & kExponent) == kExponent ? 1u : 0u;
  }
  return bad == 0;
}

}  // namespace

bool widen(DType dtype, const void* data, std::size_t count, float* out) {
  return dispatch(dtype, [&](auto tag) {
    const auto* const in = static_cast<const decltype(tag)*>(data);
    std::uint32_t bad = 0;  // in one pass: this is where a merge spends its time
    for (std::size_t i = 0; i < count; ++i) {
      out[i] = to_f32(in[i]);
      bad |= (std::bit_cast<std::uint32_t>(out[i]) & kExponent) == kExponent ? 1u : 0u;
    }
    return bad == 0;
  });
}

CheckpointReader::CheckpointReader(const MergeInputs& inputs, const TensorSpec& tensor,
                                   std::function<void()> pulse)
    : name_(tensor.name), pulse_(std::move(pulse)) {
  rows_ = tensor.shape.size() == 2 ? tensor.shape[0] : 1;
  cols_ = tensor.shape.back();
  tile_rows_ = std::max<std::size_t>(1, kTile / std::max<std::size_t>(1, cols_));
  mapped_ = is_vocabulary_tensor(name_) && inputs.rows().mapped();
  std::vector<std::size_t> view_of(inputs.sources().size(), MergeInputs::kNone);
  const auto view = [&](std::size_t source) {
    if (view_of[source] == MergeInputs::kNone) {
      view_of[source] = views_.size();
      views_.push_back(open(inputs.sources()[source], source, inputs));
    }
    return view_of[source];
  };
  if (inputs.base() != MergeInputs::kNone) base_ = view(inputs.base());
  for (const std::size_t model : inputs.models()) models_.push_back(view(model));
  onto_ = view(inputs.foundation());
}

CheckpointReader::View CheckpointReader::open(const Source& source, std::size_t index,
                                              const MergeInputs& inputs) const {
  View view{.source = &source, .stored = source.stored_name(name_)};
  const std::size_t rows = is_vocabulary_tensor(name_) ? source.checkpoint.config().vocab_size : rows_;
  if (source.adapter && source.adapter->replaces(view.stored)) {
    view.weight = source.adapter->replacement(view.stored, rows, cols_);
  } else {
    view.weight = source.checkpoint.weight(view.stored, rows, cols_);
  }
  if (source.adapter && source.adapter->updates(view.stored))
    view.update = source.adapter->update(view.stored);
  if (mapped_) view.row_of = &inputs.rows().row_of[index];
  return view;
}

/// Some consecutive rows of the stored tensor.
void CheckpointReader::read_row(const View& view, std::size_t row, std::size_t count, float* out) const {
  const WeightView& weight = view.weight;
  const auto* const data = static_cast<const std::byte*>(weight.data) + row * cols_ * size_of(weight.dtype);
  if (!widen(weight.dtype, data, count * cols_, out)) refuse_numbers(view, row, out);
  if (!view.update) return;
  const LowRankUpdate& update = *view.update;
  std::vector<float> change(cols_);
  for (std::size_t r = 0; r < count; ++r) {
    std::ranges::fill(change, 0.0f);
    for (std::size_t k = 0; k < update.rank; ++k) {
      const float factor = update.b[(row + r) * update.rank + k];
      const float* const a = update.a.data() + k * cols_;
      for (std::size_t c = 0; c < cols_; ++c) change[c] += factor * a[c];
    }
    for (std::size_t c = 0; c < cols_; ++c) out[r * cols_ + c] += update.scale * change[c];
  }
  // Of NaN no method says what it is: TIES would let it agree with nobody.
  if (!all_finite(out, count * cols_)) refuse_numbers(view, row, out);
}

void CheckpointReader::refuse_numbers(const View& view, std::size_t row, const float* out) const {
  std::size_t at = 0;
  while (std::isfinite(out[at])) ++at;
  const auto& adapter = view.source->adapter;
  fail<FormatError>({.op = "merge",
                     .what = "tensor " + quote(view.stored) + " of " + quote(view.source->path) +
                             (adapter ? " with " + quote(adapter->directory().string()) : "") + " at [" +
                             std::to_string(row + at / cols_) + ", " + std::to_string(at % cols_) + "]",
                     .expected = "a finite number",
                     .got = std::isnan(out[at]) ? "NaN" : "infinity",
                     .todo = adapter ? "check the weights of both" : "check the weights of that model"});
}

void CheckpointReader::read_rows(const View& view, std::size_t first, std::size_t count, float* out) const {
  if (view.row_of == nullptr) return read_row(view, first, count, out);
  for (std::size_t r = 0; r < count; ++r) {
    const std::int64_t row = (*view.row_of)[first + r];
    if (row != RowPlan::kAbsent) read_row(view, static_cast<std::size_t>(row), 1, out + r * cols_);
  }
}

bool CheckpointReader::has(std::size_t view, std::size_t row) const {
  return (*views_[view].row_of)[row] != RowPlan::kAbsent;
}

/// What a row is where some model lacks its token. Where the base has it, a model that lacks it changes
/// nothing. Where the base lacks it there is no difference to take: the row is that of the models that have
/// it (the mean of several), or else that of the model that is built upon.
void CheckpointReader::fill_absent(std::size_t first, std::size_t count,
                                   const std::vector<float*>& slots) const {
  const auto row_in = [&](std::size_t view, std::size_t r) { return slots[view] + r * cols_; };
  for (std::size_t r = 0; r < count; ++r) {
    const std::size_t row = first + r;
    const bool whole =
        std::all_of(models_.begin(), models_.end(), [&](std::size_t m) { return has(m, row); });
    const bool based = base_ == MergeInputs::kNone ? whole : has(base_, row);
    std::vector<float> taken(cols_);
    if (based) {
      if (base_ != MergeInputs::kNone) std::copy_n(row_in(base_, r), cols_, taken.data());
    } else {
      std::vector<std::size_t> from;
      for (const std::size_t m : models_) {
        if (has(m, row) && std::ranges::find(from, m) == from.end()) from.push_back(m);
      }
      if (from.empty() && has(onto_, row)) from.push_back(onto_);
      if (from.empty() && base_ != MergeInputs::kNone && has(base_, row)) from.push_back(base_);
      for (const std::size_t view : from) {
        for (std::size_t c = 0; c < cols_; ++c) {
          taken[c] += row_in(view, r)[c] / static_cast<float>(from.size());
        }
      }
    }
    for (std::size_t view = 0; view < views_.size(); ++view) {
      if (!based || !has(view, row)) std::copy(taken.begin(), taken.end(), row_in(view, r));
    }
  }
}

Tile CheckpointReader::read(std::size_t tile, Buffer& buffer) const {
  if (pulse_) pulse_();
  const std::size_t first = tile * tile_rows_;
  const std::size_t count = std::min(tile_rows_, rows_ - first);
  buffer.floats.resize(views_.size() * tile_rows_ * cols_);
  std::vector<float*> slots;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    slots.push_back(buffer.floats.data() + v * tile_rows_ * cols_);
    read_rows(views_[v], first, count, slots[v]);
  }
  if (mapped_) fill_absent(first, count, slots);
  buffer.models.clear();
  for (const std::size_t model : models_) buffer.models.push_back(slots[model]);
  return {.index = tile,
          .first = std::uint64_t{first} * cols_,
          .count = count * cols_,
          .base = base_ == MergeInputs::kNone ? nullptr : slots[base_],
          .onto = slots[onto_],
          .models = buffer.models};
}

}  // namespace modicum::tune
