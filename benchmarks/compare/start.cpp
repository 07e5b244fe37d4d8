// SPDX-License-Identifier: Apache-2.0
// Seconds from starting a process to its first token, on a prompt of 8 tokens, as an application that links
// modicum has them:  modicum_bench_start MODEL [RUNS]
//
// The program starts itself RUNS times (21 without it) after one run that warms the page cache, and prints
// the medians: until the child has its first token, the parts of that which the child can see, its processor
// time (which other programs disturb less), and the memory that nobody shares (anonymous pages) without keys
// and values. The tokenizer is loaded where MODEL has one.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <modicum/modicum.hpp>

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kPromptTokens = 8;
constexpr const char* kPrompt = "When may I carry the rest of this year's leave over into the next?";

/// What one child reports; seconds, and bytes.
struct Report {
  double load = 0;
  double tokenizer = 0;
  double first_token = 0;
  double exec = 0;   ///< from the parent's fork to main
  double total = 0;  ///< from the parent's fork to the first token
  double memory = 0;
  double cpu = 0;  ///< of all threads, until the process is gone
};

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double anonymous_bytes() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("Anonymous:")) return 1024 * std::stod(line.substr(std::strlen("Anonymous:")));
  }
  return 0;
}

std::vector<modicum::TokenId> prompt_of(const modicum::Model& model, bool has_tokenizer) {
  std::vector<modicum::TokenId> ids;
  if (has_tokenizer) ids = model.tokenizer().encode(kPrompt).ids;
  for (modicum::TokenId id = 3; ids.size() < kPromptTokens; ++id) ids.push_back(id);
  ids.resize(kPromptTokens);
  return ids;
}

/// The steady clock is the system's, so the parent's reading means the same here.
Report first_token(const std::string& directory, Clock::time_point started) {
  Report report{.exec = since(started)};
  auto begin = Clock::now();
  const auto model = modicum::Model::load(directory);
  report.load = since(begin);

  begin = Clock::now();
  const bool has_tokenizer = std::ifstream(directory + "/tokenizer.json").good();
  const auto ids = prompt_of(model, has_tokenizer);
  report.tokenizer = since(begin);

  begin = Clock::now();
  const auto tree = model.transformer().tree();
  const modicum::Extension prompt{tree.root(), ids};
  const auto leaves = model.transformer().extend(tree, {&prompt, 1});
  std::vector<float> logits(model.config().vocab_size);
  model.transformer().logits(leaves, logits);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  const auto id = static_cast<modicum::TokenId>(best);
  if (has_tokenizer && static_cast<std::size_t>(id) < model.tokenizer().vocabulary_size()) {
    static_cast<void>(model.tokenizer().decode({&id, 1}));
  }
  report.first_token = since(begin);
  report.total = since(started);
  const std::size_t kv = ids.size() * model.transformer().kv_shape().token_bytes();
  report.memory = anonymous_bytes() - static_cast<double>(kv);
  return report;
}

Report run_child(const char* directory) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) throw std::runtime_error("pipe failed");
  const auto started = std::to_string(Clock::now().time_since_epoch().count());
  const auto out = std::to_string(ends[1]);
  const pid_t child = fork();
  if (child == 0) {
    execl("/proc/self/exe", "start", "--child", directory, started.c_str(), out.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  Report report;
  const bool whole = read(ends[0], &report, sizeof report) == static_cast<ssize_t>(sizeof report);
  close(ends[0]);
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  for (const timeval& part : {usage.ru_utime, usage.ru_stime}) {
    report.cpu += static_cast<double>(part.tv_sec) + 1e-6 * static_cast<double>(part.tv_usec);
  }
  if (child < 0 || !whole || status != 0) throw std::runtime_error("the child failed");
  return report;
}

double median(const std::vector<Report>& reports, double Report::* part) {
  std::vector<double> values;
  for (const Report& report : reports) values.push_back(report.*part);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int run_parent(const char* directory, int runs) {
  run_child(directory);
  std::vector<Report> reports;
  for (int i = 0; i < runs; ++i) reports.push_back(run_child(directory));
  const auto milliseconds = [&](double Report::* part) { return 1e3 * median(reports, part); };
  std::printf("start to first token  %.1f ms (median of %d)\n", milliseconds(&Report::total), runs);
  std::printf("  fork, exec, link    %.1f ms\n", milliseconds(&Report::exec));
  std::printf("  load                %.1f ms\n", milliseconds(&Report::load));
  std::printf("  tokenizer, prompt   %.1f ms\n", milliseconds(&Report::tokenizer));
  std::printf("  %zu tokens, logits    %.1f ms\n", kPromptTokens, milliseconds(&Report::first_token));
  std::printf("processor time        %.1f ms of all threads\n", milliseconds(&Report::cpu));
  std::printf("private memory        %.1f MB beside keys and values\n",
              median(reports, &Report::memory) / 1e6);
  return 0;
}

int run_as_child(char** arguments) {
  const Clock::time_point started{Clock::duration{std::atoll(arguments[3])}};
  const Report report = first_token(arguments[2], started);
  const int out = std::atoi(arguments[4]);
  return write(out, &report, sizeof report) == static_cast<ssize_t>(sizeof report) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 5 && std::strcmp(argv[1], "--child") == 0) return run_as_child(argv);
    const int runs = argc == 3 ? std::atoi(argv[2]) : 21;
    if ((argc == 2 || argc == 3) && runs > 0) return run_parent(argv[1], runs);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: modicum_bench_start MODEL [RUNS]\n");
  return 2;
}
