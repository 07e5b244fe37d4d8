// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <vector>

#include <modicum/cag/citation.hpp>

namespace modicum::cag {
namespace {

struct Line {
  const KnownDocument* document = nullptr;
  std::size_t begin = 0;  ///< within the document
  std::size_t number = 0;
  std::string_view text;
  std::string_view heading;
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return c < 0x80 ? std::tolower(c) : c; });
  return out;
}

std::string_view trimmed(std::string_view text, std::string_view what) {
  const std::size_t first = text.find_first_not_of(what);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(what) - first + 1);
}

/// Lower-case runs of letters, digits and bytes beyond ASCII.
std::set<std::string> words_of(std::string_view text) {
  std::set<std::string> words;
  std::string word;
  for (const char c : lower(text) + " ") {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || std::isalnum(byte)) {
      word += c;
    } else if (!word.empty()) {
      words.insert(std::exchange(word, {}));
    }
  }
  return words;
}

bool is_heading(std::string_view line) {
  return line.starts_with('#') || (line.ends_with(':') && line.size() < 80);
}

std::vector<Line> lines_of(std::string_view prompt, std::span<const KnownDocument> documents) {
  std::vector<Line> lines;
  for (const KnownDocument& document : documents) {
    const std::string_view text =
        prompt.substr(document.span.text_begin, document.span.text_end - document.span.text_begin);
    std::string_view heading;
    std::size_t number = 0;
    for (std::size_t begin = 0; begin < text.size();) {
      std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = trimmed(text.substr(begin, end - begin), "\r");
      lines.push_back({&document, begin, ++number, line, heading});
      if (is_heading(line)) heading = line;
      begin = end + 1;
    }
  }
  return lines;
}

double overlap(const std::set<std::string>& question, std::string_view text,
               const std::map<std::string, double>& weight) {
  double sum = 0;
  for (const std::string& word : words_of(text)) {
    if (question.contains(word)) sum += weight.at(word);
  }
  return sum;
}

}  // namespace

std::optional<Citation> cite(std::string_view prompt, std::span<const KnownDocument> documents,
                             std::string_view question, std::string_view answer) {
  std::string wanted = lower(trimmed(answer, " \t\r\n"));
  if (wanted.ends_with('.')) wanted.pop_back();
  if (wanted.empty()) return std::nullopt;
  const std::vector<Line> lines = lines_of(prompt, documents);
  const std::set<std::string> asked = words_of(question);
  std::map<std::string, double> weight;
  for (const std::string& word : asked) weight[word] = 1;
  for (const Line& line : lines) {
    for (const std::string& word : words_of(line.text)) {
      if (const auto at = weight.find(word); at != weight.end()) at->second += 1;
    }
  }
  for (auto& [word, count] : weight) count = 1.0 / count;

  const Line* best = nullptr;
  double most = -1;
  for (const Line& line : lines) {
    if (lower(line.text).find(wanted) == std::string::npos) continue;
    const double score = overlap(asked, line.text, weight) + 0.5 * overlap(asked, line.heading, weight) +
                         0.5 * overlap(asked, line.document->name, weight);
    if (score > most) {
      most = score;
      best = &line;
    }
  }
  if (best == nullptr) return std::nullopt;
  return Citation{.document = best->document->name,
                  .source = best->document->source,
                  .bytes = {best->begin, best->begin + best->text.size()},
                  .line = best->number,
                  .quote = std::string(best->text)};
}

}  // namespace modicum::cag
