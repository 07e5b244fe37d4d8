// SPDX-License-Identifier: Apache-2.0
// The one header that an application includes.
#pragma once

#include <modicum/base/error.hpp>
#include <modicum/base/progress.hpp>
#include <modicum/cag/build.hpp>
#include <modicum/cag/knowledge.hpp>
#include <modicum/cag/select.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/decode/tree_step_model.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/model/compare.hpp>
#include <modicum/model/model.hpp>
#include <modicum/retrofit/ffn_refine.hpp>
#include <modicum/retrofit/gptq.hpp>
#include <modicum/retrofit/kv_merge.hpp>
#include <modicum/retrofit/kv_statistics.hpp>
#include <modicum/retrofit/low_rank.hpp>
#include <modicum/retrofit/quantize.hpp>
#include <modicum/retrofit/round.hpp>
#include <modicum/retrofit/round_matrix.hpp>
#include <modicum/retrofit/scale_fold.hpp>
#include <modicum/search/all_of.hpp>
#include <modicum/search/beam.hpp>
#include <modicum/search/beam_writer.hpp>
#include <modicum/search/lexicon.hpp>
#include <modicum/search/phrases.hpp>
#include <modicum/text/tokenizer.hpp>
#include <modicum/tune/merge.hpp>
#include <modicum/tune/patch.hpp>
#include <modicum/tune/project.hpp>
