"""The plan that meets a target with the least loss, or the advice not to retrofit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modicum._core import InvalidArgument, ModelConfig, Unsupported
from modicum.calibration import Calibration
from modicum.model import Model, Progress
from modicum.retrofit.candidates import Candidate, Space
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.loss_model import ErrorCurves, LossModel, Trial
from modicum.retrofit.pictures import Point
from modicum.retrofit.plan import Plan
from modicum.retrofit.plan_costs import DecodeSpeed, WeightBytes, kv_bytes_per_token
from modicum.retrofit.planned import Considered, Planned, advice
from modicum.retrofit.shapes import Format, config_of
from modicum.retrofit.targets import Target
from modicum.retrofit.trials import Trials, survey

__all__ = ["plan"]

TRIAL_TOKENS = 8192
_OP = "[plan] target"
_FRONTIER = 24  # points, about
_KL_ROUNDS = 3


def plan(
    source: Model | str | Path,
    *,
    target: Target,
    calibration: Calibration,
    threads: int | None = None,
    trial_tokens: int = TRIAL_TOKENS,
    finalists: int = 3,
    kv_int8: bool = True,
    speed: CostModel | bool = False,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Finds the plan that meets `target` with the least loss; where that is no retrofit, it says so.

    One pass over the calibration text gives the error of each layer's edits by amount. Short runs of single
    edits with little text, compared with the source on held-out text, tell what KL such errors mean; KLs of
    edits are added. Widths, key-value heads, dropped layers and bits are then combined, and the best are
    carried out and measured like that, too. Among all that is considered are the same model in int8 and int4,
    and, for a target of the cache, keys and values in int8: these win where they lose no more.

    Parameters
    ----------
    trial_tokens : calibration tokens of a short run, and half as many held-out ones; a fit needs as many
        tokens as the model's inner width. A run with all the text loses less than its trial.
    finalists : combinations that are measured before one of them is chosen.
    kv_int8 : whether what serves the model can keep keys and values as int8, as llama.cpp's q8_0 does.
    speed : True predicts tokens a second of all candidates with a cost model, whose measurements take
        minutes; or a cost model fitted already. A target of speed needs and fits one anyway.
    scratch : where models of trials are made; None means the system's folder for temporary files.
    progress : called with (stage, done, in all); returning False stops.

    Raises
    ------
    InvalidArgument
        Where nothing meets the target, telling the best that can be reached.
    Unsupported
        For a model that is quantised already.
    FormatError, IoError, Cancelled
    """
    if finalists < 1:
        raise InvalidArgument(f"[plan] finalists: expected at least 1, got {finalists}")
    model = source if isinstance(source, Model) else Model(source, threads=threads)
    if model.quantization is not None:
        raise Unsupported(
            f"[plan] model: expected weights in floats, got {model.quantization}; start from the model that "
            "it was made of"
        )
    space = Space.of(model.config, target, kv_int8=kv_int8)
    speeds = _speeds(model, space, speed or target.tokens_per_second is not None, speed, scratch, progress)
    trials = Trials(
        model, calibration, tokens=trial_tokens, threads=threads, scratch=scratch, progress=progress
    )
    return choose(
        target,
        space,
        model.config,
        source=str(model.path),
        weight_bytes=WeightBytes(model.path, model.config),
        speed=speeds,
        survey=lambda: survey(model, calibration, space, threads=threads, progress=progress),
        trial=trials,
        finalists=finalists,
    )


def choose(
    target: Target,
    space: Space,
    config: ModelConfig,
    *,
    source: str,
    weight_bytes: Callable[[Plan], int],
    speed: Callable[[Plan], float] | None,
    survey: Callable[[], dict[str, Any]],
    trial: Callable[[Plan], Trial],
    finalists: int,
) -> Planned:
    """As :func:`plan`, on what is measured by others."""
    costs = _Costs(config, weight_bytes, speed)
    whole = costs.of(Candidate(Plan()))
    if not target.only_kl and not _misses(target, whole):
        return _planned(_Search(target, source, [whole]), whole, whole)
    # Costs do not depend on what a survey finds: an unreachable target is refused before the long work.
    blind = space.candidates(dict.fromkeys(space.drops, 1), range(space.layers))
    _check_reachable(target, [costs.of(candidate) for candidate in blind])

    errors = ErrorCurves(survey(), width=config.intermediate_size, kv_heads=config.num_key_value_heads)
    first_of = {n: errors.first_of(n) for n in space.drops}
    done = {_key(one): trial(one) for one in space.trials(first_of)}
    losses = LossModel.fit(errors, list(done.values()))
    candidates = space.candidates(first_of, errors.eight_bits_first())
    priced = [
        replace(costs.of(c), kl=losses.kl(c.plan, kv_int8=c.kv_int8), trial=done.get(_key(c.plan)))
        for c in candidates
    ]
    search = _Search(target, source, priced, done, losses.to_dict())
    return _planned(search, _measure(search, trial, finalists), whole)


@dataclass(frozen=True)
class _Costs:
    """What a candidate weighs, without its loss."""

    config: ModelConfig
    weight_bytes: Callable[[Plan], int]
    speed: Callable[[Plan], float] | None

    def of(self, candidate: Candidate) -> Considered:
        return Considered(
            candidate=candidate,
            bytes=self.weight_bytes(candidate.plan),
            kv_bytes_per_token=kv_bytes_per_token(self.config, candidate.plan, int8=candidate.kv_int8),
            tokens_per_second=self.speed(candidate.plan) if self.speed else None,
            kl=0.0,
        )


@dataclass
class _Search:
    """All candidates with their costs and predicted losses, and what is known of them."""

    target: Target
    source: str
    priced: list[Considered]
    trials: dict[str, Trial] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)

    def rank(self, one: Considered) -> tuple[float, ...]:
        """The least is the best: bytes where a loss is the target, else the loss; then fewer changes."""
        edits = len(one.candidate.family)
        if self.target.only_kl:
            return one.bytes, one.loss, edits
        return one.loss, edits, one.bytes

    def within(self, one: Considered) -> bool:
        return self.target.max_kl is None or one.loss <= self.target.max_kl


def _measure(search: _Search, trial: Callable[[Plan], Trial], finalists: int) -> Considered:
    """The best of what meets the target, after the most promising were carried out.

    A limit of the loss may be passed by what was predicted within it: then predictions of that family are
    scaled by what was seen, and the next best are tried.
    """
    meeting = [one for one in search.priced if not _misses(search.target, one)]
    known = {id(one): one for one in meeting}
    too_low: dict[tuple[str, ...], float] = {}
    for _ in range(_KL_ROUNDS if search.target.max_kl is not None else 1):
        expected = {
            key: one if one.trial else replace(one, kl=one.kl * too_low.get(one.candidate.family, 1.0))
            for key, one in known.items()
        }
        promising = sorted(
            (k for k in known if search.within(expected[k])), key=lambda k: search.rank(expected[k])
        )
        for key in _finalists(promising, known, finalists):
            one = known[key]
            if one.trial is None and one.candidate.plan:
                name = _key(one.candidate.plan)
                if name not in search.trials:
                    search.trials[name] = trial(one.candidate.plan)
                known[key] = one = replace(one, trial=search.trials[name])
            if not search.within(one) and one.kl > 0:
                family = one.candidate.family
                too_low[family] = max(too_low.get(family, 1.0), one.loss / one.kl)
        if not promising or search.within(known[promising[0]]):
            break
    search.priced = [known.get(id(one), one) for one in search.priced]
    sure = [one for one in known.values() if (one.trial or not one.candidate.plan) and search.within(one)]
    if not sure:
        least = min(known.values(), key=lambda one: one.loss)
        raise InvalidArgument(
            f"{_OP}: expected what can be reached, got {search.target}; the least KL of what meets the rest "
            f"is {least.loss:.3g} ({'measured' if least.trial else 'predicted'}), by {least.candidate}"
        )
    return _prefer_plain(search, sure)


def _finalists(order: Sequence[int], known: dict[int, Considered], count: int) -> list[int]:
    """The best of each family in that order; a retrofit without int8 cache and no retrofit among them."""
    heads: dict[tuple[str, ...], int] = {}
    for key in order:
        heads.setdefault(known[key].candidate.family, key)
    firsts = list(heads.values())
    chosen = firsts[:count]
    candidates = {key: known[key].candidate for key in firsts}
    for kind in (
        [key for key, c in candidates.items() if c.retrofit and not c.kv_int8],
        [key for key, c in candidates.items() if not c.retrofit],
    ):
        if kind and kind[0] not in chosen:
            chosen.append(kind[0])
    return chosen


def _prefer_plain(search: _Search, sure: Sequence[Considered]) -> Considered:
    """The best; but what leaves shapes alone, where the difference may be chance."""
    best = min(sure, key=search.rank)
    for one in sorted(sure, key=search.rank):
        if one.candidate.retrofit or search.target.only_kl:
            continue
        chance = math.hypot(one.standard_error, best.standard_error)
        return one if one.loss <= best.loss + chance else best
    return best


def _misses(target: Target, one: Considered) -> list[str]:
    """Names of what it does not meet, the loss aside."""
    misses = []
    if target.bytes is not None and one.bytes > target.bytes:
        misses.append("too large")
    if target.kv_bytes_per_token is not None and one.kv_bytes_per_token > target.kv_bytes_per_token:
        misses.append("cache too large")
    if target.tokens_per_second is not None and (one.tokens_per_second or 0.0) < target.tokens_per_second:
        misses.append("too slow")
    return misses


def _check_reachable(target: Target, priced: Sequence[Considered]) -> None:
    if any(not _misses(target, one) for one in priced):
        return
    best: list[str] = []
    if target.bytes is not None:
        least = min(priced, key=lambda one: one.bytes)
        best.append(f"the fewest bytes are {least.bytes} ({least.bytes / 1e6:.4g} MB), by {least.candidate}")
    if target.kv_bytes_per_token is not None:
        least = min(priced, key=lambda one: one.kv_bytes_per_token)
        best.append(f"the smallest cache has {least.kv_bytes_per_token} bytes a token, by {least.candidate}")
    if target.tokens_per_second is not None:
        most = max(priced, key=lambda one: one.tokens_per_second or 0.0)
        best.append(f"the most is {most.tokens_per_second:.4g} tokens/s, by {most.candidate}")
    raise InvalidArgument(
        f"{_OP}: expected what can be reached, got {target}; {'; '.join(best)}"
        + ("; and all together" if len(best) > 1 else "")
        + " is what shapes down to a half and 4 bits come to; take a smaller model, or ask for less"
    )


def _planned(search: _Search, best: Considered, whole: Considered) -> Planned:
    chosen = replace(best, verdict="chosen")
    told = [one for one in search.priced if one.candidate != best.candidate and _told(search, one)]
    told.sort(key=lambda one: (bool(_misses(search.target, one)), search.rank(one)))
    told = [replace(one, verdict=_verdict(search, one, chosen)) for one in told]
    meeting = [one for one in told if not _misses(search.target, one) and search.within(one)]
    plan = chosen.candidate.plan
    return Planned(
        source=search.source,
        target=search.target,
        plan=plan if plan else None,
        kv_int8=chosen.candidate.kv_int8,
        frontier=_frontier(search, [chosen, *told]),
        advice=advice(search.target, chosen, whole, meeting),
        predicted={
            "bytes": chosen.bytes,
            "kv_bytes_per_token": chosen.kv_bytes_per_token,
            "tokens_per_second": chosen.tokens_per_second,
            "kl": chosen.kl,
        },
        chosen=chosen,
        considered=[chosen, *told],
        trials=list(search.trials.values()),
        losses=search.losses,
    )


def _told(search: _Search, one: Considered) -> bool:
    """Whether it is told about by name: what was measured, and all that is the honest alternative."""
    limit = search.target.kv_bytes_per_token or 0
    if one.candidate.retrofit and one.candidate.kv_int8 and 2 * one.kv_bytes_per_token <= limit:
        return False  # meets the target without an int8 cache, too, and loses less
    edit = one.candidate.plan.quantize
    uniform = not one.candidate.retrofit and (edit is None or not edit.layer_bits)
    return one.trial is not None or uniform


def _verdict(search: _Search, one: Considered, chosen: Considered) -> str:
    if misses := _misses(search.target, one):
        return ", ".join(misses)
    if not search.within(one):
        return "loses too much"
    if search.target.only_kl:
        return "larger" if one.bytes > chosen.bytes else "not measured"
    if one.loss > chosen.loss:
        return "loses more"
    return "no better for sure, and changes shapes" if one.candidate.retrofit else "not measured"


def _frontier(search: _Search, told: Sequence[Considered]) -> list[Point]:
    """What nothing beats in size and loss, thinned out, and what is told about."""
    cache = search.target.kv_bytes_per_token is not None

    def weight(one: Considered) -> int:
        return one.kv_bytes_per_token if cache else one.bytes

    best: list[Considered] = []
    for one in sorted(search.priced, key=lambda c: (weight(c), c.loss)):
        if not best or one.loss < best[-1].loss:
            best.append(one)
    step = max(1, len(best) // _FRONTIER)
    named = [one.candidate for one in told]
    points = [one.point() for one in [*best[::step], best[-1]] if one.candidate not in named]
    return list(dict.fromkeys([*(one.point() for one in told), *points]))


def _speeds(
    model: Model,
    space: Space,
    wanted: CostModel | bool,
    given: CostModel | bool,
    scratch: Path | None,
    progress: Progress | None,
) -> DecodeSpeed | None:
    if not wanted:
        return None
    config = config_of(model.path)
    if isinstance(given, CostModel):
        return DecodeSpeed(given, config, model.config)
    # Layers and head have costs of their own, so that every pair is known when each was measured once.
    formats = [Format()]
    if space.bits:
        formats += (
            [Format(8, head="int8"), Format(4, head="int4")] if space.head_bits else [Format(8), Format(4)]
        )
    costs = CostModel.fit(model, formats, scratch=scratch, progress=progress)
    return DecodeSpeed(costs, config, model.config)


def _key(plan: Plan) -> str:
    return plan.to_json()
