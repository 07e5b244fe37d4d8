# SPDX-License-Identifier: Apache-2.0
"""Writes golden/group_beam.json: diverse beam search as the last transformers that had it gives it.

    python -m venv old && old/bin/pip install torch==2.13.0 transformers==4.56.2
    old/bin/python tests/python/make_group_beam_golden.py

Left out are cases in which it matters that a group's search ended by other rules than transformers 5 has, and
modicum with it, for a single group: a finished group's padding counted as tokens that it chose (here by
suppressing the pad token), the best candidate's score, not the best running beam's, decided whether a group
can improve, and a group that became full in the last step left out hypotheses that the length ended.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hash_model import VOCABULARY, HashModel
from transformers.generation.beam_search import BeamSearchScorer

GOLDEN = Path(__file__).parent / "golden" / "group_beam.json"
PAD = 0
SHAPES = ((2, 2), (4, 2), (4, 4), (6, 2), (6, 3), (12, 4))
PENALTIES = (0.3, 1.0, 20.0)
STOPS = ([], [2])
LENGTH_PENALTIES = (1.0, 0.0, 2.0, -1.0)
EARLY = (False, True, "never")


def cases() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for (beams, groups), penalty, stops in itertools.product(SHAPES, PENALTIES, STOPS):
        for length_penalty, early in itertools.product(LENGTH_PENALTIES, EARLY):
            if random.random() > 0.5:
                continue
            options = {
                "beams": beams,
                "groups": groups,
                "diversity_penalty": penalty,
                "stop_ids": stops,
                "length_penalty": length_penalty,
                "early_stopping": early,
                "max_new_tokens": int(random.choice([3, 9])),
                "num_return": min(beams, 4),
                "suppress": [PAD],
            }
            found.append({"prompt": random.integers(4, VOCABULARY, 3).tolist(), "options": options})
    return found


class Watch:
    """Whether the rules of transformers 5 would have ended a group's search at another point."""

    def __init__(self) -> None:
        self.differs = False
        self.process = BeamSearchScorer.process
        BeamSearchScorer.process = lambda *args, **kwargs: self.watched(*args, **kwargs)

    def watched(self, scorer: Any, ids: Any, *args: Any, group_index: int, **kwargs: Any) -> Any:
        was_done = bool(scorer._done[group_index])
        found = self.process(scorer, ids, *args, group_index=group_index, **kwargs)
        if not was_done:
            hypotheses, length = scorer._beam_hyps[group_index], ids.shape[1] + 1
            is_done = bool(scorer._done[group_index])
            best_running = found["next_beam_scores"].max().item()
            self.differs |= is_done != hypotheses.is_done(best_running, length, kwargs["decoder_prompt_len"])
            self.differs |= is_done and length == hypotheses.max_length
        return found


def generate(model: HashModel, prompt: list[int], options: dict[str, Any]) -> list[Any]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=options["beams"],
        num_beam_groups=options["groups"],
        diversity_penalty=options["diversity_penalty"],
        eos_token_id=options["stop_ids"] or None,
        length_penalty=options["length_penalty"],
        early_stopping=options["early_stopping"],
        max_new_tokens=options["max_new_tokens"],
        num_return_sequences=options["num_return"],
        suppress_tokens=options["suppress"],
        pad_token_id=PAD,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = [[i for i in row[len(prompt) :] if i != PAD] for row in output.sequences.tolist()]
    scores = [round(score, 7) for score in output.sequences_scores.tolist()]
    return [list(pair) for pair in zip(rows, scores, strict=True)]


def main() -> None:
    model = HashModel()
    watch = Watch()
    lines = []
    for case in cases():
        watch.differs = False
        case["hypotheses"] = generate(model, case["prompt"], case["options"])
        if not watch.differs:
            lines.append(json.dumps(case, separators=(",", ":")))
    version = json.dumps(transformers.__version__)
    text = f'{{"transformers": {version}, "cases": [\n' + ",\n".join(lines) + "\n]}\n"
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(text)


if __name__ == "__main__":
    main()
