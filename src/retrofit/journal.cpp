// SPDX-License-Identifier: Apache-2.0
#include "journal.hpp"

#include <cerrno>
#include <cstdio>
#include <map>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "retrofit";

Json error_json(const EditError& e) {
  return {{"layer", e.layer},
          {"edit", e.edit},
          {"module", e.module},
          {"before", e.before},
          {"after", e.after},
          {"held_out_before", e.held_out_before},
          {"held_out_after", e.held_out_after},
          {"damping", e.damping}};
}

EditError error_from(const Json& json) {
  return {.layer = json.at("layer").get<std::size_t>(),
          .edit = json.at("edit").get<std::string>(),
          .module = json.at("module").get<std::string>(),
          .before = json.at("before").get<double>(),
          .after = json.at("after").get<double>(),
          .held_out_before = json.at("held_out_before").get<double>(),
          .held_out_after = json.at("held_out_after").get<double>(),
          .damping = json.at("damping").get<double>()};
}

}  // namespace

Journal::Journal(const fs::path& to, const fs::path& work, const std::string& key) {
  const fs::path target = fs::absolute(to).lexically_normal();
  const fs::path clean = target.has_filename() ? target : target.parent_path();
  prefix_ = "." + clean.filename().string() + ".retrofit-";
  folder_ = (work.empty() ? clean.parent_path() : work) / (prefix_ + key);
  std::error_code code;
  fs::create_directories(folder_, code);
  if (code) {
    fail<IoError>({.op = kOp, .what = "making " + quote(folder_.string()) + ", failed: " + code.message()});
  }
  lock_ = ::open((folder_ / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_ < 0) {
    const int error = errno;
    fail<IoError>({.op = kOp,
                   .what = "opening " + quote((folder_ / "lock").string()) +
                           ", failed: " + std::generic_category().message(error)});
  }
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    fail({.op = kOp,
          .what = quote(clean.string()),
          .expected = "an output that nobody else writes",
          .got = "another process at work on it",
          .todo = "wait for that one"});
  }
}

Journal::~Journal() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path Journal::path_of(std::size_t step) const {
  char name[32];
  std::snprintf(name, sizeof name, "layer-%05zu", step);
  return folder_ / name;
}

std::optional<LayerRecord> Journal::find(std::size_t step) const {
  const fs::path path = path_of(step);
  fs::path json_path = path;
  json_path += ".json";
  if (!is_there(json_path)) return std::nullopt;
  try {
    const Json json = parse_json(read_text(json_path), kOp, json_path.string());
    LayerRecord record{.diverged = json.at("diverged").get<bool>()};
    for (const Json& error : json.at("errors")) record.errors.push_back(error_from(error));
    if (json.at("tensors").get<bool>()) {
      fs::path weights = path;
      weights += ".safetensors";
      record.file = SafetensorsFile::open(weights);
    }
    return record;
  } catch (const Json::exception&) {
    return std::nullopt;  // not ours: the layer is done again
  } catch (const Error&) {
    return std::nullopt;
  }
}

LayerRecord Journal::save(std::size_t step, std::vector<NewTensor> tensors, std::vector<EditError> errors,
                          bool diverged) {
  const fs::path path = path_of(step);
  if (!tensors.empty()) {
    fs::path weights = path;
    weights += ".safetensors";
    std::vector<TensorSpec> specs;
    for (const NewTensor& tensor : tensors) specs.push_back(tensor.spec);
    SafetensorsWriter writer(weights, specs, {}, 64);
    for (const NewTensor& tensor : tensors) writer.append(tensor.bytes);
    writer.commit();
  }
  Json list = Json::array();
  for (const EditError& error : errors) list.push_back(error_json(error));
  const std::string text =
      Json{{"tensors", !tensors.empty()}, {"diverged", diverged}, {"errors", std::move(list)}}.dump();
  fs::path json_path = path;
  json_path += ".json";
  AtomicFile file(json_path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
  std::optional<LayerRecord> saved = find(step);
  if (!saved) fail<IoError>({.op = kOp, .what = "reading back " + quote(json_path.string())});
  return std::move(*saved);
}

void Journal::finish() noexcept {
  std::error_code ignored;
  std::vector<fs::path> leftover;
  for (const auto& entry : fs::directory_iterator(folder_.parent_path(), ignored)) {
    if (!entry.path().filename().string().starts_with(prefix_)) continue;
    const int lock = ::open((entry.path() / "lock").c_str(), O_RDWR | O_CLOEXEC);
    // Ours, or one that no process holds.
    if (entry.path() == folder_ || (lock >= 0 && ::flock(lock, LOCK_EX | LOCK_NB) == 0)) {
      leftover.push_back(entry.path());
    }
    if (lock >= 0) ::close(lock);
  }
  for (const fs::path& folder : leftover) fs::remove_all(folder, ignored);
}

}  // namespace modicum::retrofit
