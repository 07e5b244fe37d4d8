// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace modicum {

/// Root of everything that modicum throws. The text reads `[op] what: expected X, got Y; do Z`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An argument that no input could make sense of (a negative count, an unknown name).
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A file or directory that cannot be read or written (missing, not permitted, disk full).
class IoError : public Error {
 public:
  using Error::Error;
};

/// A file that is not what it says it is.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A file whose checksum does not match its bytes.
class Corrupt : public FormatError {
 public:
  using FormatError::FormatError;
};

/// A knowledge cache that belongs to another model, tokenizer or template.
class FingerprintMismatch : public Error {
 public:
  using Error::Error;
};

/// More tokens than the model's context holds.
class ContextOverflow : public Error {
 public:
  using Error::Error;
};

class OutOfMemory : public Error {
 public:
  using Error::Error;
};

class DeviceError : public Error {
 public:
  using Error::Error;
};

/// A valid input that this version does not handle; the text names the field.
class Unsupported : public Error {
 public:
  using Error::Error;
};

/// The caller's progress callback or an interrupt asked to stop.
class Cancelled : public Error {
 public:
  using Error::Error;
};

/// What went wrong, in the order in which the message reads.
struct Failure {
  std::string_view op;        ///< the operation, e.g. "cag.open"
  std::string what;           ///< the thing that is wrong, e.g. "header length of 'a.kv'"
  std::string expected = {};  ///< what would have been right
  std::string got = {};       ///< what was there
  std::string todo = {};      ///< what the reader can do about it
};

/// `[op] what: expected X, got Y; do Z`, leaving out what is empty.
std::string describe(const Failure& failure);

/// Throws `E` with the text of `failure`.
template <class E = InvalidArgument>
[[noreturn]] void fail(const Failure& failure) {
  throw E(describe(failure));
}

}  // namespace modicum
