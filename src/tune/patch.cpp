// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <modicum/base/atomic_directory.hpp>
#include <modicum/base/error.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/tune/patch.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/stopwatch.hpp"
#include "../io/copy_files.hpp"
#include "checkpoint_reader.hpp"
#include "merge_inputs.hpp"
#include "merger.hpp"
#include "method_dispatch.hpp"
#include "tally.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "patch";
constexpr const char* kPrefix = "base_model.model.";

/// A tensor of the adapter.
struct Stored {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

/// A tensor of the result that the adapter holds as it is, under a name that may be that of a tied head.
struct Whole {
  std::string stored;
  TensorSpec spec;
};

/// Throws `FormatError` for what is out of the dtype's range.
std::vector<std::byte> bytes_as(DType dtype, const std::vector<float>& values, const std::string& tensor) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  store_values(values.data(), values.data(), values.size(), dtype, bytes.data(), tensor);
  return bytes;
}

const char* stored_name(DType dtype) {
  return dtype == DType::f32 ? "F32" : dtype == DType::f16 ? "F16" : "BF16";
}

Stored stored_matrix(const std::string& name, const linalg::Matrix& m, DType dtype) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  std::vector<float> values(static_cast<std::size_t>(m.size()));
  Eigen::Map<RowMajor>(values.data(), m.rows(), m.cols()) = m.cast<float>();
  return {
      {name, stored_name(dtype), {static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())}},
      bytes_as(dtype, values, name)};
}

class PatchWriter {
 public:
  PatchWriter(const MergePlan& plan, const PatchOptions& options, ThreadPool& pool, const Progress& progress)
      : plan_(plan), options_(options), inputs_(plan), pool_(pool), merger_(plan, inputs_, pool, progress) {
    if (inputs_.rows().mapped()) {
      fail<Unsupported>({.op = kOp,
                         .what = "vocabulary",
                         .expected = "the same tokens in all models",
                         .got = "others",
                         .todo = "write a checkpoint instead: an adapter has no place for rows of its own"});
    }
  }

  PatchReport run(const fs::path& to) {
    AtomicDirectory directory(to);
    linalg::set_threads(pool_.size());
    for (const TensorSpec& spec : inputs_.specs()) add(spec);
    write_weights(directory.temporary());
    merger_.finish();
    write_text(directory.temporary() / "adapter_config.json", config());
    write_text(directory.temporary() / "patch.json", report_json());
    directory.commit();
    return std::move(report_);
  }

 private:
  void add(const TensorSpec& spec) {
    const CheckpointReader reader = merger_.open(spec);
    const bool matrix = spec.name.ends_with("_proj.weight");
    linalg::Matrix change;
    if (matrix)
      change.resize(static_cast<Eigen::Index>(reader.rows()), static_cast<Eigen::Index>(reader.cols()));
    std::vector<std::pair<double, double>> sums(reader.tiles());  // of squares: change, and what was there
    merger_.merge(reader, spec, [&](std::size_t, const Tile& tile, const std::vector<float>& values) {
      for (std::size_t i = 0; i < tile.count; ++i) {
        const double difference = static_cast<double>(values[i]) - tile.onto[i];
        sums[tile.index].first += difference * difference;
        sums[tile.index].second += static_cast<double>(tile.onto[i]) * tile.onto[i];
        if (!matrix) continue;
        const std::uint64_t at = tile.first + i;
        change(static_cast<Eigen::Index>(at / reader.cols()), static_cast<Eigen::Index>(at % reader.cols())) =
            difference;
      }
    });
    double size = 0, old = 0;
    for (const auto& [part, was] : sums) {
      size += part;
      old += was;
    }
    if (size == 0) return;
    if (!std::isfinite(size)) {
      fail<FormatError>({.op = kOp,
                         .what = "change of tensor " + quote(spec.name),
                         .expected = "finite numbers",
                         .got = "NaN or infinity",
                         .todo = "check weights and lambda"});
    }
    if (matrix) return add_factors(spec, change, std::sqrt(size), std::sqrt(old));
    add_whole(spec);
  }

  void add_factors(const TensorSpec& spec, const linalg::Matrix& change, double size, double old) {
    const Factors factors = factorize(change, options_.rank);
    const std::size_t rank = rank_of(factors.singular_values);
    const std::string module = spec.name.substr(0, spec.name.rfind('.'));
    const auto r = static_cast<Eigen::Index>(rank);
    tensors_.push_back(
        stored_matrix(kPrefix + module + ".lora_A.weight", factors.a.topRows(r), options_.dtype));
    tensors_.push_back(
        stored_matrix(kPrefix + module + ".lora_B.weight", factors.b.leftCols(r), options_.dtype));
    PatchedModule patched{
        .module = module, .rank = rank, .size = size, .relative = old > 0 ? size / old : 0, .errors = {}};
    for (std::size_t n = 1; n < rank; n *= 2) patched.errors.push_back(error_of(factors.singular_values, n));
    patched.errors.push_back(error_of(factors.singular_values, rank));
    report_.modules.push_back(std::move(patched));
  }

  static double error_of(const linalg::Vector& singular_values, std::size_t rank) {
    const double all = singular_values.squaredNorm();
    const double lost =
        singular_values.tail(singular_values.size() - static_cast<Eigen::Index>(rank)).squaredNorm();
    return all > 0 ? std::sqrt(lost / all) : 0;
  }

  std::size_t rank_of(const linalg::Vector& singular_values) const {
    const std::size_t most = std::min(options_.rank, static_cast<std::size_t>(singular_values.size()));
    std::size_t rank = 1;
    while (rank < most && (options_.error <= 0 || error_of(singular_values, rank) > options_.error)) ++rank;
    return options_.error <= 0 ? most : rank;
  }

  void add_whole(const TensorSpec& spec) {
    if (options_.others == OtherTensors::drop) {
      report_.dropped.push_back(spec.name);
      return;
    }
    if (spec.name.ends_with(".bias")) {
      fail<Unsupported>({.op = kOp,
                         .what = "tensor " + quote(spec.name),
                         .expected = "a change that an adapter can hold",
                         .got = "one of a bias",
                         .todo = "leave out what is no matrix (others: drop), or write a checkpoint"});
    }
    whole_.push_back({spec.name, spec});
    // PEFT wraps embedding and head apart and wants both, as it writes both itself.
    if (spec.name == kEmbedding && inputs_.tied()) whole_.push_back({kHead, spec});
    for (const Whole& tensor : whole_) {
      if (tensor.spec.name == spec.name) report_.whole.push_back(tensor.stored);
    }
  }

  /// Factors are small and wait in memory; whole tensors are made again as they are written.
  void write_weights(const fs::path& to) {
    std::vector<TensorSpec> specs;
    for (const auto& [stored, spec] : whole_) {
      specs.push_back({kPrefix + stored, spec.dtype, spec.shape});
      report_.bytes += elements_of(spec) * size_of(dtype_of(spec));
    }
    for (const Stored& tensor : tensors_) {
      specs.push_back(tensor.spec);
      report_.bytes += tensor.bytes.size();
    }
    SafetensorsWriter writer(to / "adapter_model.safetensors", specs, {{"format", "pt"}}, 64);
    for (const auto& whole : whole_) {
      const TensorSpec& spec = whole.spec;
      const CheckpointReader reader = merger_.open(spec);
      merger_.merge_in_order(reader, spec, [&](std::size_t, const Tile&, const std::vector<float>& values) {
        writer.append(bytes_as(dtype_of(spec), values, spec.name));
      });
    }
    for (const Stored& tensor : tensors_) writer.append(tensor.bytes);
    writer.commit();
  }

  std::string config() const {
    std::set<std::string> targets, whole;
    std::size_t most = 1;
    for (const PatchedModule& module : report_.modules) {
      targets.insert(module.module.substr(module.module.rfind('.') + 1));
      most = std::max(most, module.rank);
    }
    for (const std::string& tensor : report_.whole) {
      const std::string module = tensor.substr(0, tensor.rfind('.'));
      whole.insert(module.substr(module.rfind('.') + 1));
    }
    Json ranks = Json::object(), alphas = Json::object();
    for (const PatchedModule& module : report_.modules) {
      if (module.rank == most) continue;
      ranks[module.module] = module.rank;
      alphas[module.module] = module.rank;
    }
    Json json = {{"peft_type", "LORA"},
                 {"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", plan_.foundation()},
                 {"r", most},
                 {"lora_alpha", most},
                 {"rank_pattern", std::move(ranks)},
                 {"alpha_pattern", std::move(alphas)},
                 {"target_modules", targets},
                 {"lora_dropout", 0.0},
                 {"bias", "none"},
                 {"use_rslora", false},
                 {"fan_in_fan_out", false},
                 {"inference_mode", true}};
    json["modules_to_save"] = whole.empty() ? Json(nullptr) : Json(whole);
    // Without this PEFT would leave the head of a tied model as it was before the embedding changed.
    if (inputs_.tied() && whole.contains("embed_tokens")) json["ensure_weight_tying"] = true;
    return json.dump(2) + "\n";
  }

  std::string report_json() const {
    Json modules = Json::array();
    for (const PatchedModule& m : report_.modules) {
      modules.push_back({{"module", m.module},
                         {"rank", m.rank},
                         {"size", m.size},
                         {"relative", m.relative},
                         {"errors", m.errors}});
    }
    return Json{{"schema", "modicum.tune.patch/1"},
                {"plan", Json::parse(plan_.to_json())},
                {"modules", std::move(modules)},
                {"whole", report_.whole},
                {"dropped", report_.dropped}}
               .dump(2) +
           "\n";
  }

  const MergePlan& plan_;
  const PatchOptions& options_;
  const MergeInputs inputs_;
  ThreadPool& pool_;
  Merger merger_;
  std::vector<Stored> tensors_;  ///< factors
  std::vector<Whole> whole_;
  PatchReport report_;
};

}  // namespace

Factors factorize(const linalg::Matrix& matrix, std::size_t rank) {
  const bool wide = matrix.rows() <= matrix.cols();
  const Eigen::Index n = std::min(matrix.rows(), matrix.cols());
  linalg::Matrix gram;
  wide ? linalg::multiply(matrix, linalg::Transpose::no, matrix, linalg::Transpose::yes, gram)
       : linalg::multiply(matrix, linalg::Transpose::yes, matrix, linalg::Transpose::no, gram);
  linalg::Eigensystem system = linalg::eigh(std::move(gram));
  const auto r = std::min<Eigen::Index>(static_cast<Eigen::Index>(rank), n);
  const linalg::Matrix vectors = system.vectors.rightCols(r).rowwise().reverse();
  Factors factors{.b = {}, .a = {}, .singular_values = system.values.reverse().cwiseMax(0).cwiseSqrt()};
  const linalg::Vector roots = factors.singular_values.head(r).cwiseSqrt();
  linalg::Vector inverse = roots;  // of a direction that is not there, nothing
  for (double& x : inverse) x = x > 0 ? 1 / x : 0;
  if (wide) {
    factors.b = vectors * roots.asDiagonal();
    linalg::multiply(vectors * inverse.asDiagonal(), linalg::Transpose::yes, matrix, linalg::Transpose::no,
                     factors.a);
  } else {
    linalg::multiply(matrix, linalg::Transpose::no, vectors * inverse.asDiagonal(), linalg::Transpose::no,
                     factors.b);
    factors.a = (vectors * roots.asDiagonal()).transpose();
  }
  return factors;
}

PatchReport write_patch(const MergePlan& plan, const fs::path& to, const PatchOptions& options,
                        ThreadPool& pool, const Progress& progress) {
  const Stopwatch watch;
  if (options.rank == 0) fail({.op = kOp, .what = "rank", .expected = "at least 1", .got = "0"});
  PatchReport report = PatchWriter(plan, options, pool, progress).run(to);
  report.seconds = watch.seconds();
  return report;
}

}  // namespace modicum::tune
