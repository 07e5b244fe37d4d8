// SPDX-License-Identifier: Apache-2.0
// A plan is refused with FormatError, or is one that its own JSON gives again, and that a model takes or
// refuses by name; what is taken has a configuration whose sizes fit together.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/plan.hpp>

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

const modicum::ModelConfig& config() {
  static const modicum::ModelConfig config = modicum::parse_model_config(
      R"({"model_type":"llama","hidden_size":64,"intermediate_size":192,"num_hidden_layers":4,)"
      R"("num_attention_heads":4,"num_key_value_heads":4,"vocab_size":100,"max_position_embeddings":128})");
  return config;
}

void check_planned(const modicum::retrofit::Plan& plan) {
  const modicum::ModelConfig planned = modicum::retrofit::planned_config(config(), plan);
  check(planned.num_hidden_layers > 0 && planned.num_hidden_layers <= 4);
  check(planned.num_key_value_heads > 0 && 4 % planned.num_key_value_heads == 0);
  check(planned.intermediate_size > 0 && planned.intermediate_size <= 192);
  check(planned.sliding_window.empty() || planned.sliding_window.size() == planned.num_hidden_layers);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto plan =
        modicum::retrofit::Plan::from_json(std::string_view(reinterpret_cast<const char*>(data), size));
    const std::string text = plan.to_json();
    check(modicum::retrofit::Plan::from_json(text).to_json() == text);
    modicum::retrofit::check_plan(plan, config());
    check_planned(plan);
  } catch (const modicum::FormatError&) {
  } catch (const modicum::InvalidArgument&) {
  } catch (const modicum::Unsupported&) {
  }
  return 0;
}
