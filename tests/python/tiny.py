# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with random weights and a byte tokenizer, written without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    context: int = 1024,
    template: str | None = TEMPLATE,
    kv_heads: int = 2,
    head_dim: int = 8,
) -> Path:
    """Vocabulary 258 (bytes, <|end|>, <|user|>), 32 wide, 2 layers, 4 heads, f32."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 258,
        "max_position_embeddings": context,
        "eos_token_id": 256,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (258, 32), "model.norm": (32,)}
    for i in range(2):
        for name, shape in {
            "input_layernorm": (32,),
            "post_attention_layernorm": (32,),
            "self_attn.q_proj": (4 * head_dim, 32),
            "self_attn.k_proj": (kv_heads * head_dim, 32),
            "self_attn.v_proj": (kv_heads * head_dim, 32),
            "self_attn.o_proj": (32, 4 * head_dim),
            "mlp.gate_proj": (48, 32),
            "mlp.up_proj": (48, 32),
            "mlp.down_proj": (32, 48),
        }.items():
            shapes[f"model.layers.{i}.{name}"] = shape
    weights = {
        f"{name}.weight": (random.normal(0, 0.3, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
