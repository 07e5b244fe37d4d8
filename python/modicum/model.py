"""A Hugging Face directory, ready to run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import Branch, InvalidArgument, IoError, ModelConfig, Tokenizer
from modicum.beam import BeamResult, make_result, settings_of, text_stream
from modicum.chat import ChatTemplate, Message

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from modicum.beam import BeamKeywords

Progress = Callable[[str, int, int], object]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """A continuation of a prompt.

    Attributes
    ----------
    text : without special tokens and without the stop string that ended it.
    ids : the new tokens, with the stop token that ended them, if one did.
    log_probabilities : of each of `ids` under the model's own distribution (natural logarithm).
    finish_reason : "stop_token", "stop_string", "length" or "cancelled".
    """

    text: str
    ids: list[int]
    log_probabilities: list[float] = field(repr=False)
    finish_reason: str

    def __str__(self) -> str:
        return self.text


class Model:
    """A model of the Llama kind (Llama 2/3.x, SmolLM, Mistral, Qwen2/2.5, Qwen3), mapped from its directory.

    Made by :func:`load`. Safe to use from several threads, which take turns.
    """

    def __init__(self, path: str | Path, *, dtype: str = "auto", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InvalidArgument(f"[load] threads: expected at least 1 or None, got {threads}")
        self._core = _core.Model(path, dtype=dtype, threads=threads or 0)

    @property
    def path(self) -> Path:
        return Path(self._core.path)

    @property
    def config(self) -> ModelConfig:
        return self._core.config

    @property
    def dtype(self) -> str:
        """Of the weights (but for integers) and of keys and values: "f32", "bf16" or "f16"."""
        return self._core.dtype

    @property
    def quantization(self) -> str | None:
        """How linear layers are stored as integers ("int4 by groups of 32"), or None."""
        return self._core.quantization

    @property
    def threads(self) -> int:
        return self._core.threads

    @property
    def parameters(self) -> int:
        return self._core.parameters

    @property
    def weight_bytes(self) -> int:
        return self._core.weight_bytes

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that the products of one token read, the output head's included."""
        return self._core.weight_bytes_per_token

    @property
    def multiply_adds_per_token(self) -> int:
        """Of those products; attention comes on top."""
        return self._core.multiply_adds_per_token

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in the tree."""
        return self._core.kv_bytes_per_token

    @property
    def fingerprint(self) -> str:
        """XXH3-128 over the weights and what of config.json the forward pass reads."""
        return self._core.fingerprint

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return self._core.tokenizer

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The directory's chat template, or None."""
        return ChatTemplate.load(self.path)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the model's reply.

        Raises
        ------
        IoError
            Where the directory has no chat template.
        """
        if self.chat_template is None:
            raise IoError(
                f"[chat_prompt] {self.path}: expected a chat template, got none; pass plain text instead"
            )
        return self.tokenizer.encode(self.chat_template.render(messages), add_special_tokens=False)

    def logits(self, ids: Sequence[int], *, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """Logits of the token after each of `ids`: float32 [tokens, vocabulary]."""
        return self._core.logits(list(ids), progress=progress)

    def tree(self, *, max_kv_bytes: int = 0) -> Branch:
        """The root of an empty tree of keys and values; `max_kv_bytes` bounds it, 0 does not.

        ``leaf = model.tree().extend(ids)``, then ``leaf.logits()``, ``leaf.tokens``, ``leaf.extend(more)``.
        """
        return self._core.tree(max_kv_bytes=max_kv_bytes)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] | None = None,
        seed: int = 0,
        stream: Callable[[str], object] | None = None,
        start: Branch | None = None,
    ) -> Generation:
        """Continues `prompt`, text or token ids; greedily unless `temperature` is above 0.

        Parameters
        ----------
        stop : strings that end the text and are not part of it.
        stop_ids : tokens that end the text; None means the model's own EOS, [] none.
        stream : called with each piece of text as soon as it is certain, never half a character; returning
            False stops.
        start : read the prompt after this branch (a knowledge's, say) instead of from the root.

        Raises
        ------
        ContextOverflow
            Before any work, where prompt and `max_new_tokens` do not fit the context.
        """

        def on_token(_id: int, text: str, _log_probability: float) -> object:
            return stream(text) if stream is not None and text else None

        has_text = isinstance(prompt, str) or bool(stop) or stream is not None or self._has_tokenizer()
        result = _core.generate(
            start if start is not None else self.tree(),
            self._ids(prompt),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            stop_ids=self._stop_ids(stop_ids),
            stop=[stop] if isinstance(stop, str) else list(stop or []),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            with_text=has_text,
            callback=on_token,
        )
        return Generation(result.text, result.ids, result.log_probabilities, result.finish_reason)

    def beam_search(
        self,
        prompt: Prompt,
        *,
        start: Branch | None = None,
        max_kv_bytes: int = 0,
        keep_states: bool = False,
        **options: Unpack[BeamKeywords],
    ) -> BeamResult:
        """The `num_return` best continuations of `prompt` (text or ids), best first.

        Token for token what transformers' ``generate(num_beams=beams)`` gives on equal logits; beams share
        the keys and values of their common prefix, so a beam costs a row.

        Parameters
        ----------
        start : read the prompt after this branch (a knowledge's, a hypothesis's) instead of from the root.
        max_kv_bytes : bounds keys and values, the prompt's included; 0 does not. See `when_full`.
        keep_states : give each hypothesis a branch, to search or generate on from.
        options : see :func:`modicum.search.beam`. `stop_ids`: None means the model's own EOS, [] none.

        Raises
        ------
        ContextOverflow
            Before any work, where prompt and `max_new_tokens` do not fit the context.
        OutOfMemory
            Where `max_kv_bytes` is too small; the model is as it was.
        """
        return self.beam_search_many(
            [prompt], start=start, max_kv_bytes=max_kv_bytes, keep_states=keep_states, **options
        )[0]

    def beam_search_many(
        self,
        prompts: Sequence[Prompt],
        *,
        start: Branch | None = None,
        max_kv_bytes: int = 0,
        keep_states: bool = False,
        **options: Unpack[BeamKeywords],
    ) -> list[BeamResult]:
        """`beam_search` of several prompts in lockstep: weights, and what they share, are read once a step.

        Each result is what `beam_search` gives (but for sampling). `stream` gets the first's text.
        """
        if start is not None and max_kv_bytes:
            raise InvalidArgument(
                "[beam_search] max_kv_bytes: expected 0 with start, which has a tree already"
            )
        stop_ids = self._stop_ids(None)
        settings, rest = settings_of(options, stop_ids=stop_ids, keep_states=keep_states)
        tokenizer = self.tokenizer if self._has_tokenizer() else None
        stream = text_stream(rest["stream"], tokenizer, settings)
        found = _core.beam(
            start if start is not None else self.tree(max_kv_bytes=max_kv_bytes),
            [self._ids(prompt) for prompt in prompts],
            settings,
            constraint=rest["constraint"],
            progress=rest["progress"],
            on_stable=stream,
        )
        results = [make_result(result, tokenizer, settings.stop) for result in found]
        if stream is not None and results:
            stream.finish(results[0][0].text)
        return results

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]

    def _stop_ids(self, stop_ids: Sequence[int] | None) -> list[int]:
        return list(self.config.eos_token_ids if stop_ids is None else stop_ids)

    def _has_tokenizer(self) -> bool:
        return (self.path / "tokenizer.json").exists()

    def __repr__(self) -> str:
        millions = self.parameters / 1e6
        kind = self.config.model_type
        return f"<modicum.Model {self.path.name}: {kind}, {millions:.1f} M parameters, {self.dtype}>"


def load(path: str | Path, *, dtype: str = "auto", threads: int | None = None) -> Model:
    """Maps a Hugging Face directory; nothing is converted or copied.

    Parameters
    ----------
    path : the directory with config.json, *.safetensors and tokenizer.json. Linear layers may be floats, or
        symmetric integers of 4 or 8 bits as compressed-tensors stores them ("pack-quantized" and
        "int-quantized"), by groups of a multiple of 32 columns or by rows. The inputs of such layers are
        rounded to int8 by groups of 32 as they come.
    dtype : "auto" (as stored), "f32", "bf16" or "f16"; another than the stored one takes memory for a copy.
    threads : None means every processor that this process may use.

    Raises
    ------
    IoError, FormatError, Unsupported
        Naming the file and field.
    """
    return Model(path, dtype=dtype, threads=threads)
