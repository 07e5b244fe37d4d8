// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <vector>

#include <modicum/cag/citation.hpp>

namespace modicum::cag {
namespace {

/// Share of an answer's words that a line must hold where none holds all of it.
constexpr double kMostWords = 0.6;

struct Line {
  const KnownDocument* document = nullptr;
  std::size_t begin = 0;  ///< within the document
  std::size_t number = 0;
  std::string_view text;
  std::string_view heading;
  double attention = 0;
  double overlap = 0;  ///< with the question
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return c < 0x80 ? std::tolower(c) : c; });
  return out;
}

std::string_view trimmed(std::string_view text, std::string_view what = " \t\r\n") {
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

/// "## Fees" and "Fees:" are both called Fees.
std::string heading_text(std::string_view line) {
  line = trimmed(line, "# \t\r");
  if (line.ends_with(':')) line.remove_suffix(1);
  return std::string(line);
}

std::vector<Line> lines_of(std::string_view prompt, std::span<const KnownDocument> documents) {
  std::vector<Line> lines;
  for (const KnownDocument& document : documents) {
    const std::string_view text =
        prompt.substr(document.span.text_begin, document.span.text_end - document.span.text_begin);
    std::string_view heading;
    std::size_t number = 0;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = trimmed(text.substr(begin, end - begin), "\r");
      lines.push_back({&document, begin, ++number, line, heading});
      if (is_heading(line)) heading = line;
      begin = end + 1;
    }
  }
  return lines;
}

/// Gives each line its share of the attention that lies on lines.
void spread_attention(std::vector<Line>& lines, const TokenAttention& attention) {
  if (attention.mass.empty()) return;
  double all = 0;
  for (Line& line : lines) {
    const std::size_t begin = line.document->span.text_begin + line.begin;
    const auto first = std::ranges::lower_bound(attention.begins, begin);
    const auto last = std::ranges::lower_bound(attention.begins, begin + line.text.size());
    for (auto at = first; at < last; ++at) {
      line.attention +=
          static_cast<double>(attention.mass[static_cast<std::size_t>(at - attention.begins.begin())]);
    }
    all += line.attention;
  }
  for (Line& line : lines) line.attention /= all > 0 ? all : 1;
}

/// How much each line, its heading and its document's name share with the question: rare words count more.
void compare_with_question(std::vector<Line>& lines, std::string_view question) {
  std::map<std::string, double> weight;
  for (const std::string& word : words_of(question)) weight[word] = 1;
  for (const Line& line : lines) {
    for (const std::string& word : words_of(line.text)) {
      if (const auto at = weight.find(word); at != weight.end()) at->second += 1;
    }
  }
  const auto overlap = [&](std::string_view text) {
    double sum = 0;
    for (const std::string& word : words_of(text)) {
      if (const auto at = weight.find(word); at != weight.end()) sum += 1 / at->second;
    }
    return sum;
  };
  for (Line& line : lines) {
    line.overlap = overlap(line.text) + 0.5 * overlap(line.heading) + 0.5 * overlap(line.document->name);
  }
}

/// The most likely of some lines: what they share with the question and what the model looked at count alike.
const Line* likeliest(const std::vector<const Line*>& lines) {
  double overlap = 0, attention = 0;
  for (const Line* line : lines) {
    overlap = std::max(overlap, line->overlap);
    attention = std::max(attention, line->attention);
  }
  const auto score = [&](const Line* line) {
    return (overlap > 0 ? line->overlap / overlap : 0) + (attention > 0 ? line->attention / attention : 0);
  };
  const auto best = std::ranges::max_element(lines, {}, score);
  return best == lines.end() ? nullptr : *best;
}

Citation citation_of(const Line& line, bool literal) {
  const KnownDocument& document = *line.document;
  const auto page = std::ranges::upper_bound(document.pages, line.begin) - document.pages.begin();
  return {.document = document.name,
          .source = document.source,
          .heading = heading_text(line.heading),
          .page = static_cast<std::size_t>(page),
          .bytes = {line.begin, line.begin + line.text.size()},
          .converted = document.converted,
          .line = line.number,
          .quote = std::string(line.text),
          .literal = literal,
          .attention = line.attention};
}

/// What is compared with the lines: without white space around it and a final full stop.
std::string wanted_of(std::string_view answer) {
  std::string wanted = lower(trimmed(answer));
  if (wanted.ends_with('.')) wanted.pop_back();
  return wanted;
}

const Line* literal_line(const std::vector<Line>& lines, const std::string& wanted) {
  std::vector<const Line*> found;
  if (wanted.empty()) return nullptr;
  for (const Line& line : lines) {
    if (lower(line.text).find(wanted) != std::string::npos) found.push_back(&line);
  }
  return likeliest(found);
}

/// A line with most of the words, and among those with as many the likeliest.
const Line* worded_line(const std::vector<Line>& lines, const std::string& wanted) {
  const std::set<std::string> words = words_of(wanted);
  std::vector<const Line*> found;
  std::size_t most = 0;
  for (const Line& line : lines) {
    const std::set<std::string> own = words_of(line.text);
    const auto shared = static_cast<std::size_t>(
        std::ranges::count_if(words, [&](const std::string& word) { return own.contains(word); }));
    if (shared < 2 || static_cast<double>(shared) < kMostWords * static_cast<double>(words.size())) continue;
    if (shared > most) found.clear();
    most = std::max(most, shared);
    if (shared == most) found.push_back(&line);
  }
  return likeliest(found);
}

std::vector<std::string_view> sentences_of(std::string_view answer) {
  std::vector<std::string_view> sentences;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < answer.size(); ++i) {
    const bool stop = answer[i] == '\n' || ((answer[i] == '.' || answer[i] == ';') && i + 1 < answer.size() &&
                                            (answer[i + 1] == ' ' || answer[i + 1] == '\n'));
    if (!stop) continue;
    sentences.push_back(answer.substr(begin, i - begin));
    begin = i + 1;
  }
  sentences.push_back(answer.substr(std::min(begin, answer.size())));
  return sentences;
}

}  // namespace

std::vector<Citation> cite(std::string_view prompt, std::span<const KnownDocument> documents,
                           std::string_view question, std::string_view answer,
                           const TokenAttention& attention) {
  const std::string whole = wanted_of(answer);
  if (whole.empty()) return {};
  std::vector<Line> lines = lines_of(prompt, documents);
  spread_attention(lines, attention);
  compare_with_question(lines, question);
  if (const Line* line = literal_line(lines, whole)) return {citation_of(*line, true)};
  std::vector<Citation> citations;
  std::set<const Line*> cited;
  for (const std::string_view sentence : sentences_of(answer)) {
    const std::string wanted = wanted_of(sentence);
    const Line* literal = literal_line(lines, wanted);
    const Line* line = literal != nullptr ? literal : worded_line(lines, wanted);
    if (line != nullptr && cited.insert(line).second)
      citations.push_back(citation_of(*line, literal != nullptr));
  }
  return citations;
}

}  // namespace modicum::cag
