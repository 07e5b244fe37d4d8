// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>

#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/hash.hpp>
#include <modicum/io/checkpoint.hpp>

#include "io/checkpoint_fixture.hpp"
#include "support/catch.hpp"

using namespace modicum;
namespace fs = std::filesystem;

namespace {

/// Sets a variable of the environment, and puts back what was there.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ~Variable() {
    if (old_) {
      ::setenv(name_, old_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> old_;
};

std::string computed(const TemporaryDirectory& model) {
  return Checkpoint::open(model.path()).fingerprint();
}

std::string remembered(const TemporaryDirectory& model) {
  return Checkpoint::open(model.path()).fingerprint(nullptr, {}, Rehash::when_changed);
}

/// One of some models that were written long enough ago to count as settled: they wait together, once.
const TemporaryDirectory& settled_model() {
  static const std::array<TemporaryDirectory, 8> models;
  static std::size_t next = 0;
  if (next == 0) {
    for (const TemporaryDirectory& model : models) write_sharded(model);
    std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  }
  return models.at(next++);
}

/// A settled model and an empty cache.
struct Settled {
  std::string entry() const { return (cache / "c").string() + "/" + entry_name(); }
  std::string entry_name() const {
    REQUIRE(std::distance(fs::directory_iterator(cache / "c"), fs::directory_iterator()) == 1);
    return fs::directory_iterator(cache / "c")->path().filename().string();
  }
  std::string text() const { return cache.read("c/" + entry_name()); }
  void replace(const std::string& text) const { cache.write("c/" + entry_name(), text); }

  const TemporaryDirectory& model = settled_model();
  TemporaryDirectory cache;
  Variable variable{"MODICUM_CACHE_DIR", (cache / "c").string()};
};

constexpr std::string_view kForged = "0123456789abcdef0123456789abcdef";

/// The entry with another digest and a seal that fits.
std::string forged(const std::string& entry, const std::string& digest) {
  const std::size_t key_begin = entry.find("\"key\":\"") + 7;
  std::string key;
  for (std::size_t i = key_begin; entry[i] != '"'; ++i) {
    if (entry[i] == '\\') ++i;
    key += entry[i];
  }
  std::string result = entry;
  result.replace(result.find(digest), digest.size(), kForged);
  const std::size_t seal = result.find("\"seal\":\"") + 8;
  return result.replace(seal, 32, hash128_hex(std::string(kForged) + "\n" + key));
}

}  // namespace

TEST_CASE("a fingerprint is remembered, in files that are nobody else's") {
  const Settled folder;
  const std::string digest = computed(folder.model);
  CHECK(fs::is_empty(folder.cache.path()));
  CHECK(remembered(folder.model) == digest);
  struct stat status{};
  REQUIRE(::stat((folder.cache / "c").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  REQUIRE(::stat(folder.entry().c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  // What is not read again cannot be told from what is kept.
  folder.replace(forged(folder.text(), digest));
  CHECK(remembered(folder.model) == kForged);
  CHECK(computed(folder.model) == digest);
}

TEST_CASE(
    "weights that were written to are read again, also where size and time of modification are put back") {
  const Settled folder;
  const std::string before = remembered(folder.model);
  const fs::path path = folder.model / "two.safetensors";
  const auto time = fs::last_write_time(path);
  const auto size = fs::file_size(path);
  const std::string weights = folder.model.read("two.safetensors");
  folder.model.write("two.safetensors", weights.substr(0, weights.size() - 1) + "e");
  fs::last_write_time(path, time);
  REQUIRE(fs::file_size(path) == size);
  CHECK(remembered(folder.model) == computed(folder.model));
  CHECK(remembered(folder.model) != before);
}

TEST_CASE("other tensors or another configuration of the same files are another model") {
  const Settled folder;
  const std::string before = remembered(folder.model);
  folder.model.write("model.safetensors.index.json", R"({"weight_map":{"b":"two.safetensors"}})");
  const std::string fewer = remembered(folder.model);
  CHECK(fewer == computed(folder.model));
  CHECK(fewer != before);
  write_sharded(folder.model);
  std::string config(kConfig);
  folder.model.write("config.json", config.replace(config.size() - 1, 1, R"(,"rope_theta":7})"));
  CHECK(remembered(folder.model) == computed(folder.model));
  CHECK(remembered(folder.model) != before);
}

TEST_CASE("nothing is remembered of files that changed a moment ago") {
  const TemporaryDirectory model, cache;
  write_single(model);
  const Variable variable("MODICUM_CACHE_DIR", cache.path().string());
  CHECK(remembered(model) == computed(model));
  CHECK(cache.names().empty());
}

TEST_CASE("nothing is remembered of a file that its path no longer leads to") {
  const Settled folder;
  const Checkpoint checkpoint = Checkpoint::open(folder.model.path());
  const std::string weights = folder.model.read("one.safetensors");
  fs::rename(folder.model.write("new", weights.substr(0, weights.size() - 1) + "z"),
             folder.model / "one.safetensors");
  CHECK(checkpoint.fingerprint(nullptr, {}, Rehash::when_changed) == checkpoint.fingerprint());
  CHECK(fs::is_empty(folder.cache.path()));
}

TEST_CASE("entries that are broken, not ours alone, or no files are ignored and replaced") {
  const Settled folder;
  const std::string digest = remembered(folder.model);
  const std::string good = folder.text();
  const std::string lie = forged(good, digest);
  std::string flipped = lie;
  flipped[flipped.find(kForged)] = '1';
  std::string foreign = lie;
  foreign.replace(foreign.find("two.safetensors"), 3, "too");
  for (const std::string& text :
       {std::string(), std::string("garbage"), std::string("{}"), std::string("[1]"),
        std::string(R"({"schema":1,"key":null})"), good.substr(0, good.size() / 2), flipped, foreign,
        std::string(3 << 20, ' '), std::string("\0\xff\xfe", 3)}) {
    INFO(text.substr(0, 200));
    folder.replace(text);
    CHECK(remembered(folder.model) == digest);
    CHECK(folder.text() == good);
  }
  folder.replace(lie);
  fs::permissions(folder.entry(), fs::perms::group_write, fs::perm_options::add);
  CHECK(remembered(folder.model) == digest);
  const std::string entry = folder.entry();
  fs::remove(entry);
  fs::create_symlink(folder.cache.write("elsewhere", lie), entry);
  CHECK(remembered(folder.model) == digest);
  CHECK(folder.text() == good);
  fs::remove(entry);
  fs::create_directory(entry);
  CHECK(remembered(folder.model) == digest);
}

TEST_CASE("where nothing can be kept, the weights are read each time") {
  const Settled folder;
  const std::string digest = computed(folder.model);
  folder.cache.write("file", "");
  for (const std::string& path : {(folder.cache / "file").string(), (folder.cache / "file" / "c").string(),
                                  std::string("/proc/self/none"), std::string("/proc/self/none/c")}) {
    INFO(path);
    const Variable variable("MODICUM_CACHE_DIR", path);
    CHECK(remembered(folder.model) == digest);
    CHECK(remembered(folder.model) == digest);
  }
  fs::create_directory(folder.cache / "closed");
  fs::permissions(folder.cache / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  {
    const Variable variable("MODICUM_CACHE_DIR", (folder.cache / "closed").string());
    CHECK(remembered(folder.model) == digest);
    // The superuser may write everywhere.
    CHECK((::geteuid() == 0 || fs::is_empty(folder.cache / "closed")));
  }
  fs::permissions(folder.cache / "closed", fs::perms::owner_all);
}

TEST_CASE("the cache folder is that of the environment, and empty switches it off") {
  const Settled folder;
  const Variable home("HOME", (folder.cache / "home").string());
  {
    const Variable caches("XDG_CACHE_HOME", (folder.cache / "xdg").string());
    const Variable off("MODICUM_CACHE_DIR", "");
    remembered(folder.model);
    CHECK(fs::is_empty(folder.cache.path()));
    ::unsetenv("MODICUM_CACHE_DIR");
    remembered(folder.model);
    CHECK(folder.cache.names() == std::vector<std::string>{"xdg"});
    CHECK_FALSE(fs::is_empty(folder.cache / "xdg" / "modicum"));
    ::setenv("XDG_CACHE_HOME", "relative/paths/do/not/count", 1);
    remembered(folder.model);
    CHECK_FALSE(fs::is_empty(folder.cache / "home" / ".cache" / "modicum"));
  }
}
