// SPDX-License-Identifier: Apache-2.0
#include "write_tensor.hpp"

#include <cstdint>
#include <vector>

#include "tally.hpp"

namespace modicum::tune {
namespace {

/// What a run of tiles becomes before it is written at once.
struct RunBytes {
  std::uint64_t offset = 0;
  std::vector<std::byte> bytes;
};

}  // namespace

MergedKind write_tensor(Merger& merger, const TensorSpec& spec, const CheckpointDraft& draft,
                        std::size_t index) {
  const CheckpointReader reader = merger.open(spec);
  const DType dtype = dtype_of(spec);
  std::vector<RunBytes> runs(Merger::runs(reader));
  std::vector<MergedKind> parts(reader.tiles());
  merger.merge(reader, spec, [&](std::size_t run, const Tile& tile, const std::vector<float>& values) {
    auto& [offset, bytes] = runs[run];
    if (bytes.empty()) {
      offset = tile.first * size_of(dtype);
      bytes.reserve(Merger::kTilesARun * tile.count * size_of(dtype));
    }
    const std::size_t at = bytes.size();
    bytes.resize(at + tile.count * size_of(dtype));
    parts[tile.index] =
        store_values(values.data(), tile.onto, tile.count, dtype, bytes.data() + at, spec.name);
    if ((tile.index + 1) % Merger::kTilesARun != 0 && tile.index + 1 != reader.tiles()) return;
    draft.write(index, offset, bytes);
    bytes = std::vector<std::byte>();  // with {} it would keep its memory, a whole tensor's in the end
  });
  MergedKind sum;  // in the order of the tiles
  for (const MergedKind& part : parts) sum.add(part);
  return sum;
}

}  // namespace modicum::tune
