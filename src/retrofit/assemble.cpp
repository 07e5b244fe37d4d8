// SPDX-License-Identifier: Apache-2.0
#include "assemble.hpp"

#include <algorithm>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "../io/checkpoint_layout.hpp"
#include "../io/copy_files.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "retrofit.write";
constexpr std::size_t kCopyBytes = std::size_t{16} << 20;
constexpr std::uint64_t kAlignment = 64;

/// A tensor of the output and where its bytes are; without bytes, zeros.
struct Output {
  TensorSpec spec;
  std::span<const std::byte> bytes;
  std::uint64_t size = 0;
};

/// The module of a tensor: its name without the last part.
std::string module_of_tensor(const std::string& name) {
  return name.substr(0, name.rfind('.'));
}

class Assembly {
 public:
  Assembly(const Checkpoint& from, const Plan& plan, const std::map<std::size_t, LayerRecord>& records)
      : from_(from), plan_(plan) {
    for (const auto& [layer, record] : records) {
      if (record.file) {
        for (const auto& [name, info] : record.file->header().tensors) new_[name] = &*record.file;
      }
    }
    for (const std::string& name : stored_order(from)) take(name);
    for (const auto& [name, file] : new_) {
      if (!taken_.contains(name)) add(name, file->info(name), file->bytes(name));
    }
    for (TensorSpec& spec : zero_biases(from, plan)) add(std::move(spec), {});
    // Whatever begins a multiple of a cache line into the file stays aligned behind tensors of such sizes.
    std::stable_sort(outputs_.begin(), outputs_.end(), [](const Output& a, const Output& b) {
      return (a.size % kAlignment == 0) > (b.size % kAlignment == 0);
    });
  }

  const std::vector<Output>& outputs() const { return outputs_; }

 private:
  void add(TensorSpec spec, std::span<const std::byte> bytes) {
    std::uint64_t bits = safetensors_bits(spec.dtype);
    for (const std::uint64_t extent : spec.shape) bits *= extent;
    outputs_.push_back({std::move(spec), bytes, bits / 8});
  }

  void add(const std::string& name, const TensorInfo& info, std::span<const std::byte> bytes) {
    add({output_name(name, from_.config(), plan_), info.dtype, info.shape}, bytes);
  }

  /// A tensor of the source, or what replaces it: all new tensors of its module come where the first stood.
  void take(const std::string& name) {
    if (output_name(name, from_.config(), plan_).empty()) return;
    const std::string module = module_of_tensor(name);
    bool replaced = new_.contains(name);
    for (auto entry = new_.lower_bound(module + "."); entry != new_.end(); ++entry) {
      if (!entry->first.starts_with(module + ".") || module_of_tensor(entry->first) != module) break;
      // Packed integers or factors stand for the matrix; a new bias does not.
      replaced = replaced || (name.ends_with(".weight") && entry->first.starts_with(module + ".weight"));
      if (taken_.insert(entry->first).second) {
        add(entry->first, entry->second->info(entry->first), entry->second->bytes(entry->first));
      }
    }
    if (!replaced) add(name, from_.info(name), from_.bytes(name));
  }

  const Checkpoint& from_;
  const Plan& plan_;
  std::map<std::string, const SafetensorsFile*> new_;
  std::set<std::string> taken_;
  std::vector<Output> outputs_;
};

void append(CheckpointWriter& writer, const Output& output, std::uint64_t& done, std::uint64_t total,
            const Progress& progress) {
  static const std::vector<std::byte> zeros(kCopyBytes);
  for (std::uint64_t begin = 0; begin < output.size; begin += kCopyBytes) {
    const std::size_t count = std::min<std::uint64_t>(kCopyBytes, output.size - begin);
    report(progress, kOp, done, total);
    writer.append(output.bytes.empty() ? std::span(zeros).first(count) : output.bytes.subspan(begin, count));
    done += count;
  }
}

}  // namespace

std::uint64_t assemble(const Checkpoint& from, const fs::path& to, const Plan& plan,
                       const std::map<std::size_t, LayerRecord>& records, std::uint64_t shard_bytes,
                       const Progress& progress) {
  const Assembly assembly(from, plan, records);
  std::vector<TensorSpec> specs;
  std::uint64_t total = 0, done = 0;
  for (const Output& output : assembly.outputs()) {
    specs.push_back(output.spec);
    total += output.size;
  }
  CheckpointWriter writer(to, std::move(specs), shard_bytes != 0 ? shard_bytes : shard_bytes_of(from));
  for (const Output& output : assembly.outputs()) append(writer, output, done, total, progress);
  writer.commit();
  copy_other_files(from.directory(), to, kOp);
  write_text(to / "config.json", standard_config(from, plan));
  report(progress, kOp, total, total);
  return total;
}

}  // namespace modicum::retrofit
