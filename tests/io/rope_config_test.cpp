// SPDX-License-Identifier: Apache-2.0
// The expected frequencies and attention factors are those of transformers 5.23's ROPE_INIT_FUNCTIONS, whose
// f32 differs from our f64 by up to about 1e-6.
#include <modicum/base/error.hpp>
#include <modicum/io/model_config.hpp>

#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::string config_json(const std::string& fields) {
  return R"({"model_type":"llama","hidden_size":32,"intermediate_size":8,"num_hidden_layers":1,)"
         R"("num_attention_heads":2,"vocab_size":9,"max_position_embeddings":131072,)" +
         fields + "}";
}

RopeConfig rope(const std::string& fields) {
  return parse_model_config(config_json(fields)).rope;
}

void check_frequencies(const std::string& fields, const std::vector<double>& expected) {
  const std::vector<double> frequencies = rope_inverse_frequencies(rope(fields), 16);
  REQUIRE(frequencies.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(frequencies[i] == Approx(expected[i]).epsilon(2e-6));
}

template <class E>
void refuses(const std::string& fields, const std::string& text) {
  INFO(fields);
  CHECK_THROWS_AS(rope(fields), E);
  CHECK_THROWS_WITH(rope(fields), Contains(text));
}

}  // namespace

TEST_CASE("plain rope has transformers' frequencies") {
  check_frequencies(R"("rope_theta":10000.0)", {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978,
                                                0.00316227786, 0.00100000005, 0.000316227786});
}

TEST_CASE("linear rope has transformers' frequencies") {
  check_frequencies(R"("rope_theta":500000.0,"rope_scaling":{"type":"linear","factor":4.0})",
                    {0.25, 0.0484806895, 0.00940150768, 0.00182316627, 0.000353553361, 6.85620471e-05,
                     1.32957393e-05, 2.57834631e-06});
}

TEST_CASE("Llama 3.1's rope has transformers' frequencies") {
  check_frequencies(
      R"("rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192})",
      {1, 0.193922758, 0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05, 6.64786967e-06,
       1.28917316e-06});
}

TEST_CASE("yarn as Qwen2.5 uses it has transformers' frequencies") {
  check_frequencies(
      R"("rope_theta":1000000.0,"rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":32768})",
      {1, 0.177827939, 0.0316227786, 0.00421755994, 0.000500000024, 4.44569851e-05, 7.90569356e-06,
       1.40585337e-06});
}

TEST_CASE("yarn without truncation has transformers' frequencies") {
  check_frequencies(
      R"("rope_theta":1000000.0,"rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":32768,"beta_fast":16,"truncate":false})",
      {1, 0.177827939, 0.0316227786, 0.00562341325, 0.000696759962, 4.44569851e-05, 7.90569356e-06,
       1.40585337e-06});
}

TEST_CASE("yarn whose range is one point has transformers' frequencies") {
  check_frequencies(
      R"("rope_theta":10000.0,"rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":4})",
      {1, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012,
       7.90569466e-05});
}

TEST_CASE("both spellings of rope's parameters mean the same") {
  const RopeConfig inner = rope(R"("rope_parameters":{"rope_type":"linear","factor":2,"rope_theta":5e5})");
  const RopeConfig outer = rope(R"("rope_theta":500000,"rope_scaling":{"type":"linear","factor":2.0})");
  for (const RopeConfig& one : {inner, outer}) {
    CHECK(one.type == RopeType::linear);
    CHECK(one.theta == 5e5);
    CHECK(one.factor == 2);
  }
  CHECK(rope(R"("rope_scaling":null,"rope_theta":7)").theta == 7);
  CHECK(rope(R"("rope_scaling":{},"rope_parameters":{"rope_theta":7.5})").theta == 7.5);
}

TEST_CASE("where spellings contradict each other, the choice is transformers'") {
  CHECK(rope(R"("rope_theta":5,"rope_parameters":{"rope_theta":7})").theta == 7);
  CHECK(rope(R"("rope_scaling":{"rope_type":"linear","type":"yarn","factor":2})").type == RopeType::linear);
  const RopeConfig both = rope(
      R"("rope_scaling":{"type":"linear","factor":3},"rope_parameters":{"rope_type":"default","rope_theta":7})");
  CHECK(both.factor == 3);
  CHECK(both.theta == 10000);
}

TEST_CASE("the original context is the outer field, else the inner, else max_position_embeddings") {
  const std::string yarn = R"("rope_scaling":{"type":"yarn","factor":4)";
  CHECK(rope(yarn + "}").original_max_position_embeddings == 131072);
  CHECK(rope(yarn + R"(,"original_max_position_embeddings":32768})").original_max_position_embeddings ==
        32768);
  CHECK(rope(R"("original_max_position_embeddings":99,)" + yarn +
             R"(,"original_max_position_embeddings":32768})")
            .original_max_position_embeddings == 99);
}

TEST_CASE("yarn's attention factor comes from attention_factor, mscale or factor") {
  const auto factor = [](const std::string& fields) {
    return rope(R"("rope_scaling":{"type":"yarn","original_max_position_embeddings":4096,)" + fields + "}")
        .attention_factor;
  };
  CHECK(factor(R"("factor":4)") == Approx(1.138629436111989));
  CHECK(factor(R"("factor":4,"attention_factor":1.5)") == 1.5);
  CHECK(factor(R"("factor":4,"attention_factor":null,"mscale":0.707,"mscale_all_dim":1)") ==
        Approx(1.0980110113311762 / 1.138629436111989));
  CHECK(factor(R"("factor":4,"mscale":0.707)") == Approx(1.138629436111989));
  CHECK(factor(R"("factor":4,"mscale":0.707,"mscale_all_dim":0)") == Approx(1.138629436111989));
  CHECK(factor(R"("factor":1)") == 1);
  CHECK(factor(R"("factor":null)") == Approx(1.3465735902799727));  // 131072 / 4096 = 32
}

TEST_CASE("yarn's optional fields have transformers' defaults") {
  const auto yarn = [](const std::string& fields) {
    return rope(R"("rope_scaling":{"type":"yarn","factor":4)" + fields + "}");
  };
  CHECK(yarn("").beta_fast == 32);
  CHECK(yarn("").beta_slow == 1);
  CHECK(yarn("").truncate);
  CHECK(yarn(R"(,"beta_fast":16,"beta_slow":2,"truncate":false)").beta_fast == 16);
  CHECK_FALSE(yarn(R"(,"truncate":false)").truncate);
  CHECK_FALSE(yarn(R"(,"truncate":null)").truncate);
  CHECK(yarn(R"(,"beta_fast":null,"beta_slow":0)").beta_slow == 1);
}

TEST_CASE("rope types and layouts that are not implemented are Unsupported") {
  refuses<Unsupported>(R"("rope_scaling":{"type":"dynamic","factor":2})", "rope_scaling.type");
  refuses<Unsupported>(R"("rope_scaling":{"rope_type":"longrope"})", "longrope");
  refuses<Unsupported>(R"("rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5})",
                       "rope_parameters.partial_rotary_factor");
  refuses<Unsupported>(R"("rope_parameters":{"full_attention":{"rope_type":"default"}})", "full_attention");
}

TEST_CASE("rope parameters that are missing, ill-typed or absurd are a FormatError that names them") {
  refuses<FormatError>(R"("rope_theta":0)", "rope_theta");
  refuses<FormatError>(R"("rope_theta":-1.0)", "rope_theta");
  refuses<FormatError>(R"("rope_theta":1e30)", "rope_theta");
  refuses<FormatError>(R"("rope_theta":null)", "rope_theta");
  refuses<FormatError>(R"("rope_scaling":[])", "rope_scaling");
  refuses<FormatError>(R"("rope_scaling":{"type":5})", "rope_scaling.type");
  refuses<FormatError>(R"("rope_scaling":{"type":"linear"})", "rope_scaling.factor");
  refuses<FormatError>(R"("rope_scaling":{"type":"linear","factor":null})", "rope_scaling.factor");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn"})", "rope_scaling.factor");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn","factor":-4})", "rope_scaling.factor");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":0})",
                       "original_max_position_embeddings");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn","factor":4,"attention_factor":0})",
                       "attention_factor");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn","factor":4,"truncate":1})", "truncate");
  refuses<FormatError>(R"("rope_scaling":{"type":"yarn","factor":4},"rope_theta":1)", "rope_theta");
  refuses<FormatError>(R"("rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1})",
                       "high_freq_factor");
  refuses<FormatError>(
      R"("rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})",
      "more than low_freq_factor");
}
