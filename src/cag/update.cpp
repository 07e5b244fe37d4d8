// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include <modicum/base/error.hpp>
#include <modicum/cag/build.hpp>

#include "../base/quote.hpp"
#include "draft.hpp"
#include "measure.hpp"

namespace modicum::cag {
namespace {

void check_removed(std::span<const Document> documents, std::span<const std::string> remove) {
  for (const std::string& name : remove) {
    if (std::ranges::find(documents, name, &Document::name) != documents.end()) continue;
    std::string names;
    for (std::size_t i = 0; i < documents.size() && i < 20; ++i)
      names += (i == 0 ? "" : ", ") + documents[i].name;
    fail({.op = "cag.remove", .what = "document", .expected = "one of " + names, .got = quote(name)});
  }
}

void check_new(std::span<const Document> documents, std::span<const Document> put) {
  std::string known;
  for (const Document& document : put) {
    if (std::ranges::find(documents, document.name, &Document::name) == documents.end()) continue;
    known += (known.empty() ? "" : ", ") + quote(document.name);
  }
  if (known.empty()) return;
  fail({.op = "cag.add",
        .what = "documents",
        .expected = "new names",
        .got = known,
        .todo = "replace them with update"});
}

/// In anything that the file keeps: a citation names the source and the page, too.
bool differs(const Document& a, const Document& b) {
  return a.text != b.text || a.source != b.source || a.pages != b.pages || a.converted != b.converted ||
         a.changes_often != b.changes_often;
}

/// The documents after the change.
std::vector<Document> changed(std::vector<Document> documents, std::span<const Document> put,
                              std::span<const std::string> remove, Expected expected, Changes& changes) {
  const std::set<std::string> removed(remove.begin(), remove.end());
  std::erase_if(documents, [&](const Document& d) { return removed.contains(d.name); });
  changes.removed.assign(removed.begin(), removed.end());
  for (const Document& document : put) {
    const auto at = std::ranges::find(documents, document.name, &Document::name);
    if (at == documents.end() && expected == Expected::known_names) continue;
    if (at == documents.end()) {
      documents.push_back(document);
      changes.added.push_back(document.name);
    } else if (differs(*at, document)) {
      *at = document;
      changes.replaced.push_back(document.name);
    }
  }
  for (const Document& document : documents) {
    const auto listed = [&](const std::vector<std::string>& names) {
      return std::ranges::find(names, document.name) != names.end();
    };
    if (!listed(changes.added) && !listed(changes.replaced)) changes.unchanged.push_back(document.name);
  }
  return documents;
}

/// Writes a knowledge file of `documents` in the place of `old`, in its layout and encoding, taking over what
/// `old` has read.
Changes write_update(const Model& model, const std::filesystem::path& path, const KnowledgeFile& old,
                     std::vector<Document> documents, const Progress& progress) {
  Manifest manifest = old.manifest();
  manifest.version = kFormatVersion;
  manifest.fingerprint = model.fingerprint();
  Draft draft = make_draft(model, std::move(documents), std::move(manifest));
  check_possible(model, draft, path);
  const KvTree tree = model.transformer().tree();
  const Reading reading =
      read_prompt(model.transformer(), tree, draft.prompt, draft.manifest.layout, &old, nullptr, progress);
  // In blocks, measuring would read everything again: new segments take the encoding of those that were kept,
  // and the certificate of the build stands.
  const bool keep = draft.manifest.layout == Layout::blocks;
  write_draft(
      path, draft,
      keep ? encode(reading, draft.manifest, draft.manifest.encoding) : certify(model, tree, draft, reading),
      old.identity());
  return {.computed_tokens = reading.computed, .tokens = draft.prompt.ids.size()};
}

}  // namespace

std::vector<Document> documents_of(const KnowledgeFile& file) {
  std::vector<Document> documents;
  for (std::size_t i = 0; i < file.manifest().documents.size(); ++i) {
    const KnownDocument& known = file.manifest().documents[i];
    documents.push_back({known.name, known.source, std::string(file.document_text(i)), known.pages,
                         known.converted, known.changes_often});
  }
  return documents;
}

Changes update(const Model& model, const std::filesystem::path& path, std::span<const Document> put,
               std::span<const std::string> remove, const Progress& progress, Expected expected) {
  if (!put.empty()) check_documents(put);
  const Knowledge knowledge = Knowledge::open(path, model);
  const KnowledgeFile& old = knowledge.file();
  old.verify(model.transformer().pool());
  Changes changes;
  std::vector<Document> before = documents_of(old);
  check_removed(before, remove);
  if (expected == Expected::new_names) check_new(before, put);
  std::vector<Document> after = changed(std::move(before), put, remove, expected, changes);
  changes.tokens = old.manifest().tokens;
  if (changes.added.empty() && changes.replaced.empty() && changes.removed.empty()) return changes;
  check_documents(after);
  const Changes written = write_update(model, path, old, std::move(after), progress);
  changes.computed_tokens = written.computed_tokens;
  changes.tokens = written.tokens;
  return changes;
}

}  // namespace modicum::cag
