// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <optional>
#include <string>

#include <modicum/search/all_of.hpp>
#include <modicum/search/beam.hpp>
#include <modicum/search/phrases.hpp>

#include "bindings.hpp"
#include "py_constraint.hpp"

namespace modicum::python {
namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

/// A Python function as a StepModel: `step(parents, tokens)` → [rows, vocabulary], where a parent is a row of
/// the call before. Holds the GIL throughout.
class CallbackModel {
 public:
  using State = std::size_t;  ///< a row of the last call

  CallbackModel(py::object step, std::size_t vocabulary) : step_(std::move(step)), vocabulary_(vocabulary) {}

  std::size_t vocabulary_size() const { return vocabulary_; }

  std::vector<State> step(std::span<const Step<State>> steps, std::span<float> scores) {
    const auto rows = static_cast<py::ssize_t>(steps.size());
    py::array_t<std::int64_t> parents(rows);
    py::array_t<std::int64_t> tokens(rows);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      parents.mutable_data()[i] = static_cast<std::int64_t>(steps[i].parent);
      tokens.mutable_data()[i] = steps[i].token;
    }
    const auto found = step_(parents, tokens).cast<FloatArray>();
    if (found.ndim() != 2 || found.shape(0) != rows ||
        static_cast<std::size_t>(found.shape(1)) != vocabulary_) {
      fail({.op = "beam",
            .what = "scores that step returned",
            .expected = "shape (" + std::to_string(rows) + ", " + std::to_string(vocabulary_) + ")",
            .got = py::repr(found.attr("shape")).cast<std::string>()});
    }
    std::copy_n(found.data(), found.size(), scores.data());
    std::vector<State> states(steps.size());
    for (std::size_t i = 0; i < states.size(); ++i) states[i] = i;
    return states;
  }

 private:
  py::object step_;
  std::size_t vocabulary_;
};

py::array_t<std::int64_t> node_column(const SearchTree& tree, auto value) {
  py::array_t<std::int64_t> column(static_cast<py::ssize_t>(tree.size()));
  for (std::size_t i = 0; i < tree.size(); ++i) column.mutable_data()[i] = value(tree.nodes()[i]);
  return column;
}

py::array_t<float> score_column(const SearchTree& tree, float SearchNode::* member) {
  std::vector<float> values;
  for (const SearchNode& node : tree.nodes()) values.push_back(node.*member);
  const auto size = static_cast<py::ssize_t>(values.size());
  return to_numpy(std::move(values), 1, static_cast<std::size_t>(size)).reshape({size});
}

/// What a search found, the model that it was found with left behind.
struct PyBeamResult {
  std::vector<Hypothesis> hypotheses;
  SearchTree tree;
  BeamStats stats;
  std::vector<PyBranch> states;
};

BeamHooks hooks_of(const Constraint* constraint, const Tokenizer* tokenizer, Progress progress,
                   const py::object& on_stable) {
  BeamHooks hooks{.constraint = constraint, .tokenizer = tokenizer, .progress = std::move(progress)};
  if (!on_stable.is_none()) {
    hooks.on_stable = [callback = py::handle(on_stable)](std::span<const TokenId> ids) {
      const py::gil_scoped_acquire gil;
      callback(Ids(ids.begin(), ids.end()));
    };
  }
  return hooks;
}

/// Reads the prompts in one pass. An empty one is refused where there is nothing before it.
std::vector<Branch> read_prompts(const PyBranch& from, const std::vector<Ids>& prompts,
                                 const BeamOptions& options, const Progress& progress) {
  std::vector<Extension> extensions;
  for (const Ids& prompt : prompts) {
    check_room(from.model, from.branch.size(), prompt.size(), options.max_new_tokens, "beam_search");
    if (!prompt.empty()) extensions.push_back({from.branch, prompt});
    if (prompt.empty() && from.branch.size() == 0) {
      fail({.op = "beam_search", .what = "prompt", .expected = "at least one token", .got = "none"});
    }
  }
  std::vector<Branch> read;
  if (!extensions.empty()) {
    read = from.model.transformer().extend(from.tree, extensions, nullptr, progress);
  }
  std::vector<Branch> leaves;
  auto next = read.begin();
  for (const Ids& prompt : prompts) leaves.push_back(prompt.empty() ? from.branch : std::move(*next++));
  return leaves;
}

std::vector<PyBeamResult> beam_from(const PyBranch& from, const std::vector<Ids>& prompts,
                                    const BeamOptions& options, const std::shared_ptr<Constraint>& constraint,
                                    const py::object& progress, const py::object& on_stable) {
  const bool needs_tokenizer =
      !options.stop.empty() || (constraint && !constraint->tokenizer_fingerprint().empty());
  const Tokenizer* tokenizer = needs_tokenizer ? &from.model.tokenizer() : nullptr;
  const BeamHooks hooks = hooks_of(constraint.get(), tokenizer, python_progress(progress), on_stable);
  const py::gil_scoped_release release;
  const std::size_t vocabulary = from.model.config().vocab_size;
  validate(options, hooks, vocabulary);
  std::vector<Branch> leaves = read_prompts(from, prompts, options, hooks.progress);
  std::vector<float> logits(leaves.size() * vocabulary);
  from.model.transformer().logits(leaves, logits);
  std::vector<Ids> seen;
  for (const Branch& leaf : leaves) seen.push_back(leaf.tokens());
  std::vector<BeamStart<Branch>> starts;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    starts.push_back({std::move(leaves[i]), std::span(logits).subspan(i * vocabulary, vocabulary), seen[i]});
  }
  TreeStepModel model(from.model.transformer(), from.tree);
  std::vector<PyBeamResult> results;
  for (auto& found : beam_many(model, std::move(starts), options, hooks)) {
    PyBeamResult result{std::move(found.hypotheses), std::move(found.tree), found.stats, {}};
    for (Branch& state : found.states) result.states.push_back({from.model, from.tree, std::move(state)});
    results.push_back(std::move(result));
  }
  return results;
}

PyBeamResult beam_over(const py::object& step, const FloatArray& start_scores, const Ids& prompt,
                       const BeamOptions& options, const std::shared_ptr<Constraint>& constraint,
                       const std::optional<Tokenizer>& tokenizer, const py::object& progress,
                       const py::object& on_stable) {
  const auto vocabulary = static_cast<std::size_t>(start_scores.size());
  const BeamHooks hooks =
      hooks_of(constraint.get(), tokenizer ? &*tokenizer : nullptr, python_progress(progress), on_stable);
  CallbackModel model(step, vocabulary);
  auto found = beam(model, 0, std::span(start_scores.data(), vocabulary), prompt, options, hooks);
  return {std::move(found.hypotheses), std::move(found.tree), found.stats, {}};
}

void bind_options(py::module_& m) {
  py::enum_<EarlyStopping>(m, "EarlyStopping")
      .value("no", EarlyStopping::no)
      .value("yes", EarlyStopping::yes)
      .value("never", EarlyStopping::never);
  py::enum_<BeamMode>(m, "BeamMode")
      .value("transformers", BeamMode::transformers)
      .value("native", BeamMode::native);
  py::enum_<ModelScores>(m, "ModelScores")
      .value("logits", ModelScores::logits)
      .value("log_probabilities", ModelScores::log_probabilities);
  py::enum_<WhenFull>(m, "WhenFull").value("fail", WhenFull::fail).value("narrow", WhenFull::narrow);
  py::class_<SequenceBias>(m, "SequenceBias")
      .def(py::init<std::vector<TokenId>, float>(), py::arg("ids"), py::arg("bias"));
  using O = BeamOptions;
  py::class_<O>(m, "BeamOptions", "Fields as modicum.search.beam takes them.")
      .def(py::init<>())
      .def_readwrite("beams", &O::beams)
      .def_readwrite("max_new_tokens", &O::max_new_tokens)
      .def_readwrite("min_new_tokens", &O::min_new_tokens)
      .def_readwrite("length_penalty", &O::length_penalty)
      .def_readwrite("early_stopping", &O::early_stopping)
      .def_readwrite("num_return", &O::num_return)
      .def_readwrite("stop_ids", &O::stop_ids)
      .def_readwrite("stop", &O::stop)
      .def_readwrite("repetition_penalty", &O::repetition_penalty)
      .def_readwrite("no_repeat_ngram_size", &O::no_repeat_ngram_size)
      .def_readwrite("bad_words", &O::bad_words)
      .def_readwrite("sequence_bias", &O::sequence_bias)
      .def_readwrite("forced_bos", &O::forced_bos)
      .def_readwrite("forced_eos", &O::forced_eos)
      .def_readwrite("suppress", &O::suppress)
      .def_readwrite("begin_suppress", &O::begin_suppress)
      .def_readwrite("groups", &O::groups)
      .def_readwrite("diversity_penalty", &O::diversity_penalty)
      .def_readwrite("mode", &O::mode)
      .def_readwrite("scores", &O::scores)
      .def_readwrite("when_full", &O::when_full)
      .def_readwrite("keep_states", &O::keep_states)
      .def(
          "set_sampling",
          [](O& self, double temperature, std::size_t top_k, double top_p, double min_p, std::uint64_t seed) {
            self.sampling = sampling_options(temperature, top_k, top_p, min_p, 1.0, seed);
          },
          py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
          py::arg("seed"));
}

void bind_results(py::module_& m) {
  py::class_<Hypothesis>(m, "BeamHypothesis")
      .def_readonly("ids", &Hypothesis::ids)
      .def_readonly("score", &Hypothesis::score)
      .def_readonly("log_probabilities", &Hypothesis::log_probabilities)
      .def_readonly("node", &Hypothesis::node)
      .def_property_readonly("finish_reason", [](const Hypothesis& h) { return name(h.finish_reason); });
  py::class_<BeamStats>(m, "BeamStats", "What a search took.")
      .def_readonly("steps", &BeamStats::steps, "Tokens of the longest beam.")
      .def_readonly("rows", &BeamStats::rows, "Tokens that the model read after the prompt.")
      .def_readonly("peak_tokens", &BeamStats::peak_tokens,
                    "The most that live beams held at once after the prompt, shared ones once.")
      .def_readonly("width", &BeamStats::width,
                    "Beams at the end: fewer than asked for where memory was short.");
  py::class_<PyBeamResult>(m, "BeamResult")
      .def_readonly("hypotheses", &PyBeamResult::hypotheses)
      .def_readonly("stats", &PyBeamResult::stats)
      .def_readonly("states", &PyBeamResult::states)
      .def_property_readonly("tokens",
                             [](const PyBeamResult& r) {
                               return node_column(r.tree, [](const SearchNode& n) { return n.token; });
                             })
      .def_property_readonly("parents",
                             [](const PyBeamResult& r) {
                               return node_column(r.tree, [](const SearchNode& n) { return n.parent; });
                             })
      .def_property_readonly("scores",
                             [](const PyBeamResult& r) { return score_column(r.tree, &SearchNode::score); })
      .def_property_readonly("log_probabilities", [](const PyBeamResult& r) {
        return score_column(r.tree, &SearchNode::log_probability);
      });
}

}  // namespace

void bind_search(py::module_& m) {
  py::class_<Constraint, std::shared_ptr<Constraint>>(
      m, "Constraint", "Which texts a search may write; made by modicum.search.")
      .def("__repr__", [](const Constraint&) { return "<modicum.search constraint>"; });
  py::class_<PyConstraint, Constraint, std::shared_ptr<PyConstraint>>(m, "PythonConstraint")
      .def(py::init<py::object>(), py::arg("automaton"));
  py::class_<Phrases, Constraint, std::shared_ptr<Phrases>>(m, "PhraseConstraint")
      .def(py::init([](const Model& model, std::vector<std::string> banned, std::vector<std::string> required,
                       bool ignore_case) {
             return std::make_shared<Phrases>(
                 model.tokenizer(), model.config().vocab_size,
                 PhraseOptions{std::move(banned), std::move(required), ignore_case});
           }),
           py::arg("model"), py::kw_only(), py::arg("banned"), py::arg("required"), py::arg("ignore_case"),
           py::call_guard<py::gil_scoped_release>());
  py::class_<AllOf, Constraint, std::shared_ptr<AllOf>>(m, "AllOf")
      .def(py::init([](const std::vector<std::shared_ptr<Constraint>>& parts) {
             return std::make_shared<AllOf>(
                 std::vector<std::shared_ptr<const Constraint>>(parts.begin(), parts.end()));
           }),
           py::arg("parts"));
  bind_options(m);
  bind_results(m);
  m.def("beam", &beam_from, py::arg("start"), py::arg("prompts"), py::arg("options"), py::kw_only(),
        py::arg("constraint"), py::arg("progress"), py::arg("on_stable"));
  m.def("beam_over", &beam_over, py::arg("step"), py::arg("start_scores"), py::arg("prompt"),
        py::arg("options"), py::kw_only(), py::arg("constraint"), py::arg("tokenizer"), py::arg("progress"),
        py::arg("on_stable"));
}

}  // namespace modicum::python
