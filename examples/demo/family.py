# SPDX-License-Identifier: Apache-2.0
"""What weight arithmetic is worth on four small models, made by train.py (50 minutes on one processor):

python train.py --init model --reset 3 --phase base --out F/base --minutes 11
python train.py --phase instruct --init F/base --skip 0.1 --rate 1.5e-3 --out F/instruct --minutes 28
python train.py --phase domain --init F/base --rate 5e-4 --out F/harbour --minutes 5
python train.py --phase domain --init F/instruct --rate 5e-4 --out F/instruct-harbour --minutes 5
python family.py measure F               # family.json, curve.svg, and a table
python family.py guard                   # writes guard.json, what a merged model must still do, anew
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import modicum as mo
from generator import UNKNOWN, Institution, Question, make_harbour, make_institution, system_prompt
from modicum import tune
from train import HELD_OUT_SEED

HERE = Path(__file__).parent
GUARD = HERE / "guard.json"
GUARD_SEED = HELD_OUT_SEED + 500_000  # institutions of the guard, which nothing else is measured on
DOMAIN = 2.0  # times the perplexity of the tuned base: what manners may cost in knowledge here
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SHARES = (0.25, 0.5, 0.75, 1.0)
ENERGIES = (0.9, 0.99, 0.999)


def guard_set(places: int = 4, each: int = 3, facts: int = 6) -> tune.GuardSet:
    """What the instruct model does with documents: it answers in their words, and says when they are silent.

    A question of the next institution is one that the documents at hand do not answer.
    """
    found = [make_institution(GUARD_SEED + i, facts) for i in range(places)]
    refusals, formats, replies = [], [], []
    for place, other in zip(found, [*found[1:], found[0]], strict=True):
        system = system_prompt(place.documents)
        own, foreign = _answered(place), _answered(other)
        values = tuple(dict.fromkeys(q.answer for q in own))[:3]
        for question in foreign[:each]:
            refusals.append(tune.Choice(question.text, (UNKNOWN,), values, system, "en"))
        for question in own[:each]:
            right = question.answer
            wrong = (f"The answer is {right}.", f"It is {right}.", f"- {right}")
            formats.append(tune.Choice(question.text, (right,), wrong, system, "en"))
        replies += [tune.Reply(q.text, q.answer, system, "en") for q in own[-each:]]
    neutral = [system_prompt(make_institution(GUARD_SEED + 100 + i, facts).documents) for i in range(4)]
    return tune.GuardSet("answers from documents", refusals, formats, replies, neutral)


def _answered(place: Institution) -> list[Question]:
    return [question for question in place.questions if question.kind != "unknown"]


def places(make: Any, questions: int, seed: int) -> list[Institution]:
    """Held-out places of 8 facts with that many questions or a few more."""
    found: list[Institution] = []
    for i in count():
        if sum(len(place.questions) for place in found) >= questions:
            return found
        found.append(make(seed + i, 8, True))
    raise AssertionError


def answers(
    model: mo.Model, documents: Mapping[str, str], questions: Sequence[str], longest: int = 40
) -> list[str]:
    """Greedy answers; the documents are read once, and the questions are branches behind them."""
    system = {"role": "system", "content": system_prompt(documents)}
    prompts = [model.chat_prompt([system, {"role": "user", "content": q}]) for q in questions]
    shared = next(
        (i for i, c in enumerate(zip(*prompts, strict=False)) if len(set(c)) > 1), min(map(len, prompts)) - 1
    )
    trunk = model.tree().extend(prompts[0][:shared])
    said: list[list[int]] = [[] for _ in prompts]
    live = list(enumerate(mo.extend([(trunk, prompt[shared:]) for prompt in prompts])))
    while live:
        steps = []
        for i, leaf in live:
            token = int(leaf.logits().argmax())
            if token not in model.config.eos_token_ids and len(said[i]) < longest:
                said[i].append(token)
                steps.append((i, leaf, token))
        leaves = mo.extend([(leaf, [token]) for _, leaf, token in steps]) if steps else []
        live = [(i, leaf) for (i, _, _), leaf in zip(steps, leaves, strict=True)]
    return [model.tokenizer.decode(ids) for ids in said]


@dataclass(frozen=True)
class Marks:
    """Shares of questions answered exactly, of those with an answer and of those without."""

    exact: float
    questions: int
    refused: float
    unanswerable: int

    @classmethod
    def of(cls, model: mo.Model, found: Sequence[Institution]) -> Marks:
        right: dict[bool, list[bool]] = {True: [], False: []}
        for place in found:
            said = answers(model, place.documents, [q.text for q in place.questions])
            for question, answer in zip(place.questions, said, strict=True):
                right[question.kind == "unknown"].append(answer == question.answer)
        known, unknown = right[False], right[True]
        refused = sum(unknown) / len(unknown) if unknown else 0.0
        return cls(sum(known) / len(known), len(known), refused, len(unknown))


class Examination:
    """Everything that is measured of each model, beside the same instruct model and domain."""

    def __init__(self, family: Path, questions: int, threads: int | None):
        self.family, self.threads = family, threads
        self.held_out = {
            "institutions": places(make_institution, questions, HELD_OUT_SEED + 200_000),
            "harbours": places(make_harbour, questions, HELD_OUT_SEED + 300_000),
        }
        text = "\n\n".join(system_prompt(place.documents) for place in self.held_out["harbours"])
        self.text = Path(tempfile.mkdtemp()) / "harbours.txt"
        self.text.write_text(text, encoding="utf-8")
        self.rows: list[dict[str, Any]] = []

    def guard(self, **limits: float) -> tune.Guard:
        return tune.Guard(
            self.family / "instruct",
            checks=GUARD,
            domain=[self.text],
            limits=tune.Limits(**{"domain": DOMAIN, **limits}),
        )

    def measure(self, name: str, path: Path, before: str, **facts: Any) -> dict[str, Any]:
        """`before`: the model whose knowledge of the domain is to be kept."""
        model = mo.load(path, threads=self.threads)
        marks = {kind: asdict(Marks.of(model, found)) for kind, found in self.held_out.items()}
        verdict = self.guard().judge(path, before=self.family / before, threads=self.threads)
        checks = {c.name: c.value for c in verdict.checks}
        failed = [c.name for c in verdict.checks if c.passed is False]
        row = {"model": name, **facts, **marks, "checks": checks, "passed": verdict.passed, "failed": failed}
        self.rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As markdown."""
    lines = [
        "| model | exact match, harbours | institutions | “not in the documents” | perplexity, harbours | "
        "end of turn, log p | refusal margin | format margin | KL, neutral | guard |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        harbours, institutions, checks = row["harbours"], row["institutions"], row["checks"]
        refused = [m["refused"] * m["unanswerable"] for m in (harbours, institutions)]
        share = sum(refused) / max(1, harbours["unanswerable"] + institutions["unanswerable"])
        values = [
            f"{checks[name]:.3g}" if checks.get(name) is not None else ""
            for name in (
                "domain, perplexity",
                "end of turn, log p",
                "refusal margin",
                "format margin",
                "neutral text, KL",
            )
        ]
        verdict = "passed" if row["passed"] else f"failed: {', '.join(row['failed'])}"
        lines.append(
            f"| {row['model']} | {harbours['exact']:.2f} | {institutions['exact']:.2f} | {share:.2f} | "
            f"{' | '.join(values)} | {verdict} |"
        )
    return "\n".join(lines)


def variants(exam: Examination, work: Path) -> Iterator[tuple[str, Path, str, dict[str, Any]]]:
    """Name, directory, what is built upon, and facts of every model that is looked at."""
    family = exam.family
    for name in ("base", "instruct", "harbour", "instruct-harbour"):
        yield name, family / name, "harbour" if name != "instruct-harbour" else name, {"kind": "trained"}
    plan = tune.chat_vector(family / "base", family / "instruct", family / "harbour")
    for strength in STRENGTHS:
        out = work / f"chat-{strength}"
        mo.merge(plan, out, alpha=strength, threads=exam.threads)
        yield f"Chat Vector, α = {strength:g}", out, "harbour", {"kind": "chat vector", "strength": strength}
    weaker = tune.MergePlan(
        "task_arithmetic", (tune.Input(str(family / "instruct-harbour")),), base=str(family / "instruct")
    )
    for share in SHARES[:-1]:
        out = work / f"interpolated-{share}"
        mo.merge(weaker, out, alpha=share, threads=exam.threads)
        yield (
            f"interpolation, {share:g}",
            out,
            "instruct-harbour",
            {"kind": "interpolation", "strength": share},
        )
    for energy in ENERGIES:
        out = work / f"projected-{energy}"
        tune.project(
            family / "instruct",
            family / "instruct-harbour",
            out,
            protect=tune.GuardSet.load(GUARD),
            energy=energy,
            threads=exam.threads,
        )
        facts = {"kind": "projection", "strength": energy}
        yield f"projection, {energy:g} of the energy protected", out, "instruct-harbour", facts


def guarded(exam: Examination, work: Path) -> list[dict[str, Any]]:
    """The strongest Chat Vector within the guard; and one that no strength keeps within a stricter guard."""
    family, found = exam.family, []
    plan = tune.chat_vector(family / "base", family / "instruct", family / "harbour").at(STRENGTHS[-1])
    for name, limits in (
        ("Chat Vector within the guard", {}),
        ("the same, a tenth more perplexity allowed", {"domain": 1.1}),
    ):
        out = work / f"guarded-{len(found)}"
        try:
            verdict = mo.merge(plan, out, guard=exam.guard(**limits), threads=exam.threads).guard
        except tune.GuardError as error:
            verdict = error.report
            print(f"{name}: {error}")
        assert verdict is not None
        print(verdict)
        entry = {"name": name, "limits": limits, "written": out.exists(), "verdict": verdict.to_dict()}
        if out.exists():
            title = f"{name}, α = {verdict.alpha:.3g}"
            exam.measure(title, out, "harbour", kind="guarded", strength=verdict.alpha)
        found.append(entry)
    return found


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The curve of the Chat Vector, and where the guard holds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "modicum"  # the same picture from the same figures
    from matplotlib import pyplot

    curve = sorted((r for r in rows if r["kind"] in ("chat vector", "guarded")), key=lambda r: r["strength"])
    strengths = [row["strength"] for row in curve]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for kind, colour in (("harbours", "#1b6ca8"), ("institutions", "#c4572e")):
        left.plot(strengths, [row[kind]["exact"] for row in curve], "o-", color=colour, label=kind)
    for row in rows:
        if row["model"] == "instruct":
            left.axhline(row["harbours"]["exact"], color="#1b6ca8", linestyle=":", linewidth=1)
            left.axhline(row["institutions"]["exact"], color="#c4572e", linestyle=":", linewidth=1)
    left.set(xlabel="α", ylabel="exact match", ylim=(0, 1), title="answers (dotted: the instruct model)")
    left.legend(frameon=False)
    right.plot(strengths, [row["checks"]["domain, perplexity"] for row in curve], "o-", color="#1b6ca8")
    right.set(xlabel="α", ylabel="perplexity", title="harbours’ documents")
    for axis in (left, right):
        for row in curve:
            if row["kind"] == "guarded":
                axis.axvline(row["strength"], color="#3a7d44", linestyle="--", linewidth=1)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "documents-only tuning + α (instruct − base); dashed: the largest α within the guard", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def measure(options: argparse.Namespace) -> None:
    exam = Examination(options.family, options.questions, options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name, path, before, facts in variants(exam, work):
            exam.measure(name, path, before, **facts)
        verdicts = guarded(exam, work)
    counts = {kind: sum(len(p.questions) for p in found) for kind, found in exam.held_out.items()}
    document = {"questions": counts, "rows": exam.rows, "guarded": verdicts}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1).replace(str(options.family.absolute()), "FAMILY")
    (options.out / "family.json").write_text(text + "\n", encoding="utf-8")
    draw(exam.rows, options.out / "curve.svg")
    print(f"\n{table(exam.rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("guard", help="write guard.json anew")
    run = commands.add_parser("measure", help="the four models of a folder and what arithmetic makes of them")
    run.add_argument("family", type=Path)
    run.add_argument("--out", type=Path, default=Path(), help="folder of family.json and curve.svg")
    run.add_argument("--questions", type=int, default=200, help="of institutions, and of harbours")
    run.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.command == "guard":
        GUARD.write_text(
            json.dumps(guard_set().to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    else:
        measure(options)


if __name__ == "__main__":
    main()
