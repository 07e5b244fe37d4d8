// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <initializer_list>
#include <set>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/model/weights.hpp>

namespace modicum {
namespace {

/// Memory of converted matrices, and the checkpoint that the others lie in.
struct Owner {
  explicit Owner(Checkpoint c) : checkpoint(std::move(c)) {}
  Checkpoint checkpoint;
  std::vector<std::unique_ptr<std::byte[]>> copies;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, std::optional<DType> dtype)
      : owner_(std::make_shared<Owner>(checkpoint)), config_(owner_->checkpoint.config()) {
    dtype_ = dtype.value_or(stored_dtype());
  }

  ModelWeights load() {
    ModelWeights weights;
    weights.dtype = dtype_;
    weights.embedding = matrix("model.embed_tokens.weight", config_.vocab_size, config_.hidden_size);
    if (config_.tie_word_embeddings) {
      weights.head = weights.embedding;
      used_.insert("lm_head.weight");
    } else {
      weights.head = linear_matrix("lm_head", config_.vocab_size, config_.hidden_size);
    }
    weights.norm = vector("model.norm.weight", config_.hidden_size);
    for (std::size_t i = 0; i < config_.num_hidden_layers; ++i) weights.layers.push_back(layer(i));
    refuse_unused();
    weights.owner = owner_;
    return weights;
  }

 private:
  WeightView view(const std::string& name, std::size_t rows, std::size_t cols) {
    used_.insert(name);
    return owner_->checkpoint.weight(name, rows, cols);
  }

  /// That of the first layer's matrix; where it is integers, that of the embedding.
  DType stored_dtype() {
    const std::string query = "model.layers.0.self_attn.q_proj";
    const std::size_t rank = rank_of(query);
    const DType first = rank > 0 ? view(query + ".weight_v", rank, config_.hidden_size).dtype
                                 : linear_view(query, config_.query_width(), config_.hidden_size).dtype;
    if (is_float(first)) return first;
    return view("model.embed_tokens.weight", config_.vocab_size, config_.hidden_size).dtype;
  }

  WeightView linear_view(const std::string& name, std::size_t rows, std::size_t cols) {
    const WeightView found = owner_->checkpoint.linear_weight(name, rows, cols);
    const bool packed = found.dtype == DType::uint8 || found.dtype == DType::uint4;
    used_.insert(name + (packed ? ".weight_packed" : ".weight"));
    if (packed) used_.insert(name + ".weight_shape");
    if (!is_float(found.dtype)) used_.insert(name + ".weight_scale");
    return found;
  }

  WeightView linear_matrix(const std::string& name, std::size_t rows, std::size_t cols) {
    const WeightView found = linear_view(name, rows, cols);
    return found.dtype == dtype_ || !is_float(found.dtype) ? found : converted(found);
  }

  WeightView matrix(const std::string& name, std::size_t rows, std::size_t cols) {
    WeightView found = view(name, rows, cols);
    return found.dtype == dtype_ ? found : converted(found);
  }

  WeightView converted(const WeightView& from) {
    const std::size_t count = from.rows * from.cols;
    owner_->copies.push_back(std::make_unique<std::byte[]>(count * size_of(dtype_)));
    std::byte* const memory = owner_->copies.back().get();
    dispatch(from.dtype, [&](auto source) {
      dispatch(dtype_, [&](auto target) {
        const auto* in = static_cast<const decltype(source)*>(from.data);
        auto* out = reinterpret_cast<decltype(target)*>(memory);
        for (std::size_t i = 0; i < count; ++i) out[i] = from_f32<decltype(target)>(to_f32(in[i]));
      });
    });
    return {.data = memory, .dtype = dtype_, .rows = from.rows, .cols = from.cols};
  }

  std::vector<float> vector(const std::string& name, std::size_t size) {
    const WeightView found = view(name, 1, size);
    std::vector<float> values(size);
    dispatch(found.dtype, [&](auto t) {
      for (std::size_t i = 0; i < size; ++i)
        values[i] = to_f32(static_cast<const decltype(t)*>(found.data)[i]);
    });
    return values;
  }

  std::size_t rank_of(const std::string& name) const {
    return config_.low_rank ? config_.low_rank->rank_of(name) : 0;
  }

  LinearWeights linear(const std::string& name, std::size_t rows, std::size_t cols, bool bias) {
    LinearWeights weights;
    if (const std::size_t rank = rank_of(name); rank > 0) {
      weights.inner = matrix(name + ".weight_v", rank, cols);
      weights.weight = matrix(name + ".weight_u", rows, rank);
    } else {
      weights.weight = linear_matrix(name, rows, cols);
    }
    if (bias) weights.bias = vector(name + ".bias", rows);
    return weights;
  }

  LayerWeights layer(std::size_t i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    LayerWeights weights;
    weights.input_norm = vector(prefix + "input_layernorm.weight", config_.hidden_size);
    weights.post_attention_norm = vector(prefix + "post_attention_layernorm.weight", config_.hidden_size);
    if (config_.qk_norm) {
      weights.q_norm = vector(attention + "q_norm.weight", config_.head_dim);
      weights.k_norm = vector(attention + "k_norm.weight", config_.head_dim);
    }
    const std::size_t hidden = config_.hidden_size;
    weights.q = linear(attention + "q_proj", config_.query_width(), hidden, config_.qkv_bias);
    weights.k = linear(attention + "k_proj", config_.kv_width(), hidden, config_.qkv_bias);
    weights.v = linear(attention + "v_proj", config_.kv_width(), hidden, config_.qkv_bias);
    weights.o = linear(attention + "o_proj", hidden, config_.query_width(), config_.o_bias);
    weights.gate = linear(mlp + "gate_proj", config_.intermediate_size, hidden, config_.mlp_bias);
    weights.up = linear(mlp + "up_proj", config_.intermediate_size, hidden, config_.mlp_bias);
    weights.down = linear(mlp + "down_proj", hidden, config_.intermediate_size, config_.mlp_bias);
    refuse_mixture(attention + "{q,k,v}_proj", {&weights.q, &weights.k, &weights.v});
    refuse_mixture(mlp + "{gate,up}_proj", {&weights.gate, &weights.up});
    // Buffers that older versions of transformers wrote; they follow from the configuration.
    used_.insert(attention + "rotary_emb.inv_freq");
    return weights;
  }

  /// Layers that read one input share its rounding.
  static void refuse_mixture(const std::string& names, std::initializer_list<const LinearWeights*> layers) {
    const DType first = (*layers.begin())->weight.dtype;
    for (const LinearWeights* layer : layers) {
      if (layer->weight.dtype == first) continue;
      fail<Unsupported>(
          {.op = "model.load",
           .what = "layers '" + names + "'",
           .expected = "one format for all of them",
           .got = std::string(name_of(first)) + " and " + std::string(name_of(layer->weight.dtype)),
           .todo = "quantise all of them alike"});
    }
  }

  void refuse_unused() const {
    for (const std::string& name : owner_->checkpoint.names()) {
      if (used_.contains(name)) continue;
      fail<FormatError>(
          {.op = "model.load",
           .what = "tensor '" + name + "'",
           .expected = "only tensors of a " + config_.model_type + " model as config.json describes it",
           .got = "one that it does not have",
           .todo = "check that config.json and the weights belong together"});
    }
  }

  std::shared_ptr<Owner> owner_;
  const ModelConfig& config_;
  DType dtype_ = DType::f32;
  std::set<std::string> used_;
};

}  // namespace

ModelWeights ModelWeights::load(const Checkpoint& checkpoint, std::optional<DType> dtype) {
  return Loader(checkpoint, dtype).load();
}

TokenCost ModelWeights::token_cost() const {
  TokenCost cost;
  const auto add = [&cost](const WeightView& weight) {
    cost.bytes += weight.bytes();
    cost.multiply_adds += weight.rows * weight.cols;
  };
  for (const LayerWeights& layer : layers) {
    for (const LinearWeights* linear :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      add(linear->weight);
      add(linear->inner);
    }
  }
  add(head);
  return cost;
}

}  // namespace modicum
