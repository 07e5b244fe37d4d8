// SPDX-License-Identifier: Apache-2.0
// What a form of a cache loses, on the build's own text.
#pragma once

#include <modicum/model/transformer.hpp>

#include "draft.hpp"

namespace modicum::cag {

/// The reading in the encoding that was asked for, or in the smallest that keeps to the bound. Measures and
/// certifies what is written.
Reading certify(const Model& model, const KvTree& tree, Draft& draft, const Reading& wide);

}  // namespace modicum::cag
