// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/statistics/moments.hpp>
#include <modicum/tune/project.hpp>

#include "../base/json.hpp"
#include "../base/stopwatch.hpp"
#include "../io/checkpoint_draft.hpp"
#include "../io/checkpoint_layout.hpp"
#include "../io/copy_files.hpp"
#include "../statistics/layer_pass.hpp"
#include "../statistics/linear_layers.hpp"
#include "merge_directory.hpp"
#include "merge_inputs.hpp"
#include "merger.hpp"
#include "tally.hpp"
#include "write_tensor.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "project";
constexpr std::size_t kRows = 1024;  // tokens that go through a layer together
constexpr std::string_view kLayers = "model.layers.";

/// What the linear layers of a layer read: q, k and v; o; gate and up; down.
enum class Input { attention, heads, ffn, inner };
Input input_of(modicum::Linear linear) {
  switch (linear) {
    case modicum::Linear::o:
      return Input::heads;
    case modicum::Linear::gate:
    case modicum::Linear::up:
      return Input::ffn;
    case modicum::Linear::down:
      return Input::inner;
    default:
      return Input::attention;
  }
}

/// Directions of one input, and its mean second moment, which tells what a change does on average.
struct Protection {
  linalg::Matrix directions;
  linalg::Matrix gram;
};
using LayerProtection = std::array<Protection, 4>;

/// 0 for tensors of no layer, else the layer's number from 1.
std::size_t place_of(const TensorSpec& spec) {
  if (!spec.name.starts_with(kLayers)) return 0;
  std::size_t layer = 0;
  std::from_chars(spec.name.data() + kLayers.size(), spec.name.data() + spec.name.size(), layer);
  return layer + 1;
}

/// The protected text on its way through the instruct model, a layer at a time.
class Stream {
 public:
  Stream(const Checkpoint& model, const ProtectedText& text, ThreadPool& pool)
      : config_(model.config()), weights_(ModelWeights::load(model)), text_(text), pool_(pool) {
    hidden_.resize(text.tokens.size() * config_.hidden_size);
    ops::gather_rows(weights_.embedding, text.tokens, hidden_.data());
  }

  /// Reads the next layer. With `gather`, what its linear layers read is summed up.
  std::optional<LayerProtection> read(std::size_t layer, double energy, bool gather) {
    const std::size_t at_once = std::max<std::size_t>(1, kRows / text_.length);
    LayerPass pass(config_, weights_.dtype, at_once, text_.length, pool_);
    std::vector<SecondMoments> moments;
    if (gather) {
      for (const std::size_t width :
           {config_.hidden_size, config_.query_width(), config_.hidden_size, config_.intermediate_size}) {
        moments.emplace_back(width, 0, weights_.dtype, text_.tokens.size());
      }
    }
    const std::size_t window = config_.sliding_window.empty() ? 0 : config_.sliding_window[layer];
    for (std::size_t first = 0; first < text_.lengths.size(); first += at_once) {
      const std::size_t count = std::min(at_once, text_.lengths.size() - first);
      float* const x = hidden_.data() + first * text_.length * config_.hidden_size;
      pass.run(weights_.layers[layer], window, x, count);
      if (gather) {
        const std::vector<float> factors = counted(first, count);
        const std::array<const float*, 4> inputs = {pass.attention_input.data(), pass.heads.data(),
                                                    pass.ffn_input.data(), pass.inner.data()};
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          moments[i].add(pool_, inputs[i], nullptr, count * text_.length, factors);
        }
      }
      std::copy_n(pass.out.data(), count * text_.length * config_.hidden_size, x);
    }
    if (!gather) return std::nullopt;
    LayerProtection protection;
    for (std::size_t i = 0; i < moments.size(); ++i) {
      moments[i].finish(pool_);
      protection[i].gram = std::move(moments[i]).moments().gram / static_cast<double>(tokens());
      protection[i].directions = protected_directions(protection[i].gram, energy);
    }
    return protection;
  }

  std::size_t tokens() const {
    std::size_t sum = 0;
    for (const std::size_t length : text_.lengths) sum += length - 1;
    return sum;
  }

 private:
  /// 1 for tokens that count: not the first of a sequence, nor what fills it up.
  std::vector<float> counted(std::size_t first, std::size_t count) const {
    std::vector<float> factors(count * text_.length);
    for (std::size_t s = 0; s < count; ++s) {
      std::fill_n(factors.begin() + static_cast<std::ptrdiff_t>(s * text_.length + 1),
                  text_.lengths[first + s] - 1, 1.0f);
    }
    return factors;
  }

  const ModelConfig& config_;
  const ModelWeights weights_;
  const ProtectedText& text_;
  ThreadPool& pool_;
  LayerPass::Floats hidden_;
};

void check(const ProtectedText& text, const ProjectOptions& options, const ModelConfig& config) {
  if (!(options.energy >= 0 && options.energy <= 1)) {
    fail({.op = kOp, .what = "energy", .expected = "0 to 1", .got = std::to_string(options.energy)});
  }
  const bool fits =
      text.length > 1 && !text.lengths.empty() && text.tokens.size() == text.length * text.lengths.size() &&
      std::ranges::all_of(text.lengths, [&](std::size_t n) { return n > 1 && n <= text.length; });
  if (!fits) {
    fail({.op = kOp,
          .what = "protected text",
          .expected = "sequences of at least two tokens",
          .got = std::to_string(text.lengths.size()) + " of up to " + std::to_string(text.length)});
  }
  if (text.length > config.max_position_embeddings) {
    fail<ContextOverflow>(
        {.op = kOp,
         .what = "protected text",
         .expected = "sequences of at most " + std::to_string(config.max_position_embeddings),
         .got = std::to_string(text.length)});
  }
  for (const TokenId token : text.tokens) {
    if (token >= 0 && static_cast<std::size_t>(token) < config.vocab_size) continue;
    fail({.op = kOp,
          .what = "token",
          .expected = "0 to " + std::to_string(config.vocab_size - 1),
          .got = std::to_string(token)});
  }
}

/// Tensors of no layer first, then layer after layer, so that a layer is done before the next is read.
std::vector<TensorSpec> by_layer(std::vector<TensorSpec> specs) {
  std::ranges::stable_sort(specs, {}, place_of);
  return specs;
}

MergePlan without_update(MergePlan plan) {
  plan.lambda = 0.0;
  return plan;
}

/// tr(A G Aᵀ): the mean square of A x.
double mean_square(const linalg::Matrix& a, const linalg::Matrix& gram) {
  linalg::Matrix product;
  linalg::multiply(a, linalg::Transpose::no, gram, linalg::Transpose::no, product);
  return product.cwiseProduct(a).sum();
}

Json json_of(const ProjectedModule& m) {
  return {{"module", m.module}, {"inputs", m.inputs}, {"directions", m.directions},
          {"kept", m.kept},     {"before", m.before}, {"after", m.after}};
}

class Projector {
 public:
  Projector(const MergePlan& plan, const ProtectedText& text, const ProjectOptions& options, ThreadPool& pool,
            const Progress& progress)
      : options_(options),
        pool_(pool),
        progress_(progress),
        inputs_(plan),
        directory_(plan, inputs_),
        merger_(plan, inputs_, pool, silent_),
        unchanged_plan_(without_update(plan)),
        unchanged_(unchanged_plan_, inputs_, pool, silent_),
        model_(inputs_.sources()[inputs_.foundation()].checkpoint),
        specs_(by_layer(inputs_.specs())) {
    if (inputs_.rows().mapped()) {
      fail({.op = kOp, .what = "vocabulary", .expected = "the same tokens in both models", .got = "others"});
    }
    check(text, options, model_.config());
    stream_.emplace(model_, text, pool);
  }

  ProjectReport run(const fs::path& to, const std::string& decides) {
    const std::uint64_t shard_bytes =
        options_.merge.shard_bytes != 0 ? options_.merge.shard_bytes : shard_bytes_of(model_);
    CheckpointDraft draft(
        to, specs_,
        {.kind = kOp,
         .key = hash128_hex(decides + inputs_.identity() + std::to_string(shard_bytes)).substr(0, 16),
         .work = options_.merge.work,
         .shard_bytes = shard_bytes,
         .sync_bytes = options_.merge.sync_bytes});
    ProjectReport report{.modules = modules_from(draft.state()), .tokens = stream_->tokens()};
    linalg::set_threads(pool_.size());
    std::size_t next = 0;
    for (std::size_t layer = 0; layer <= layers(); ++layer) {  // 0: of none
      modicum::report(progress_, kOp, layer, layers() + 1);
      const std::size_t end = end_of(layer, next);
      const bool done = end <= draft.finished();
      std::optional<LayerProtection> protection;
      if (layer > 0) protection = stream_->read(layer - 1, options_.energy, !done);
      for (; next < end; ++next) {
        if (next < draft.finished()) continue;
        write(next, protection, draft, report);
        draft.finish(next, state_of(report.modules));
      }
    }
    modicum::report(progress_, kOp, layers() + 1, layers() + 1);
    directory_.write(draft.directory());
    write_text(draft.directory() / "project.json", report_json(report));
    draft.commit();
    for (const TensorSpec& spec : specs_) report.bytes += elements_of(spec) * size_of(dtype_of(spec));
    return report;
  }

 private:
  std::size_t layers() const { return model_.config().num_hidden_layers; }

  std::size_t end_of(std::size_t layer, std::size_t from) const {
    while (from < specs_.size() && place_of(specs_[from]) <= layer) ++from;
    return from;
  }

  void write(std::size_t index, const std::optional<LayerProtection>& protection,
             const CheckpointDraft& draft, ProjectReport& report) {
    const TensorSpec& spec = specs_[index];
    const std::optional<modicum::Linear> linear = linear_of(spec.name);
    if (!linear) {
      write_tensor(options_.others ? merger_ : unchanged_, spec, draft, index);
      return;
    }
    const CheckpointReader reader = merger_.open(spec);
    std::vector<float> was(elements_of(spec)), values(was.size());
    merger_.merge(reader, spec, [&](std::size_t, const Tile& tile, const std::vector<float>& merged) {
      std::copy_n(tile.onto, tile.count, was.begin() + static_cast<std::ptrdiff_t>(tile.first));
      std::copy(merged.begin(), merged.end(), values.begin() + static_cast<std::ptrdiff_t>(tile.first));
    });
    report.modules.push_back(
        project(spec, was, values, (*protection)[static_cast<std::size_t>(input_of(*linear))]));
    std::vector<std::byte> bytes(values.size() * size_of(dtype_of(spec)));
    store_values(values.data(), was.data(), values.size(), dtype_of(spec), bytes.data(), spec.name);
    draft.write(index, 0, bytes);
  }

  static std::optional<modicum::Linear> linear_of(const std::string& tensor) {
    for (const modicum::Linear linear : kLinears) {
      if (tensor.ends_with("." + std::string(module_of(linear)) + ".weight")) return linear;
    }
    return std::nullopt;
  }

  /// values ← was + (values − was) P.
  static ProjectedModule project(const TensorSpec& spec, const std::vector<float>& was,
                                 std::vector<float>& values, const Protection& protection) {
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto rows = static_cast<Eigen::Index>(spec.shape[0]),
               cols = static_cast<Eigen::Index>(spec.shape[1]);
    const linalg::Matrix old = Eigen::Map<const RowMajor>(was.data(), rows, cols).cast<double>();
    linalg::Matrix update = Eigen::Map<const RowMajor>(values.data(), rows, cols).cast<double>() - old;
    ProjectedModule module{.module = spec.name.substr(0, spec.name.rfind('.')),
                           .inputs = spec.shape[1],
                           .directions = static_cast<std::size_t>(protection.directions.cols())};
    const double size = update.norm();
    if (size == 0) return module;
    const double scale = std::sqrt(mean_square(old, protection.gram));
    const auto relative = [&] {
      return scale > 0 ? std::sqrt(std::max(0.0, mean_square(update, protection.gram))) / scale : 0.0;
    };
    module.before = relative();
    if (protection.directions.cols() > 0) {
      linalg::Matrix along;
      linalg::multiply(update, linalg::Transpose::no, protection.directions, linalg::Transpose::no, along);
      linalg::multiply(along, linalg::Transpose::no, protection.directions, linalg::Transpose::yes, update,
                       -1, 1);
    }
    module.after = relative();
    module.kept = update.norm() / size;
    Eigen::Map<RowMajor>(values.data(), rows, cols) = (old + update).cast<float>();
    return module;
  }

  static std::string state_of(const std::vector<ProjectedModule>& modules) {
    Json json = Json::array();
    for (const ProjectedModule& module : modules) json.push_back(json_of(module));
    return json.dump();
  }

  static std::vector<ProjectedModule> modules_from(const std::string& state) {
    std::vector<ProjectedModule> modules;
    if (state.empty()) return modules;
    for (const Json& m : Json::parse(state)) {
      modules.push_back({.module = m.at("module").get<std::string>(),
                         .inputs = m.at("inputs").get<std::size_t>(),
                         .directions = m.at("directions").get<std::size_t>(),
                         .kept = m.at("kept").get<double>(),
                         .before = m.at("before").get<double>(),
                         .after = m.at("after").get<double>()});
    }
    return modules;
  }

  std::string report_json(const ProjectReport& report) const {
    return Json{{"schema", "modicum.tune.projected/1"},
                {"instruct", model_.directory().string()},
                {"energy", options_.energy},
                {"tokens", report.tokens},
                {"modules", Json::parse(state_of(report.modules))}}
               .dump(2) +
           "\n";
  }

  const ProjectOptions& options_;
  ThreadPool& pool_;
  const Progress& progress_;
  const Progress silent_ = {};  ///< tensors are not what is counted here
  const MergeInputs inputs_;
  const MergeDirectory directory_;
  Merger merger_;
  const MergePlan unchanged_plan_;
  Merger unchanged_;
  const Checkpoint& model_;
  const std::vector<TensorSpec> specs_;
  std::optional<Stream> stream_;
};

}  // namespace

linalg::Matrix protected_directions(linalg::Matrix gram, double energy) {
  const Eigen::Index n = gram.rows();
  const linalg::Eigensystem system = linalg::eigh(std::move(gram));
  const double all = system.values.cwiseMax(0).sum();
  double held = 0;
  Eigen::Index count = 0;
  while (count < n && all > 0 && held < energy * all) {
    const double value = system.values[n - 1 - count];
    // Activations are summed in f32: below that is rounding, not a direction that occurred.
    if (value <= 1e-7 * all) break;
    held += value;
    ++count;
  }
  return system.vectors.rightCols(count);
}

ProjectReport project(const std::string& instruct, const MergeInput& tuned, const ProtectedText& text,
                      const fs::path& to, const ProjectOptions& options, ThreadPool& pool,
                      const Progress& progress) {
  const Stopwatch watch;
  const MergePlan plan{.method = Method::task_arithmetic, .base = instruct, .models = {tuned}};
  std::string decides = "modicum.tune.project/1\n" + plan.to_json() + std::to_string(options.energy) +
                        (options.others ? " others " : " ") + std::to_string(text.length) + " " +
                        hash128_hex(std::as_bytes(text.tokens)) + " " + linalg::backend();
  for (const std::size_t length : text.lengths) decides += " " + std::to_string(length);
  ProjectReport report = Projector(plan, text, options, pool, progress).run(to, decides);
  report.seconds = watch.seconds();
  return report;
}

}  // namespace modicum::tune
