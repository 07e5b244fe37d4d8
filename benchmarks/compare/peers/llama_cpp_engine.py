# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through libllama's own interface, with llama-bench's batch sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors import safe_open

from peers.engine import Engine, Setup, UnavailableError, timed
from peers.shapes import Shape, written_once

TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Context:
    """A context that holds one sequence."""

    def __init__(self, model: llama_cpp.llama_model_p, setup: Setup) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = setup.context
        options.n_threads = options.n_threads_batch = setup.threads
        self.handle = llama_cpp.llama_init_from_model(model, options)
        if not self.handle:
            raise UnavailableError("llama.cpp made no context")
        self.memory = llama_cpp.llama_get_memory(self.handle)
        self.vocabulary = setup.shape.vocab_size
        self.batch = options.n_batch

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after `tokens`, as a view that the next call overwrites."""
        for begin in range(0, len(tokens), self.batch):
            part = tokens[begin : begin + self.batch]
            ids = (llama_cpp.llama_token * len(part))(*part)
            if llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(ids, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(self.handle, -1), shape=(self.vocabulary,)
        )


class LlamaCpp(Engine):
    def __init__(self, file: Path, setup: Setup) -> None:
        self.setup = setup
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise UnavailableError(f"llama.cpp does not load {file.name}")
        self.context = self._context()
        self.trunk: Context | None = None
        self.trunk_length = 0

    def _context(self) -> Context:
        return Context(self.model, self.setup)

    def prefill(self, tokens: Sequence[int]) -> float:
        self.context.clear()
        return timed(lambda: self.context.read(tokens))[0]

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        self.context.clear()
        self.context.read(prompt)

        def steps() -> None:
            for token in tokens:
                self.context.read([token])

        return timed(steps)[0]

    def keep_trunk(self, tokens: Sequence[int]) -> float:
        trunk = self.trunk = self._context()
        self.trunk_length = len(tokens)
        return timed(lambda: trunk.read(tokens))[0]

    def save_trunk(self, tokens: Sequence[int], file: str) -> None:
        self.context.clear()
        self.context.read(tokens)
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if not llama_cpp.llama_state_seq_save_file(self.context.handle, file.encode(), 0, ids, len(ids)):
            raise RuntimeError("llama_state_seq_save_file failed")

    def open_trunk(self, file: str) -> float:
        # Into the context that was made with the model, as its server does.
        self.trunk = self.context
        ids, count = (llama_cpp.llama_token * self.setup.context)(), ctypes.c_size_t()
        arguments = (self.trunk.handle, file.encode(), 0, ids, len(ids), ctypes.byref(count))
        seconds, size = timed(lambda: llama_cpp.llama_state_seq_load_file(*arguments))
        if not size:
            raise RuntimeError("llama_state_seq_load_file failed")
        self.trunk_length = count.value
        return seconds

    def _drop_question(self, trunk: Context) -> None:
        if not llama_cpp.llama_memory_seq_rm(trunk.memory, 0, self.trunk_length, -1):
            raise RuntimeError("llama_memory_seq_rm failed")

    def question(self, tokens: Sequence[int]) -> float:
        assert self.trunk is not None
        trunk = self.trunk
        seconds = timed(lambda: trunk.read(tokens))[0]
        self._drop_question(trunk)
        return seconds

    def question_logits(self, tokens: Sequence[int]) -> np.ndarray:
        assert self.trunk is not None
        values = self.trunk.read(tokens).copy()
        self._drop_question(self.trunk)
        return values

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self.context.clear()
        return self.context.read(tokens).copy()


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def write_bf16(setup: Setup, file: Path) -> None:
    """The checkpoint as GGUF without a vocabulary: bf16; norms and biases in f32, as is usual there."""
    shape = setup.shape
    writer = gguf.GGUFWriter(str(file), shape.model_type)
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    with safe_open(setup.checkpoint / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 – safe_open is no dict
            _add_tensor(writer, shape, name, tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: gguf.GGUFWriter, shape: Shape, name: str, tensor) -> None:  # type: ignore[no-untyped-def]
    import torch

    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, stem = stem.removeprefix("model.layers.").split(".", 1)
        target = f"blk.{layer}.{NAMES[stem]}.{kind}"
    else:
        target = f"{NAMES[stem]}.{kind}"
    if shape.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = shape.num_attention_heads if stem.endswith("q_proj") else shape.num_key_value_heads
        tensor = _interleaved(tensor, heads)
    if tensor.ndim == 1:
        writer.add_tensor(target, tensor.float().numpy())
    else:
        bits = tensor.contiguous().view(torch.uint16).numpy()
        writer.add_tensor(target, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def _interleaved(tensor, heads: int):  # type: ignore[no-untyped-def]
    """Rotary pairs (i, i + head_dim / 2) become (2i, 2i + 1), as llama.cpp rotates models of type llama."""
    rows, cols = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def converted(setup: Setup, format: str) -> Path:
    def write(folder: Path) -> None:
        write_bf16(setup, folder / "model.gguf")

    source = written_once(setup.cache / "gguf-bf16", write) / "model.gguf"
    if format == "bf16":
        return source
    kind, _, pure = format.partition(" ")

    def quantise(folder: Path) -> None:
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.pure = TYPES[kind], bool(pure)
        target = str(folder / "model.gguf").encode()
        if llama_cpp.llama_model_quantize(str(source).encode(), target, ctypes.byref(options)) != 0:
            raise RuntimeError(f"llama_model_quantize to {format} failed")

    return written_once(setup.cache / f"gguf-{format.replace(' ', '-')}", quantise) / "model.gguf"


def prepare(setup: Setup, format: str) -> Callable[[], Engine]:
    file = converted(setup, format)
    return lambda: LlamaCpp(file, setup)
