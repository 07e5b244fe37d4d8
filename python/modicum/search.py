"""Beam search over a trie of hypotheses: exact, constrained, for any model.

Beams share the keys and values of their common prefix (TrieDecode: Chan et al. 2025, arXiv:2502.00085), each
prompt is read once whatever the number of beams, and the tokens are those of transformers'
``generate(num_beams=…)``. :meth:`modicum.Model.beam_search` searches with a model that modicum runs; here are
the same search over any function that scores tokens (:func:`beam`), and the constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import Constraint, InvalidArgument, Tokenizer
from modicum.beam import BeamResult, Hypothesis, SearchTree, make_result, settings_of, text_stream
from modicum.choose import Choice, Chooser
from modicum.constraints import Automaton, ConstraintLike, Grammar, all_of, phrases
from modicum.lexicon import Lexicon

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from modicum.beam import BeamKeywords

Step = Callable[[Any, Any], Any]


def beam(
    step: Step,
    prompt_ids: Sequence[int],
    *,
    logits: bool = False,
    tokenizer: Tokenizer | None = None,
    **options: Unpack[BeamKeywords],
) -> BeamResult:
    """Beam search over any model, token for token that of transformers on equal scores.

    Parameters
    ----------
    step : the model. ``step(None, prompt_ids)`` returns the log-probabilities of the token after the
        prompt, [vocabulary] or [1, vocabulary]; then ``step(parents, tokens)``, both int64 [rows], returns
        [rows, vocabulary]: row i continues row ``parents[i]`` of the call before with ``tokens[i]``. A row
        that is no parent is dead. Arrays may be numpy's, or any with ``__dlpack__`` on the CPU.
    prompt_ids : at least one token.
    logits : the scores are logits, to be normalised. As log-probabilities they are used as they are.
    tokenizer : gives hypotheses their text; needed for `stop` and `stream`.
    beams : hypotheses that are kept in each step.
    max_new_tokens, min_new_tokens : the length of a hypothesis, its stop token counted.
    length_penalty : a hypothesis scores its sum of log-probabilities / length ** length_penalty.
    early_stopping : False, True or "never", as in transformers.
    num_return : hypotheses to return, at most `beams`.
    stop_ids : tokens that end a hypothesis.
    stop : strings that end a hypothesis.
    repetition_penalty, no_repeat_ngram_size, bad_words, sequence_bias, forced_bos, forced_eos, suppress,
    begin_suppress : as transformers' processors of these names; `bad_words` are token sequences,
        `sequence_bias` maps tuples of tokens to what is added.
    groups, diversity_penalty : diverse beam search (Vijayakumar et al. 2018, arXiv:1610.02424).
    temperature, top_k, top_p, min_p, seed : beam sampling where `temperature` is above 0.
    mode : "transformers", or "native": without beams that are none, without losing hypotheses that end at a
        rank beyond `beams`, and ending as soon as no beam can become one of the `num_return` best.
    when_full : where memory is short, "fail" or "narrow": go on with fewer beams.
    constraint : :class:`Lexicon`, :class:`Grammar`, :func:`phrases`, an :class:`Automaton`, or a function
        that is given the new tokens and returns those that may follow (None: all).
    stream : called with text that no later step can change, as soon as all live beams share it.
    progress : called with ("beam", tokens, max_new_tokens); returning False cancels.

    Raises
    ------
    InvalidArgument
        For options that make no sense, scores that are NaN or of another shape, and a constraint that nothing
        within `max_new_tokens` satisfies. What `step` raises passes through.

    Examples
    --------
    >>> def step(parents, tokens):  # every token as likely as the others
    ...     return np.full((1 if parents is None else len(tokens), 50), -np.log(50), np.float32)
    >>> mo.search.beam(step, [1], beams=3, max_new_tokens=4)[0].ids
    [0, 0, 0, 0]
    """
    ids = [int(i) for i in prompt_ids]
    if not ids:
        raise InvalidArgument("[beam] prompt_ids: expected at least one token, got none")
    settings, rest = settings_of(options, logits=logits)
    stream = text_stream(rest["stream"], tokenizer, settings)
    start = _scores(step(None, np.asarray(ids, dtype=np.int64)))
    if start.ndim == 2 and start.shape[0] == 1:
        start = start[0]
    if start.ndim != 1 or start.size == 0:
        expected = "shape (vocabulary,) or (1, vocabulary)"
        raise InvalidArgument(f"[beam] scores after the prompt: expected {expected}, got {start.shape}")
    found = _core.beam_over(
        lambda parents, tokens: _scores(step(parents, tokens)),
        start,
        ids,
        settings,
        constraint=rest["constraint"],
        tokenizer=tokenizer,
        progress=rest["progress"],
        on_stable=stream,
    )
    result = make_result(found, tokenizer, settings.stop)
    if stream is not None:
        stream.finish(result[0].text)
    return result


def from_transformers(model: Any, **options: Any) -> TransformersModel:
    """A transformers model to search with: its prompt is read once, its beams share their prefix.

    Beams are rows of one forward pass over a tree of keys and values that is never copied. On loading, a few
    steps are compared with plain decoding; where an architecture does not allow it, the search goes on by
    reordering the model's own cache or by reading every path anew, and says so in a warning and in ``notes``.

    Parameters
    ----------
    model : a causal language model of transformers, on the CPU or a GPU. It is not changed.

    Examples
    --------
    >>> searcher = mo.search.from_transformers(AutoModelForCausalLM.from_pretrained("…"))
    >>> searcher.beam_search(prompt_ids, beams=8, max_new_tokens=64)[0].ids
    """
    return TransformersModel(model, **options)


class TransformersModel:
    """What :func:`from_transformers` gives."""

    def __init__(self, model: Any, **options: Any) -> None:
        from modicum.transformers_step import TransformersStep

        self.step = TransformersStep(model, **options)
        generation = getattr(model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        self._stop_ids = [] if eos is None else [int(i) for i in np.atleast_1d(np.asarray(eos))]

    @property
    def tier(self) -> str:
        """ "tree", "batch" or "recompute": how beams are held."""
        return str(self.step.tier)

    @property
    def notes(self) -> list[str]:
        """What fell back, and why."""
        return list(self.step.notes)

    def beam_search(
        self,
        prompt_ids: Sequence[int],
        *,
        tokenizer: Tokenizer | None = None,
        **options: Unpack[BeamKeywords],
    ) -> BeamResult:
        """As :func:`beam`; `stop_ids` are the model's own unless given."""
        if options.get("stop_ids") is None:
            options["stop_ids"] = self._stop_ids
        try:
            return beam(self.step, prompt_ids, logits=self.step.gives_logits, tokenizer=tokenizer, **options)
        finally:
            self.step.reset()

    def __repr__(self) -> str:
        return f"<modicum.search.TransformersModel, {self.tier}>"


def _scores(found: Any) -> npt.NDArray[np.float32]:
    """What a step returned, as contiguous float32."""
    if not isinstance(found, np.ndarray):
        if hasattr(found, "detach"):  # torch's; numpy knows no bfloat16
            found = found.detach().float().cpu()
        try:
            found = np.from_dlpack(found) if hasattr(found, "__dlpack__") else np.asarray(found)
        except ValueError as error:
            raise InvalidArgument(f"[beam] scores that step returned: expected an array; {error}") from None
    if found.dtype.kind not in "fiu":
        raise InvalidArgument(f"[beam] scores that step returned: expected numbers, got {found.dtype}")
    return np.ascontiguousarray(found, dtype=np.float32)


__all__ = [
    "Automaton",
    "BeamResult",
    "Choice",
    "Chooser",
    "Constraint",
    "ConstraintLike",
    "Grammar",
    "Hypothesis",
    "Lexicon",
    "SearchTree",
    "TransformersModel",
    "all_of",
    "beam",
    "from_transformers",
    "phrases",
]
