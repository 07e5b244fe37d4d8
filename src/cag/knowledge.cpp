// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include <modicum/base/error.hpp>
#include <modicum/cag/knowledge.hpp>

#include "../base/stopwatch.hpp"
#include "knowledge_state.hpp"
#include "reading.hpp"

namespace modicum::cag {
namespace {

void require_same(const std::filesystem::path& path, const std::string& what, const std::string& of_file,
                  const std::string& of_model) {
  if (of_file == of_model) return;
  fail<FingerprintMismatch>({.op = "cag.open",
                             .what = "'" + path.string() + "' belongs to another model: " + what,
                             .expected = of_model.empty() ? "none" : of_model,
                             .got = of_file.empty() ? "none" : of_file,
                             .todo = "open it with the model that built it, or build it again"});
}

void check_fingerprint(const std::filesystem::path& path, const Manifest& manifest, const Model& model) {
  // What is cheap to compare and telling comes first.
  require_same(path, "type", manifest.model_type, model.config().model_type);
  const KvShape shape = model.transformer().kv_shape();
  require_same(path, "layers", std::to_string(manifest.shape.layers), std::to_string(shape.layers));
  require_same(path, "width of keys", std::to_string(manifest.shape.width), std::to_string(shape.width));
  require_same(path, "key heads", std::to_string(manifest.kv_heads),
               std::to_string(model.config().num_key_value_heads));
  require_same(path, "hidden size", std::to_string(manifest.hidden_size),
               std::to_string(model.config().hidden_size));
  require_same(path, "dtype", manifest.fingerprint.dtype, std::string(name_of(shape.dtype)));
  const ModelFingerprint& own = model.fingerprint();
  require_same(path, "tokenizer", manifest.fingerprint.tokenizer, own.tokenizer);
  if (manifest.version >= 2) {
    require_same(path, "chat template", manifest.fingerprint.chat_template, own.chat_template);
    require_same(path, "applied adapter", manifest.fingerprint.adapter, own.adapter);
  }
  require_same(path, "weights (another fine-tune, a merged adapter, an edit)", manifest.fingerprint.weights,
               own.weights);
}

void check_tokens(const KnowledgeFile& file, const Model& model) {
  for (const TokenId id : file.token_ids()) {
    if (id < 0 || static_cast<std::size_t>(id) >= model.config().vocab_size) {
      fail<FormatError>({.op = "cag.open",
                         .what = "'" + file.path().string() + "': token id",
                         .expected = "0 to " + std::to_string(model.config().vocab_size - 1),
                         .got = std::to_string(id)});
    }
  }
}

}  // namespace

void Knowledge::State::verify() const {
  file.verify(model.transformer().pool());
  file.check_unchanged();
}

Trunk Knowledge::State::compose_path(std::vector<std::size_t> chosen) {
  const Manifest& manifest = file.manifest();
  const std::size_t rows = tree.rows_in_use();
  Trunk trunk{compose(model.transformer(), tree, file.token_ids(), manifest.segments, file.segments(), chosen,
                      manifest.recompute, file.hidden()),
              std::move(chosen)};
  trunk.computed = tree.rows_in_use() - rows;
  return trunk;
}

Trunk Knowledge::State::whole() {
  const std::lock_guard lock(mutex_);
  if (!whole_) {
    // No build writes such a file, but one whose model's context was cut since then looks like it.
    const std::size_t context = model.config().max_position_embeddings;
    if (file.manifest().tokens > context) {
      fail<ContextOverflow>({.op = "cag.ask",
                             .what = "documents",
                             .expected = "at most " + std::to_string(context) + " tokens",
                             .got = std::to_string(file.manifest().tokens),
                             .todo = "build it again with overflow = select"});
    }
    std::vector<std::size_t> all(file.manifest().segments.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    whole_ = compose_path(std::move(all));
    Trunk first = *whole_;
    whole_->computed = 0;  // those who come later find it done
    return first;
  }
  return *whole_;
}

Trunk Knowledge::State::selected(std::string_view question, std::size_t most, std::size_t room) {
  const std::lock_guard lock(mutex_);
  const auto& segments = file.manifest().segments;
  const std::size_t fixed = segments.front().document ? 0 : 1;
  if (!index_) {
    std::vector<std::string_view> texts;
    for (std::size_t i = fixed; i < segments.size(); ++i) {
      const std::size_t begin = file.token_bytes()[segments[i].token_begin];
      const std::size_t end =
          i + 1 < segments.size() ? file.token_bytes()[segments[i + 1].token_begin] : file.prompt().size();
      texts.push_back(file.prompt().substr(begin, std::max(begin, end) - begin));
    }
    index_.emplace(texts);
  }
  const std::size_t context = model.config().max_position_embeddings;
  std::size_t left = context - std::min(context, room);
  std::vector<std::size_t> chosen;
  if (fixed == 1) {
    chosen.push_back(0);
    left -= std::min(left, segments[0].tokens());
  }
  for (const auto& [index, score] : index_->rank(question, segments.size())) {
    const std::size_t i = index + fixed;
    if (most > 0 && chosen.size() == most + fixed) break;
    if (segments[i].tokens() > left) continue;
    left -= segments[i].tokens();
    chosen.push_back(i);
  }
  std::ranges::sort(chosen);
  if (chosen.size() == fixed) {
    // No word of the question stands anywhere: the first segments are as good as any.
    for (std::size_t i = fixed; i < segments.size() && segments[i].tokens() <= left; ++i) {
      if (most > 0 && chosen.size() == most + fixed) break;
      left -= segments[i].tokens();
      chosen.push_back(i);
    }
  }
  if (last_ && last_->chosen == chosen) {
    Trunk again = *last_;
    again.computed = 0;
    return again;
  }
  last_ = compose_path(std::move(chosen));
  return *last_;
}

Trunk Knowledge::State::trunk_for(std::string_view question, std::size_t most, std::size_t room) {
  const bool choose = file.manifest().select || (most > 0 && file.manifest().layout == Layout::blocks);
  if (most > 0 && file.manifest().layout == Layout::joint) {
    fail({.op = "cag.ask",
          .what = "most_segments",
          .expected = "a cache in blocks",
          .got = "a joint one, which is attended to as a whole",
          .todo = "build it with layout = blocks"});
  }
  return choose ? selected(question, most, room) : whole();
}

std::vector<std::string> Knowledge::State::names_of(const Trunk& trunk) const {
  std::vector<std::string> names;
  if (trunk.chosen.size() == file.manifest().segments.size()) return names;
  for (const std::size_t i : trunk.chosen) {
    const auto document = file.manifest().segments[i].document;
    if (!document) continue;
    const std::string& name = file.manifest().documents[*document].name;
    if (names.empty() || names.back() != name) names.push_back(name);
  }
  return names;
}

std::vector<TokenId> Knowledge::State::question_ids(std::string_view question) const {
  const Manifest& manifest = file.manifest();
  if (manifest.layout == Layout::blocks) {
    return cag::question_ids(model.tokenizer(), manifest.format, manifest.format.before_question, false, {},
                             question);
  }
  return cag::question_ids(model.tokenizer(), manifest.format, file.prompt().substr(manifest.resume_byte),
                           manifest.resume_token == 0,
                           std::span(file.token_ids()).subspan(manifest.resume_token), question);
}

Turn Knowledge::State::turn_of(std::string_view question, const AskOptions& options) {
  Turn turn{.trunk = {}, .from = {}, .ids = question_ids(question), .question = question};
  turn.trunk = trunk_for(question, options.most_segments, turn.ids.size() + options.max_new_tokens);
  turn.from = turn.trunk.branch;
  return turn;
}

std::vector<Answer> Knowledge::State::answers_to(std::span<const std::string_view> questions,
                                                 const AskOptions& options, const TokenCallback& callback) {
  const Stopwatch verify_watch;
  verify();
  const double verify_seconds = verify_watch.seconds();
  std::vector<Turn> turns;
  std::vector<double> compose_seconds;
  for (const std::string_view question : questions) {
    const Stopwatch compose_watch;
    turns.push_back(turn_of(question, options));
    compose_seconds.push_back(compose_watch.seconds());
  }
  std::vector<Answer> answers = answer_turns(model, file, tree, turns, options, callback).answers;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    answers[i].selected = names_of(turns[i].trunk);
    answers[i].cost.verify_seconds = verify_seconds;
    answers[i].cost.compose_seconds = compose_seconds[i];
  }
  file.check_unchanged();
  return answers;
}

Knowledge Knowledge::open(const std::filesystem::path& path, const Model& model) {
  KnowledgeFile file = KnowledgeFile::open(path);
  check_fingerprint(path, file.manifest(), model);
  check_tokens(file, model);
  return Knowledge(std::make_shared<State>(model, std::move(file)));
}

const KvTree& Knowledge::tree() const noexcept {
  return state_->tree;
}

const KnowledgeFile& Knowledge::file() const noexcept {
  return state_->file;
}

const Model& Knowledge::model() const noexcept {
  return state_->model;
}

std::vector<TokenId> Knowledge::question_ids(std::string_view question) const {
  return state_->question_ids(question);
}

Branch Knowledge::branch() const {
  if (file().manifest().select) {
    fail<Unsupported>({.op = "cag.branch",
                       .what = "'" + file().path().string() + "'",
                       .expected = "documents that fit into the context together",
                       .got = "a cache of which each question selects a part",
                       .todo = "use ask()"});
  }
  state_->verify();
  return state_->whole().branch;
}

Answer Knowledge::ask(std::string_view question, const AskOptions& options,
                      const TokenCallback& callback) const {
  return std::move(state_->answers_to({&question, 1}, options, callback).front());
}

std::vector<Answer> Knowledge::ask_many(std::span<const std::string> questions,
                                        const AskOptions& options) const {
  const std::vector<std::string_view> views(questions.begin(), questions.end());
  return state_->answers_to(views, options, {});
}

Session Knowledge::session() const {
  return Session(*this);
}

Session::Session(Knowledge knowledge) : knowledge_(std::move(knowledge)) {}
Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

Answer Session::ask(std::string_view question, const AskOptions& options, const TokenCallback& callback) {
  Knowledge::State& state = *knowledge_.state_;
  state.verify();
  const Manifest& manifest = knowledge_.file().manifest();
  Turn turn{.trunk = {}, .from = at_, .ids = {}, .question = question};
  if (turns_ == 0) {
    turn = state.turn_of(question, options);
  } else {
    turn.trunk = *trunk_;
    // What ended the last answer, or its last token where nothing did, has not been read yet.
    turn.ids = unread_;
    const std::vector<TokenId> own = cag::question_ids(knowledge_.model().tokenizer(), manifest.format,
                                                       manifest.format.after_answer, false, {}, question);
    turn.ids.insert(turn.ids.end(), own.begin(), own.end());
  }
  Answered done =
      answer_turns(knowledge_.model(), knowledge_.file(), knowledge_.tree(), {&turn, 1}, options, callback);
  knowledge_.file().check_unchanged();
  Answer& answer = done.answers.front();
  answer.selected = state.names_of(turn.trunk);
  at_ = done.ends.front();
  unread_.clear();
  if (answer.finish_reason != FinishReason::stop_token && !answer.ids.empty()) unread_ = {answer.ids.back()};
  trunk_ = std::make_unique<Trunk>(std::move(turn.trunk));
  trunk_->computed = 0;
  ++turns_;
  return std::move(answer);
}

void Session::reset() {
  at_ = Branch();
  unread_.clear();
  trunk_.reset();
  turns_ = 0;
}

std::size_t Session::size() const {
  return turns_ == 0 ? 0 : at_.size() + unread_.size();
}

}  // namespace modicum::cag
