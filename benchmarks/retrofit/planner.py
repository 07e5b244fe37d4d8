#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the planner predicts of plans beside what they turn out to be: KL, bytes and speed.

Predictions rest on one survey and on trials of single edits; the plans here combine edits, or take amounts
between those that were tried, and are carried out with as much text as a trial. Then the planner chooses for
a target, and its frontier is printed.

    python benchmarks/retrofit/planner.py --source MODEL --text TEXT
    python benchmarks/retrofit/planner.py --source MODEL --text TEXT --speed --target bytes=300MB
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import modicum as mo
from modicum.retrofit import Calibration, CostModel, Depth, Ffn, Format, Kv, Plan, Planned, Quantize, Target
from modicum.retrofit.candidates import Space
from modicum.retrofit.loss_model import ErrorCurves, LossModel, Trial
from modicum.retrofit.plan_costs import DecodeSpeed, WeightBytes
from modicum.retrofit.planner import choose
from modicum.retrofit.trials import Trials, survey


def plans(space: Space, errors: ErrorCurves) -> list[Plan]:
    """None of which is a trial of the fit."""
    tried = {str(plan) for plan in space.trials({n: errors.first_of(n) for n in space.drops})}
    between = [width for width in space.widths if str(Plan(ffn=Ffn(width))) not in tried]
    mild = space.widths[len(space.widths) // 3] if space.widths else None
    ffn = Ffn(mild) if mild else None
    kv = Kv(space.kv_heads[0]) if space.kv_heads else None
    half = dict.fromkeys(sorted(errors.eight_bits_first()[: space.layers // 2]), 8)
    depth = Depth(errors.first_of(1)) if space.drops else None
    found = [
        Plan(ffn=Ffn(between[len(between) // 2])) if between else Plan(),
        Plan(quantize=Quantize(4, layer_bits=half)),
        Plan(ffn=ffn, quantize=Quantize(8)),
        Plan(ffn=ffn, quantize=Quantize(4)),
        Plan(kv=kv, ffn=ffn),
        Plan(depth=depth, ffn=ffn),
        Plan(kv=kv, ffn=ffn, quantize=Quantize(8)),
        Plan(depth=depth, kv=kv, ffn=ffn, quantize=Quantize(4, layer_bits=half)),
    ]
    different = {str(plan): plan for plan in found if plan and str(plan) not in tried}
    return list(different.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--target", help="as parse_target reads it; default: 45 %% of the source's bytes")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--trial-tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, help="of a sequence")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speed", action="store_true", help="fits a cost model and measures (minutes)")
    options = parser.parse_args()
    model = mo.load(options.source, threads=options.threads)
    calibration = Calibration.from_text(
        model, options.text, tokens=options.tokens, length=options.length, held_out=0.25
    )
    costs = None
    if options.speed:
        costs = CostModel.fit(model, [Format(8, head="int8"), Format(4, head="int4")])
    target = mo.retrofit.parse_target(
        options.target or f"bytes={int(0.45 * WeightBytes(model.path, model.config)(Plan()))}"
    )
    measured = Measured(model, calibration, costs, options, target)
    predictions(measured)
    begin, before = time.perf_counter(), len(measured.known)
    planned = measured.plan(target)
    seconds, more = time.perf_counter() - begin, len(measured.known) - before
    print(f"\n{planned}\n\n{more} more trials of the best, {seconds:.1f} s")
    frontier(planned)


class Measured:
    """What predictions and the plan share: a survey, and each trial once."""

    def __init__(
        self,
        model: mo.Model,
        calibration: Calibration,
        costs: CostModel | None,
        options: argparse.Namespace,
        target: Target,
    ) -> None:
        self.model = model
        self.space = Space.of(model.config, target, kv_int8=True)
        self.trials = Trials(model, calibration, tokens=options.trial_tokens, threads=options.threads)
        self.known: dict[str, Trial] = {}
        begin = time.perf_counter()
        self.survey = survey(model, calibration, self.space, threads=options.threads)
        print(
            f"{model.path.name}: survey of {calibration.tokens} tokens {time.perf_counter() - begin:.1f} s, "
            f"{model.threads} threads"
        )
        self.errors = ErrorCurves(
            self.survey, width=model.config.intermediate_size, kv_heads=model.config.num_key_value_heads
        )
        self.weigh = WeightBytes(model.path, model.config)
        config = json.loads((model.path / "config.json").read_text())
        self.speed = DecodeSpeed(costs, config, model.config) if costs else None

    def trial(self, plan: Plan) -> Trial:
        if str(plan) not in self.known:
            self.known[str(plan)] = self.trials(plan)
        return self.known[str(plan)]

    def plan(self, target: Target) -> Planned:
        return choose(
            target,
            self.space,
            self.model.config,
            source=str(self.model.path),
            weight_bytes=self.weigh,
            speed=self.speed,
            survey=lambda: self.survey,
            trial=self.trial,
            finalists=3,
        )


def predictions(measured: Measured) -> None:
    """A line for each plan, and how far predictions are off."""
    space, errors, speed, model = measured.space, measured.errors, measured.speed, measured.model
    begin = time.perf_counter()
    fitted = space.trials({n: errors.first_of(n) for n in space.drops})
    losses = LossModel.fit(errors, [measured.trial(plan) for plan in fitted])
    print(f"{len(fitted)} trials {time.perf_counter() - begin:.1f} s")
    off = []
    print(f"{'plan':<62}{'KL predicted':>13}{'measured':>20}{'ratio':>7}{'MB predicted':>14}{'made':>9}")
    for plan in plans(space, errors):
        kl = losses.kl(plan)
        with measured.trials.made(plan) as (out, report):
            student = mo.load(out, threads=model.threads)
            found = mo.retrofit.compare(model, student, measured.trials.held_out)
            both = mo.retrofit.measure([model, student]) if speed else None
        off.append(max(kl / found.kl, found.kl / kl))
        error = f"{found.kl:.4g} ± {found.kl_standard_error or 0:.1g}"
        line = f"{plan!s:<62}{kl:>13.4g}{error:>20}{kl / found.kl:>7.2f}"
        line += f"{measured.weigh(plan) / 1e6:>14.3f}{report['bytes_after'] / 1e6:>9.3f}"
        if speed is not None and both is not None:
            line += f"  decode x{speed(plan) / speed(Plan()):.2f} predicted, "
            line += f"x{mo.retrofit.SpeedChange(*both).decode} measured"
        print(line, flush=True)
    if off:
        print(
            f"predictions of KL are off by a factor of {statistics.median(off):.2f} (median), "
            f"{max(off):.2f} at most"
        )


def frontier(planned: Planned) -> None:
    print(f"\n{'frontier':<62}{'MB':>9}{'KV B/token':>12}{'KL':>10}")
    for point in sorted(planned.frontier, key=lambda point: point.bytes):
        mark = "  <- chosen" if point.chosen else ""
        loss = "-" if point.loss is None else f"{point.loss:.3g}"
        print(f"{point.name:<62}{point.bytes / 1e6:>9.3f}{point.kv_bytes_per_token:>12}{loss:>10}{mark}")


if __name__ == "__main__":
    main()
