# SPDX-License-Identifier: Apache-2.0
"""A language model without weights, the same in transformers and as a step function of modicum.search.beam.

Its logits are a hash of all tokens read: multiples of 2^-19 in [0, 20), exact in float32, and no two of a row
are equal. Tokens 1 to 3, which tests use as stop tokens, get 4 more, so that they are chosen now and
then. It is `toy::HashModel` of the C++ tests but for the ties.

Imports no modicum: make_group_beam_golden.py runs it with an old transformers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

VOCABULARY = 160
TOKENS = np.arange(VOCABULARY, dtype=np.uint64)


def mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def read(states: Any, tokens: Any) -> Any:
    """The states [rows] after one more token each."""
    return mix(states ^ (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def logits_of(states: Any) -> Any:
    """float32 [rows, vocabulary]."""
    hashes = mix(states[:, None] + TOKENS * np.uint64(0xD1B54A32D192ED03))
    distinct = (hashes >> np.uint64(49) << np.uint64(8)) | TOKENS
    scores = distinct.astype(np.float32) * np.float32(2**-19)
    scores[:, 1:4] += np.float32(4)
    return scores


class HashConfig(PretrainedConfig):
    model_type = "hash"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size = VOCABULARY
        self.hidden_size = self.num_hidden_layers = self.num_attention_heads = 1


class HashModel(PreTrainedModel, GenerationMixin):
    """Reads whole sequences; positions that the attention mask leaves out are not read."""

    config_class = HashConfig
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__(HashConfig())
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = GenerationConfig(use_cache=False)
        self.eval()

    def forward(self, input_ids: Any, attention_mask: Any = None, **_kwargs: Any) -> CausalLMOutputWithPast:
        ids = input_ids.numpy()
        mask = np.ones_like(ids) if attention_mask is None else attention_mask.numpy()
        states = np.ones(len(ids), dtype=np.uint64)
        for column, used in zip(ids.T, mask.T, strict=True):
            states = np.where(used != 0, read(states, column), states)
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits_of(states))[:, None])


class HashStep:
    """The same model as a step function. With `normalise`, its scores are what torch.log_softmax gives."""

    def __init__(self, *, normalise: bool = True) -> None:
        self.normalise = normalise
        self.calls = 0
        self.states = np.ones(1, dtype=np.uint64)

    def __call__(self, parents: Any, tokens: Any) -> Any:
        self.calls += 1
        if parents is None:
            self.states = np.ones(1, dtype=np.uint64)
            for token in tokens:
                self.states = read(self.states, np.asarray([token]))
        else:
            self.states = read(self.states[parents], tokens)
        scores = logits_of(self.states)
        return torch.log_softmax(torch.from_numpy(scores), dim=-1) if self.normalise else scores
