// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include <modicum/base/thread_pool.hpp>
#include <modicum/model/weights.hpp>

namespace modicum::retrofit {

/// Throws `FormatError` that names the tensor where a weight is NaN or infinite: of a matrix, and of all that
/// a layer has. One such number would otherwise only show in the statistics of later layers.
void check_finite(const std::string& name, const WeightView& matrix, ThreadPool& pool);
void check_finite(const LayerWeights& layer, std::size_t number, ThreadPool& pool);

}  // namespace modicum::retrofit
