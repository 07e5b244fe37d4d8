# SPDX-License-Identifier: Apache-2.0
"""How the rows of a search share what a transformers model has read, and whether a model allows it.

A tier is given the model's forward pass; torch comes with the model, so that this file needs none to be read.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from modicum._core import ContextOverflow, FormatError, InvalidArgument, Unsupported

Ids = npt.NDArray[np.int64]
TierName = Literal["tree", "batch", "recompute"]
TIERS: tuple[TierName, ...] = get_args(TierName)

# How far a tier's logits may lie from those of a plain pass, as a share of how far the logits range. Bounds
# on rounding: a branch that sees a wrong token deviates by far more.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}
# Tokens that one plain pass reads at most; more rows than that go in turns.
RECOMPUTE_TOKENS = 16384
# The branches of the self-check: parents of each step's rows. Rows die, double and change places.
CHECK_STEPS = ((0, 0, 0), (2, 0, 0, 1), (3, 3, 1))


_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class Tier(Protocol):
    """Tensors in, tensors out; the step around it has checked the arguments."""

    @property
    def name(self) -> TierName: ...

    def reset(self) -> None: ...

    def start(self, ids: Ids) -> Any: ...

    def advance(self, parents: Ids, tokens: Ids) -> Any: ...

    @property
    def tokens_held(self) -> int: ...

    @property
    def kv_bytes(self) -> int: ...


class Forward:
    """A forward pass of the model, and what its signature and configuration say about it."""

    def __init__(self, model: Any) -> None:
        self.torch = library()
        if not isinstance(model, self.torch.nn.Module) or not hasattr(model, "config"):
            raise invalid("model", "a causal language model of transformers", type(model).__name__)
        if getattr(model.config, "is_encoder_decoder", False):
            raise Unsupported(
                "[transformers_step] model: expected a decoder, got an encoder-decoder model; use "
                "its generate(num_beams=…)"
            )
        if model.training:
            raise invalid("model", "eval mode", "training mode; call model.eval()")
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
        self._parameters = set(inspect.signature(base.forward).parameters)
        # transformers 5.24 calls every cache `cache`; the releases before it know it by two names.
        self.cache_name = next((n for n in _CACHE_NAMES if n in self._parameters), None)
        embedding = model.get_input_embeddings()
        self.device = embedding.weight.device
        self.tokens_known = int(embedding.weight.shape[0])
        config = model.config
        self.text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._context = self._learned_positions(embedding)

    def takes(self, name: str) -> bool:
        """Whether the model's forward has a parameter of that name."""
        return name in self._parameters

    def __call__(self, ids: Any, *, every_token: bool = False, **options: Any) -> tuple[Any, Any]:
        """Logits [batch, vocabulary] after the last token, or [tokens, …] of one sequence; and the output."""
        if not every_token and self.takes("logits_to_keep"):
            options["logits_to_keep"] = 1
        output = self.model(input_ids=ids, **options)
        logits = output.logits if hasattr(output, "logits") else output[0]
        if logits.ndim != 3:
            raise _bad_logits("[batch, tokens, vocabulary]", f"shape {list(logits.shape)}")
        # Copied where it is a part, so that a caller who keeps it does not keep the whole.
        last = logits[:, -1] if logits.shape[1] == 1 else logits[:, -1].clone()
        return (logits[0] if every_token else last), output

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def array(self, logits: Any, rows: int, vocabulary: int) -> npt.NDArray[np.float32]:
        """As float32 on the CPU; refuses what no search could rank."""
        if list(logits.shape) != [rows, vocabulary]:
            raise _bad_logits(f"shape [{rows}, {vocabulary}]", f"{list(logits.shape)}")
        logits = logits.float()
        # -inf forbids a token and may stand, unless it forbids them all.
        best = logits.amax(-1)
        if not bool(best.isfinite().all()):
            row = int((~best.isfinite()).nonzero()[0])
            raise _bad_logits("numbers that can be ranked", f"{float(best[row])} as the highest of row {row}")
        array: npt.NDArray[np.float32] = logits.cpu().numpy()
        return array

    def _learned_positions(self, embedding: Any) -> int | None:
        """How many positions there are in a model that looks them up; None where they are computed."""
        limit = getattr(self.text_config, "max_position_embeddings", None) or 0
        tables = [m for m in self.model.modules() if isinstance(m, self.torch.nn.Embedding)]
        # Some tables keep a row or two before position 0.
        learned = any(limit <= m.num_embeddings <= limit + 2 for m in tables if m is not embedding)
        return int(limit) if limit and learned else None

    def check_length(self, length: int) -> None:
        if self._context is not None and length > self._context:
            raise ContextOverflow(
                f"[transformers_step] tokens: expected at most {self._context}, the positions that the model "
                f"has learned, got {length}"
            )


class BatchTier:
    """A row of the cache for every row; rows are copied where parents say so."""

    name: TierName = "batch"

    def __init__(self, forward: Forward) -> None:
        if forward.cache_name is None or not forward.takes("use_cache"):
            raise Unsupported("[transformers_step] forward: expected a cache and use_cache")
        self._forward = forward
        self._cache_name = forward.cache_name
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None
        self._rows = self._length = 0

    def start(self, ids: Ids) -> Any:
        logits, output = self._forward(self._forward.tensor(ids[None]), use_cache=True)
        self._cache = getattr(output, self._cache_name, None)
        if not hasattr(self._cache, "reorder_cache"):
            raise Unsupported(
                "[transformers_step] cache: expected one with reorder_cache, got "
                f"{type(self._cache).__name__}"
            )
        self._rows, self._length = 1, len(ids)
        return logits

    def advance(self, parents: Ids, tokens: Ids) -> Any:
        if len(parents) != self._rows or (parents != np.arange(self._rows)).any():
            self._cache.reorder_cache(self._forward.tensor(parents))
        cache = {self._cache_name: self._cache}
        logits, _ = self._forward(self._forward.tensor(tokens[:, None]), use_cache=True, **cache)
        self._rows, self._length = len(parents), self._length + 1
        return logits

    @property
    def tokens_held(self) -> int:
        return self._rows * self._length

    @property
    def kv_bytes(self) -> int:
        tensor = self._forward.torch.Tensor
        held = {}
        for layer in getattr(self._cache, "layers", []):
            for value in vars(layer).values():
                for x in value.values() if isinstance(value, dict) else [value]:
                    if isinstance(x, tensor):
                        held[id(x)] = x.nbytes
        return sum(held.values())


class RecomputeTier:
    """Keeps ids alone and reads every row from its beginning."""

    name: TierName = "recompute"
    kv_bytes = 0

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.reset()

    def reset(self) -> None:
        self._paths: Ids = np.zeros((0, 0), dtype=np.int64)

    def start(self, ids: Ids) -> Any:
        self._paths = ids[None]
        return self._read()

    def advance(self, parents: Ids, tokens: Ids) -> Any:
        self._paths = np.concatenate([self._paths[parents], tokens[:, None]], axis=1)
        return self._read()

    def _read(self) -> Any:
        options = {"use_cache": False} if self._forward.takes("use_cache") else {}
        at_once = max(1, RECOMPUTE_TOKENS // self._paths.shape[1])
        parts = [self._paths[i : i + at_once] for i in range(0, len(self._paths), at_once)]
        return self._forward.torch.cat(
            [self._forward(self._forward.tensor(part), **options)[0] for part in parts]
        )

    @property
    def tokens_held(self) -> int:
        return int(self._paths.size)


class SelfCheck:
    """A few branches of random tokens, and what the model says of each surviving path by itself."""

    def __init__(self, forward: Forward) -> None:
        random = np.random.default_rng(0)
        self._forward = forward
        window = getattr(forward.text_config, "sliding_window", None) or 0
        # A window that is small enough to be left behind at once is worth the few tokens.
        n_prompt = max(6, window + 2 if window <= 64 else 0)
        self._prompt: Ids = random.integers(forward.tokens_known, size=n_prompt)
        self._tokens: list[Ids] = [random.integers(forward.tokens_known, size=len(p)) for p in CHECK_STEPS]
        self._paths: Ids = np.zeros((1, 0), dtype=np.int64)
        for parents, tokens in zip(CHECK_STEPS, self._tokens, strict=True):
            self._paths = np.concatenate([self._paths[list(parents)], tokens[:, None]], axis=1)
        self._read()

    def _read(self) -> None:
        """One plain pass over all paths gives the logits of every step."""
        forward = self._forward
        prompts = np.tile(self._prompt, (len(self._paths), 1))
        ids = np.concatenate([prompts, self._paths], axis=1)
        options = {"use_cache": False} if forward.takes("use_cache") else {}
        with forward.torch.inference_mode():
            output = forward.model(input_ids=forward.tensor(ids), **options)
            logits = output.logits if hasattr(output, "logits") else output[0]
            if logits.ndim != 3 or tuple(logits.shape[:2]) != ids.shape:
                raise _bad_logits(f"shape {[*ids.shape, 'vocabulary']}", f"{list(logits.shape)}")
            self.vocabulary_size = int(logits.shape[2])
            last = logits[:, -1 - len(CHECK_STEPS) :].transpose(0, 1)
            self._expected = [forward.array(x, len(ids), self.vocabulary_size) for x in last]
        finite = np.where(np.isfinite(self._expected), self._expected, 0)
        spread = float(np.ptp(finite, axis=-1).max())
        self._tolerance = TOLERANCE.get(str(logits.dtype).removeprefix("torch."), 1e-3) * spread

    def run(self, tier: Tier) -> None:
        """Raises Unsupported where the tier's logits are not the model's; leaves the tier empty."""
        found = self._step(tier, CHECK_STEPS, self._tokens)
        tier.reset()
        # Follow each surviving row back to the prompt: its row of every step.
        rows = np.arange(len(self._paths))
        for i in reversed(range(len(found))):
            found[i] = found[i][rows]
            rows = np.array(CHECK_STEPS[i - 1])[rows] if i else rows
        gap = _gap(found, self._expected)
        if gap <= self._tolerance:
            return
        # Where rounding alone explains more than the tolerance, the model's own cache shows as much of it.
        if tier.name != "recompute" and _gap(found, self._decode()) <= self._tolerance:
            return
        raise Unsupported(
            f"[transformers_step] self-check: expected logits within {self._tolerance:.1e} of a plain pass "
            f"over each path, got {gap:.1e}; a step needs a causal language model"
        )

    def _decode(self) -> list[npt.NDArray[np.float32]]:
        """The logits of every step once more, each path decoded alone through the model's ordinary cache."""
        alone = ((0,),) * len(CHECK_STEPS)
        paths = [self._step(BatchTier(self._forward), alone, path[:, None]) for path in self._paths]
        return [np.concatenate(step) for step in zip(*paths, strict=True)]

    def _step(self, tier: Tier, parents: Any, tokens: Any) -> list[npt.NDArray[np.float32]]:
        forward, size = self._forward, self.vocabulary_size
        with forward.torch.inference_mode():
            found = [forward.array(tier.start(self._prompt), 1, size)]
            for rows, ids in zip(parents, tokens, strict=True):
                found.append(forward.array(tier.advance(np.array(rows), ids), len(rows), size))
        return found


def _gap(found: list[npt.NDArray[np.float32]], expected: list[npt.NDArray[np.float32]]) -> float:
    # -inf on both sides is no gap; inf - inf would be NaN.
    both = zip(found, expected, strict=True)
    return max(float(np.where(a == b, 0, np.abs(a - b)).max()) for a, b in both)


def make_tier(name: TierName, forward: Forward) -> Tier:
    if name == "batch":
        return BatchTier(forward)
    if name == "recompute":
        return RecomputeTier(forward)
    from modicum._transformers_tree import TreeTier

    return TreeTier(forward)


def library() -> Any:
    try:
        import torch
        import transformers  # noqa: F401  # the models are its own
    except ImportError as error:
        raise Unsupported(
            f"[transformers_step] transformers: expected torch and transformers, got no {error.name}; "
            "pip install modicum[interop]"
        ) from None
    return torch


def invalid(what: str, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(f"[transformers_step] {what}: expected {expected}, got {got}")


def _bad_logits(expected: str, got: str) -> FormatError:
    return FormatError(
        f"[transformers_step] logits: expected {expected}, got {got}; look at the model's weights and dtype"
    )
