// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <modicum/decode/tree_step_model.hpp>
#include <modicum/search/beam_options.hpp>

namespace modicum {

/// Writes texts by beam search where something would `generate` them: `cag::AskOptions::write`, say. Lengths,
/// what ends a text, and sampling are those it is called with; `options` decide the rest.
TextWriter beam_writer(BeamOptions options, std::shared_ptr<const Constraint> constraint = nullptr);

}  // namespace modicum
