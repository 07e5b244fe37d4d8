// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <utility>

#include "bindings.hpp"

namespace modicum::python {
namespace {

constexpr std::string_view kOp = "lexicon.build";
constexpr std::size_t kChunk = 4096;  // texts between two looks at signals and the progress callback

/// len(items), or 0 where it cannot tell (a generator).
std::uint64_t known_length(const py::iterable& items) {
  const Py_ssize_t length = PyObject_LengthHint(items.ptr(), 0);
  if (length < 0) throw py::error_already_set();
  return static_cast<std::uint64_t>(length);
}

std::string text_of(const py::handle& item, std::size_t position) {
  const auto name = [&] { return "text " + std::to_string(position); };
  if (!PyUnicode_Check(item.ptr())) {
    fail({.op = kOp,
          .what = name(),
          .expected = "a str",
          .got = py::str(py::type::of(item)).cast<std::string>()});
  }
  Py_ssize_t size = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
  if (utf8 == nullptr) {
    PyErr_Clear();
    fail({.op = kOp, .what = name(), .expected = "a str that UTF-8 can hold", .got = "a lone surrogate"});
  }
  return {utf8, static_cast<std::size_t>(size)};
}

Lexicon lexicon_of_texts(const Tokenizer& tokenizer, const py::iterable& texts, const std::string& prefix,
                         std::size_t threads, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const std::uint64_t length = known_length(texts);
  LexiconBuilder builder(tokenizer, prefix);
  ThreadPool pool(threads);
  std::vector<std::string> chunk;
  const auto add_chunk = [&] {
    const py::gil_scoped_release release;
    builder.add(chunk, pool);
    report(callback, "encode", builder.size(), std::max<std::uint64_t>(length, builder.size()));
    chunk.clear();
  };
  for (const py::handle text : texts) {
    chunk.push_back(text_of(text, builder.size() + chunk.size()));
    if (chunk.size() == kChunk) add_chunk();
  }
  add_chunk();
  const py::gil_scoped_release release;
  return std::move(builder).finish(callback);
}

Lexicon lexicon_of_ids(const py::iterable& entries, const std::optional<Tokenizer>& tokenizer,
                       const py::object& progress) {
  const Progress callback = python_progress(progress);
  const std::uint64_t length = known_length(entries);
  LexiconBuilder builder = tokenizer ? LexiconBuilder(*tokenizer) : LexiconBuilder();
  for (const py::handle entry : entries) {
    Ids ids;
    try {
      ids = entry.cast<Ids>();
    } catch (const py::cast_error&) {
      fail({.op = kOp,
            .what = "entry " + std::to_string(builder.size()),
            .expected = "a sequence of token ids",
            .got = py::str(py::type::of(entry)).cast<std::string>()});
    }
    builder.add(ids);
    if (builder.size() % kChunk == 0) {
      report(callback, "read", builder.size(), std::max<std::uint64_t>(length, builder.size()));
    }
  }
  const py::gil_scoped_release release;
  return std::move(builder).finish(callback);
}

}  // namespace

void bind_lexicon(py::module_& m) {
  // The class that users see, modicum.search.Lexicon, derives from this one.
  py::class_<Lexicon, Constraint, std::shared_ptr<Lexicon>>(m, "Lexicon",
                                                            "The arrays of modicum.search.Lexicon.")
      .def(py::init<const Lexicon&>(), py::arg("lexicon"))
      .def("save", &Lexicon::save, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
           R"(Writes a safetensors file, whole or not at all, mode 0600.

Raises
------
IoError)")
      .def_property_readonly("nodes", &Lexicon::nodes, "Nodes of the trie.")
      .def_property_readonly("nbytes", &Lexicon::bytes, "Bytes of the arrays, in memory or mapped.")
      .def_property_readonly("inputs", py::overload_cast<>(&Lexicon::positions, py::const_),
                             "How many entries it was built from, repetitions included.")
      .def_property_readonly("largest_token", &Lexicon::largest_token)
      .def_property_readonly("tokenizer_fingerprint", &Lexicon::tokenizer,
                             "Of the tokenizer that made the entries; empty where they came as ids alone.")
      .def_property_readonly("prefix", &Lexicon::prefix, "What was put before each text when it was encoded.")
      .def(
          "_find", [](const Lexicon& l, const Ids& ids) { return l.find(ids); }, py::arg("ids"))
      .def("_entry", &Lexicon::entry, py::arg("index"))
      .def(
          "_positions",
          [](const Lexicon& l, std::size_t index) {
            const auto positions = l.positions(index);
            return std::vector<std::uint32_t>(positions.begin(), positions.end());
          },
          py::arg("index"))
      .def("__len__", &Lexicon::size);

  m.def("lexicon_of_texts", &lexicon_of_texts, py::arg("tokenizer"), py::arg("texts"), py::kw_only(),
        py::arg("prefix"), py::arg("threads"), py::arg("progress"));
  m.def("lexicon_of_ids", &lexicon_of_ids, py::arg("entries"), py::kw_only(), py::arg("tokenizer"),
        py::arg("progress"));
  m.def("open_lexicon", &Lexicon::open, py::arg("path"), py::arg("tokenizer_fingerprint"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace modicum::python
