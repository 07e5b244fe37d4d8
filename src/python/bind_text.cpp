// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {
namespace {

AddSpecial add_special(bool add) {
  return add ? AddSpecial::yes : AddSpecial::no;
}
SpecialTokens special(bool skip) {
  return skip ? SpecialTokens::skip : SpecialTokens::keep;
}

py::tuple encode_with_offsets(const Tokenizer& tokenizer, const std::string& text, bool add) {
  Encoding encoding;
  {
    const py::gil_scoped_release release;
    encoding = tokenizer.encode(text, add_special(add));
  }
  py::list offsets(encoding.offsets.size());
  for (std::size_t i = 0; i < encoding.offsets.size(); ++i) {
    offsets[i] = py::make_tuple(encoding.offsets[i].begin, encoding.offsets[i].end);
  }
  return py::make_tuple(std::move(encoding.ids), std::move(offsets));
}

}  // namespace

void bind_text(py::module_& m) {
  py::class_<Tokenizer>(m, "Tokenizer",
                        R"(A tokenizer.json, equal to Hugging Face ``tokenizers`` in ids and offsets.

Parameters
----------
path : tokenizer.json, or the folder that holds it.

Raises
------
IoError, FormatError, Unsupported
    For a component that is not implemented, naming it.)")
      .def(py::init(&Tokenizer::load), py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def_static("parse", &Tokenizer::parse, py::arg("json"),
                  "A tokenizer from the text of a tokenizer.json.")
      .def(
          "encode",
          [](const Tokenizer& t, const std::string& text, bool add) {
            return t.encode(text, add_special(add)).ids;
          },
          py::arg("text"), py::arg("add_special_tokens") = true, py::call_guard<py::gil_scoped_release>(),
          "Token ids of `text`, with what the post-processor adds (BOS and the like) unless told otherwise.")
      .def("encode_with_offsets", &encode_with_offsets, py::arg("text"), py::kw_only(),
           py::arg("add_special_tokens") = true,
           "Token ids, and for each the half-open range of bytes of the UTF-8 text that it stands for.")
      .def(
          "decode",
          [](const Tokenizer& t, const Ids& ids, bool skip) { return t.decode(ids, special(skip)); },
          py::arg("ids"), py::arg("skip_special_tokens") = true, py::call_guard<py::gil_scoped_release>(),
          "The text of token ids; broken UTF-8 becomes U+FFFD.")
      .def("id_of", &Tokenizer::id_of, py::arg("token"),
           "The id of a token as spelled in the vocabulary, or None.")
      .def("token_of", &Tokenizer::token_of, py::arg("id"),
           "The spelling of an id in the vocabulary, or None.")
      .def("is_special", &Tokenizer::is_special, py::arg("id"))
      .def_property_readonly("fingerprint", &Tokenizer::fingerprint, "XXH3-128 of the tokenizer.json.")
      .def("__len__", &Tokenizer::vocabulary_size);

  py::class_<StreamDecoder>(m, "StreamDecoder",
                            R"(Decodes a growing sequence of tokens, never half a character.

The pieces joined equal ``tokenizer.decode`` of all the tokens.)")
      .def(py::init([](const Tokenizer& t, bool skip) { return StreamDecoder(t, special(skip)); }),
           py::arg("tokenizer"), py::kw_only(), py::arg("skip_special_tokens") = true)
      .def("push", &StreamDecoder::push, py::arg("id"),
           "The text that became certain with this token, maybe empty.")
      .def("finish", &StreamDecoder::finish, "What is left; an incomplete character as U+FFFD.");
}

}  // namespace modicum::python
