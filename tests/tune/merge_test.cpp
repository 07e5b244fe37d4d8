// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "grid.hpp"
#include "support/catch.hpp"
#include "tiny_models.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

const std::string kLast = "model.layers.1.mlp.down_proj.weight";

/// Norms in f32, all else in bf16.
std::vector<TensorSpec> mixed_specs() {
  std::vector<TensorSpec> specs = model_specs("BF16");
  for (TensorSpec& spec : specs) {
    if (spec.shape.size() == 1) spec.dtype = "F32";
  }
  return specs;
}

void write_adapter(const fs::path& directory, const std::string& module, const Floats& a, const Floats& b,
                   std::size_t rank, double alpha) {
  fs::create_directories(directory);
  std::ofstream(directory / "adapter_config.json")
      << R"({"peft_type":"LORA","r":)" << rank << R"(,"lora_alpha":)" << alpha << "}";
  const std::string name = "base_model.model." + module;
  SafetensorsWriter writer(directory / "adapter_model.safetensors",
                           {{name + ".lora_A.weight", "F32", {rank, a.size() / rank}},
                            {name + ".lora_B.weight", "F32", {b.size() / rank, rank}}});
  writer.append(std::as_bytes(std::span(a)));
  writer.append(std::as_bytes(std::span(b)));
  writer.commit();
}

}  // namespace

TEST_CASE("a merge is tensor by tensor what its method makes of arrays") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2),
                 two = write_model(directory / "two", 3);
  for (const Method method :
       {Method::linear, Method::slerp, Method::task_arithmetic, Method::ties, Method::magnitude_prune,
        Method::dare_linear, Method::dare_ties, Method::breadcrumbs, Method::breadcrumbs_ties}) {
    MergePlan plan = merge_of(method, method == Method::linear ? "" : base, {one});
    if (method != Method::slerp) plan.models.push_back({.model = two.string(), .weight = 0.5});
    for (MergeInput& input : plan.models) {
      input.density = 0.4;
      input.gamma = 0.1;
    }
    const fs::path out = directory / name_of(method);
    const MergeReport report = run_merge(plan, out, 2);
    const Checkpoint result = Checkpoint::open(out);
    CHECK(result.names() == Checkpoint::open(base).names());
    CHECK(report.tensors == result.names().size());
    for (const std::string& name : result.names()) {
      INFO(name_of(method) << ", " << name);
      std::vector<Floats> models = {floats_of(one, name)};
      if (method != Method::slerp) models.push_back(floats_of(two, name));
      CHECK(floats_of(result, name) ==
            merged(plan, method == Method::linear ? Floats{} : floats_of(base, name), models, 1, name));
    }
  }
}

TEST_CASE("differences go onto another model where one is named") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), chat = write_model(directory / "chat", 2),
                 onto = write_model(directory / "onto", 3);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {chat});
  plan.onto = onto.string();
  run_merge(plan, directory / "out");
  for (const std::string& name : {kLast, std::string("model.norm.weight")}) {
    const Floats change = minus(floats_of(chat, name), floats_of(base, name));
    Floats expected = floats_of(onto, name);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = change[i] + expected[i];
    CHECK(floats_of(directory / "out", name) == expected);
  }
}

TEST_CASE("TIES of the paper looks at the whole model as one vector") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  MergePlan plan = merge_of(Method::ties, base, {one});
  plan.definition = Definition::paper;
  plan.models[0].density = 0.1;
  run_merge(plan, directory / "out", 2);
  const Checkpoint out = Checkpoint::open(directory / "out");
  Floats was, delta, got;
  for (const std::string& name : out.names()) {
    const Floats old = floats_of(base, name), made = floats_of(out, name);
    const Floats change = minus(floats_of(one, name), old);
    was.insert(was.end(), old.begin(), old.end());
    delta.insert(delta.end(), change.begin(), change.end());
    got.insert(got.end(), made.begin(), made.end());
  }
  const std::size_t kept = delta.size() / 10;
  const float least = std::abs(delta[ascending(delta)[delta.size() - kept - 1]]);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float expected = std::abs(delta[i]) >= least ? was[i] + delta[i] : was[i];
    REQUIRE(got[i] == expected);
  }
}

TEST_CASE("weights may vary over names and layers") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  plan.models[0].weight = Setting({{"down_proj", {0, 1}}, {"", {0}}});
  run_merge(plan, directory / "out");
  const Checkpoint out = Checkpoint::open(directory / "out");
  for (const std::string& name : out.names()) {
    INFO(name);
    const Floats old = floats_of(base, name);
    if (name == kLast) {
      CHECK(floats_of(out, name) == plus(minus(floats_of(one, name), old), old));
    } else {
      CHECK(floats_of(out, name) == old);
    }
  }
  plan.models[0].weight = Setting({{"down_proj", {1}}});
  CHECK_THAT(refusal<InvalidArgument>(plan, directory / "other"), Contains("add a rule without a filter"));
  CHECK_FALSE(fs::exists(directory / "other"));
}

TEST_CASE("each tensor keeps the dtype of the model that is built upon, whatever the others have") {
  const TemporaryDirectory directory;
  const fs::path base = directory / "base";
  write_checkpoint(base, model_json(), mixed_specs(), 1);
  const fs::path half = write_model(directory / "half", 2, "F16"), full = write_model(directory / "full", 3);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {half, full});
  run_merge(plan, directory / "out");
  const Checkpoint out = Checkpoint::open(directory / "out"), from = Checkpoint::open(base);
  for (const std::string& name : out.names()) {
    INFO(name);
    CHECK(out.info(name).dtype == from.info(name).dtype);
    const Floats exact =
        merged(plan, floats_of(base, name), {floats_of(half, name), floats_of(full, name)}, 1, name);
    const DType dtype = out.info(name).dtype == "F32" ? DType::f32 : DType::bf16;
    CHECK(floats_of(out, name) == rounded(exact, dtype));
  }
  plan.dtype = DType::f16;
  run_merge(plan, directory / "f16");
  const Checkpoint narrow = Checkpoint::open(directory / "f16");
  for (const std::string& name : narrow.names()) CHECK(narrow.info(name).dtype == "F16");
  CHECK_THAT(bytes_of(directory / "f16" / "config.json"), Contains("float16"));
}

TEST_CASE("the report counts what was to change and what changed as stored") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1, "BF16");
  Floats tuned = floats_of(base, kLast);
  for (std::size_t i = 0; i < 10; ++i) tuned[i] += tuned[i] * 0x1p-20f;  // lost in bf16
  for (std::size_t i = 10; i < 14; ++i) tuned[i] += 1.0f;
  const fs::path one = write_changed(base, directory / "one", {{kLast, tuned}});
  const MergeReport report = run_merge(merge_of(Method::task_arithmetic, base, {one}), directory / "out");
  std::set<std::string> kinds;
  for (const MergedKind& kind : report.kinds) {
    kinds.insert(kind.kind);
    const bool down = kind.kind == "down_proj";
    INFO(kind.kind);
    CHECK(kind.changed == (down ? 14 : 0));
    CHECK(kind.moved == (down ? 4 : 0));
    if (!down) continue;
    CHECK(kind.tensors == 2);
    CHECK(kind.elements == 2 * 8 * 12);
    CHECK(kind.change == Approx(4).margin(1e-2));
    CHECK(kind.stored_change == Approx(4).margin(0.1));
  }
  CHECK(kinds == std::set<std::string>{"embedding", "head", "others", "q_proj", "k_proj", "v_proj", "o_proj",
                                       "gate_proj", "up_proj", "down_proj"});
  CHECK_THAT(bytes_of(directory / "out" / "merge.json"),
             Contains("modicum.tune.merged/1") && Contains("task_arithmetic") && Contains("\"moved\": 4"));
}

TEST_CASE("a sharded result holds the same weights") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  run_merge(plan, directory / "whole");
  run_merge(plan, directory / "shards", 2, {.shard_bytes = 1000});
  const Checkpoint whole = Checkpoint::open(directory / "whole"),
                   shards = Checkpoint::open(directory / "shards");
  CHECK(whole.files().size() == 1);
  CHECK(shards.files().size() > 3);
  CHECK(fs::exists(directory / "shards" / "model.safetensors.index.json"));
  CHECK(shards.names() == whole.names());
  for (const std::string& name : whole.names()) CHECK(floats_of(shards, name) == floats_of(whole, name));
}

TEST_CASE("all other files are those of the model that is built upon") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  std::ofstream(base / "LICENSE") << "ours";
  std::ofstream(base / "generation_config.json") << R"({"temperature":0.5})";
  std::ofstream(base / "pytorch_model.bin") << "old weights";
  std::ofstream(base / ".hidden") << "x";
  std::ofstream(one / "LICENSE") << "theirs";
  const MergeReport report = run_merge(merge_of(Method::task_arithmetic, base, {one}), directory / "out");
  CHECK(report.unchecked);
  const auto files = files_in(directory / "out");
  CHECK(names_in(directory / "out") == std::set<std::string>{"LICENSE", "config.json",
                                                             "generation_config.json", "merge.json",
                                                             "model.safetensors"});
  for (const char* const name : {"LICENSE", "config.json", "generation_config.json"})
    CHECK(files.at(name) == bytes_of(base / name));
}

TEST_CASE("an adapter is applied to its model before it is merged") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1);
  const Floats a = grid(2 * 12, 5), b = grid(8 * 2, 6);
  write_adapter(directory / "adapter", "model.layers.1.mlp.down_proj", a, b, 2, 1);
  MergePlan plan = merge_of(Method::linear, "", {base});
  plan.models[0].adapter = (directory / "adapter").string();
  run_merge(plan, directory / "out");
  Floats expected = floats_of(base, kLast);
  for (std::size_t r = 0; r < 8; ++r) {
    for (std::size_t c = 0; c < 12; ++c)
      expected[r * 12 + c] += 0.5f * (b[r * 2] * a[c] + b[r * 2 + 1] * a[12 + c]);
  }
  CHECK(floats_of(directory / "out", kLast) == expected);
  const std::string other = "model.layers.0.mlp.down_proj.weight";
  CHECK(floats_of(directory / "out", other) == floats_of(base, other));
}

TEST_CASE("an adapter that makes weights infinite is refused by every method") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1);
  Floats a = grid(12, 5);
  a[3] = std::numeric_limits<float>::quiet_NaN();
  write_adapter(directory / "adapter", "model.layers.1.mlp.down_proj", a, grid(8, 6), 1, 1);
  for (const Method method : {Method::task_arithmetic, Method::ties, Method::breadcrumbs, Method::slerp}) {
    MergePlan plan = merge_of(method, base, {base});
    plan.models[0].adapter = (directory / "adapter").string();
    plan.models[0].density = 0.5;
    INFO(name_of(method));
    CHECK_THAT(refusal<FormatError>(plan, directory / "out"), Contains(kLast) && Contains("finite"));
  }
  CHECK(names_in(directory.path()) == std::set<std::string>{"adapter", "base"});
}

TEST_CASE("the same bytes come out of one thread and of several") {
  const TemporaryDirectory directory;
  // Embedding and head have more tiles than one run holds.
  const std::string json =
      R"({"model_type":"llama","hidden_size":64,"intermediate_size":64,"num_attention_heads":1,)"
      R"("vocab_size":9000,"num_hidden_layers":1,"tie_word_embeddings":true,"max_position_embeddings":32})";
  const fs::path base = write_model(directory / "base", 1, "BF16", json),
                 one = write_model(directory / "one", 2, "BF16", json);
  for (const auto& [method, definition] : {std::pair{Method::slerp, Definition::mergekit},
                                           {Method::ties, Definition::mergekit},
                                           {Method::ties, Definition::paper},
                                           {Method::dare_ties, Definition::mergekit},
                                           {Method::breadcrumbs, Definition::mergekit}}) {
    MergePlan plan = merge_of(method, base, {one});
    plan.definition = definition;
    plan.models[0].density = 0.3;
    const std::string name = std::string(name_of(method)) + (definition == Definition::paper ? "p" : "");
    run_merge(plan, directory / (name + "1"), 1);
    run_merge(plan, directory / (name + "3"), 3);
    INFO(name);
    const bool same = files_in(directory / (name + "1")) == files_in(directory / (name + "3"));
    CHECK(same);
  }
}

TEST_CASE("models that do not fit each other are refused by name, and nothing is left behind") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), out = directory / "out";
  std::vector<TensorSpec> specs = model_specs();
  std::erase_if(specs, [](const TensorSpec& spec) { return spec.name == kLast; });
  write_checkpoint(directory / "lacks", model_json(), specs);
  specs = model_specs();
  specs.push_back({"model.extra.weight", "F32", {4}});
  write_checkpoint(directory / "more", model_json(), specs);
  specs = model_specs();
  specs.back().shape = {8, 11};
  write_checkpoint(directory / "shape", model_json(), specs);
  write_model(directory / "narrow", 1, "F32", model_json(R"(,"rms_norm_eps":0.001)"));
  specs = model_specs();
  specs.back().dtype = "I32";
  write_checkpoint(directory / "integers", model_json(), specs);
  const std::set<std::string> before = names_in(directory.path());
  const auto with = [&](const char* model) {
    return merge_of(Method::task_arithmetic, base, {directory / model});
  };
  CHECK_THAT(refusal<FormatError>(with("lacks"), out), Contains(kLast) && Contains("none of that name"));
  CHECK_THAT(refusal<FormatError>(with("more"), out), Contains("model.extra.weight"));
  CHECK_THAT(refusal<FormatError>(with("shape"), out),
             Contains(kLast) && Contains("[8, 12]") && Contains("[8, 11]"));
  CHECK_THAT(refusal<InvalidArgument>(with("narrow"), out), Contains("rms_norm_eps"));
  CHECK_THAT(refusal<IoError>(with("nowhere"), out), Contains("nowhere"));
  CHECK_THAT(refusal<Error>(with("integers"), out), Contains(kLast));
  CHECK_THAT(refusal<Unsupported>(merge_of(Method::linear, "", {directory / "integers"}), out),
             Contains(kLast) && Contains("I32"));
  CHECK(names_in(directory.path()) == before);
}

TEST_CASE("numbers that are not finite are refused with their place, and nothing is left behind") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1);
  Floats bad = floats_of(base, kLast);
  bad[12 * 3 + 7] = std::numeric_limits<float>::quiet_NaN();
  const fs::path nan = write_changed(base, directory / "nan", {{kLast, bad}});
  bad[12 * 3 + 7] = -std::numeric_limits<float>::infinity();
  const fs::path infinite = write_changed(base, directory / "infinite", {{kLast, bad}});
  for (const Method method : {Method::task_arithmetic, Method::ties, Method::slerp, Method::dare_linear}) {
    CHECK_THAT(refusal<FormatError>(merge_of(method, base, {nan}), directory / "out"),
               Contains(kLast) && Contains("[3, 7]") && Contains("NaN"));
    CHECK_THAT(refusal<FormatError>(merge_of(method, base, {infinite}), directory / "out"),
               Contains("[3, 7]") && Contains("infinity"));
  }
  CHECK(names_in(directory.path()) == std::set<std::string>{"base", "nan", "infinite"});
}

TEST_CASE("results beyond the range of their dtype are refused, and nothing is left behind") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  plan.lambda = 1e6;
  plan.dtype = DType::f16;
  CHECK_THAT(refusal<FormatError>(plan, directory / "out"),
             Contains("range of f16") && Contains("bf16 or f32"));
  plan.dtype = DType::f32;
  plan.lambda = 1e30;
  plan.models[0].weight = 1e30;
  CHECK_THAT(refusal<FormatError>(plan, directory / "out"), Contains("finite numbers"));
  CHECK(names_in(directory.path()) == std::set<std::string>{"base", "one"});
}

TEST_CASE("an output that is there already stays as it is, unless it is an empty directory") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  fs::create_directory(directory / "full");
  std::ofstream(directory / "full" / "a") << "mine";
  CHECK_THAT(refusal<InvalidArgument>(plan, directory / "full"), Contains("one that holds something"));
  CHECK(names_in(directory / "full") == std::set<std::string>{"a"});
  CHECK_THAT(refusal<InvalidArgument>(plan, base), Contains("one that holds something"));
  fs::create_directory(directory / "empty");
  run_merge(plan, directory / "empty");
  CHECK(fs::exists(directory / "empty" / "merge.json"));
  CHECK(names_in(directory.path()) == std::set<std::string>{"base", "one", "full", "empty"});
}

TEST_CASE("a tied head meets one of its own only where the result may have one") {
  const TemporaryDirectory directory;
  const std::string tied = model_json(R"(,"tie_word_embeddings":true)");
  const fs::path base = write_model(directory / "base", 1, "F32", tied),
                 one = write_model(directory / "one", 2);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  CHECK_THAT(refusal<InvalidArgument>(plan, directory / "out"), Contains("untie"));
  plan.untie = true;
  run_merge(plan, directory / "out");
  const Checkpoint out = Checkpoint::open(directory / "out");
  CHECK_FALSE(out.config().tie_word_embeddings);
  const Floats embedding = floats_of(base, "model.embed_tokens.weight");
  CHECK(floats_of(out, "lm_head.weight") ==
        plus(minus(floats_of(one, "lm_head.weight"), embedding), embedding));
  // The other way round the tied model's head is its embedding.
  run_merge(merge_of(Method::linear, "", {one, base}), directory / "mean");
  Floats mean = plus(floats_of(one, "lm_head.weight"), embedding);
  for (float& value : mean) value /= 2.0f;
  CHECK(floats_of(directory / "mean", "lm_head.weight") == mean);
}
