// SPDX-License-Identifier: Apache-2.0
// A merge plan is refused with FormatError, or is one that its own JSON gives again, and that is taken or
// refused by name; what is taken makes finite numbers of small arrays, or is refused by name.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/merge.hpp>

namespace {

using namespace modicum::tune;

void check(bool holds) {
  if (!holds) std::abort();
}

void check_merged(const MergePlan& plan) {
  static modicum::ThreadPool pool(1);
  static const std::vector<float> base = {1, -2, 0, 0.5f, -0.25f, 3, 3},
                                  model = {1, 2, -1, 0.5f, 0.25f, -3, 4};
  constexpr std::size_t kMost = 64;
  if (plan.models.size() > kMost) return;
  std::vector<float> out(base.size());
  const std::vector<std::span<const float>> models(plan.models.size(), model);
  merge_arrays(plan, "model.layers.1.mlp.up_proj.weight", base, models, out, pool);
  // Weights of opposite signs may cancel out, and large ones leave the range of f32.
  if (plan.method != Method::slerp) return;
  for (const float value : out) check(std::isfinite(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const MergePlan plan = parse_merge_plan(std::string_view(reinterpret_cast<const char*>(data), size));
    const std::string text = plan.to_json();
    check(parse_merge_plan(text).to_json() == text);
    check_merge_plan(plan);
    check(!plan.foundation().empty());
    check_merged(plan);
  } catch (const modicum::FormatError&) {
  } catch (const modicum::InvalidArgument&) {
  }
  return 0;
}
