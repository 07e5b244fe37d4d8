// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/base/error.hpp>
#include <modicum/text/tokenizer.hpp>
