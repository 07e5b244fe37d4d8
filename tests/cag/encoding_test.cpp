// SPDX-License-Identifier: Apache-2.0
#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;

TEST_CASE("a cache of codes is smaller, says what it loses, and checks itself against the model") {
  const Desk desk;
  desk.folder.write("documents/more.md", std::string(150, 'm') + "\n" + std::string(60, 'n') + "\n");
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Model model = Model::load(desk.folder / "model", {.dtype = dtype, .threads = 2});
    const auto wide = desk.build(model, "wide.kv");
    std::uint64_t before = wide.file().bytes();
    for (const auto encoding : {cag::KvEncoding::int8, cag::KvEncoding::int4}) {
      const auto coded = desk.build(model, "coded.kv", {.kv = encoding});
      const auto& manifest = coded.file().manifest();
      REQUIRE(manifest.encoding == encoding);
      REQUIRE(manifest.wide_tokens() == 16);
      REQUIRE(coded.file().bytes() < before);
      before = coded.file().bytes();
      REQUIRE(manifest.certificate.measurements.size() == 1);
      REQUIRE(manifest.certificate.measurements[0].what == cag::name_of(encoding));
      REQUIRE(manifest.certificate.measurements[0].kl > 0);
      REQUIRE(manifest.certificate.tokens > 0);
      REQUIRE(coded.branch().size() == wide.branch().size());
      const auto check = cag::verify_deep(model, desk.folder / "coded.kv");
      REQUIRE(check.positions > 0);
      REQUIRE(check.difference > 0);
    }
    REQUIRE(cag::verify_deep(model, desk.folder / "wide.kv").difference == 0);
  }
}

TEST_CASE("int8 loses less than int4, and the automatic choice keeps to its bound") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto kl = [&](cag::KvEncoding encoding) {
    return desk.build(model, "a.kv", {.kv = encoding}).file().manifest().certificate.measurements[0].kl;
  };
  const double of_int8 = kl(cag::KvEncoding::int8), of_int4 = kl(cag::KvEncoding::int4);
  REQUIRE(of_int8 < of_int4);
  const auto chosen = [&](double bound) {
    return desk.build(model, "a.kv", {.kv = std::nullopt, .max_kl = bound}).file().manifest().encoding;
  };
  REQUIRE(chosen(of_int4 * 2) == cag::KvEncoding::int4);
  REQUIRE(chosen((of_int4 + of_int8) / 2) == cag::KvEncoding::int8);
  REQUIRE(chosen(0) == cag::KvEncoding::wide);
}

TEST_CASE("keys and values that were computed elsewhere make the same cache") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto built = desk.build(model);
  const auto documents = cag::documents_of(built.file());
  const auto adopted = cag::adopt(model, documents, desk.folder / "b.kv", built.file().segments()[0]);
  REQUIRE(desk.folder.read("a.kv") == desk.folder.read("b.kv"));
  auto shorter = std::make_shared<KvSegment>(*built.file().segments()[0]);
  --shorter->rows;
  REQUIRE_THROWS_AS(cag::adopt(model, documents, desk.folder / "b.kv", shorter), InvalidArgument);
}

TEST_CASE("a deep check finds keys that are not the model's, with checksums that agree") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto built = desk.build(model);
  auto forged = std::make_shared<KvSegment>(*built.file().segments()[0]);
  const std::size_t bytes = forged->layer_stride * 2;
  std::vector<std::byte> keys(forged->k, forged->k + bytes);
  for (std::size_t i = 0; i < bytes / sizeof(float); ++i) {
    float value;
    std::memcpy(&value, &keys[i * sizeof(float)], sizeof value);
    value = -value;
    std::memcpy(&keys[i * sizeof(float)], &value, sizeof value);
  }
  forged->k = keys.data();
  cag::adopt(model, cag::documents_of(built.file()), desk.folder / "b.kv", forged);
  REQUIRE_THROWS_AS(cag::verify_deep(model, desk.folder / "b.kv"), Corrupt);
}

TEST_CASE("a plan tells what a build takes before anything is written") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const std::vector<std::filesystem::path> sources{desk.folder / "documents"};
  const auto documents = cag::read_documents(sources);
  const auto plan = cag::plan(model, documents);
  const auto built = desk.build(model);
  REQUIRE(plan.tokens == built.size());
  REQUIRE(plan.fits);
  REQUIRE(plan.documents[0].name == "fees.md");
  REQUIRE(plan.documents[0].tokens == kFees.size());
  REQUIRE(plan.wide_bytes > plan.int8_bytes);
  REQUIRE(plan.int8_bytes > plan.int4_bytes);
  REQUIRE(plan.seconds > 0);
  REQUIRE(static_cast<double>(plan.wide_bytes) > 0.7 * static_cast<double>(built.file().bytes() - 12288));
}
