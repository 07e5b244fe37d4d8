"""Batches for training: one institution per row, its documents and then as many questions as fit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from generator import Institution, make_drill, make_harbour, make_institution, render, system_prompt
from tokenizers import Tokenizer
from tokens import BOS, END, PAD, prompt_head, prompt_question
from torch import Tensor
from torch.utils.data import IterableDataset

# Where an answer's token counts 1: documents and questions less; an answer's first token more, because
# finding the place to copy from is learnt late, and going on from there early.
TEXT_WEIGHT, FIRST_WEIGHT = 0.1, 3.0


@dataclass(frozen=True)
class Stage:
    """From `start` (share of the run) on, rows of `length` tokens with `facts` facts; several may mix."""

    start: float
    length: int
    facts: tuple[int, int]
    share: float = 1.0
    drill: float = 0.0  # share of rows that only exercise the binding of values to things


# Short rows first: copying and binding are learnt at once from few facts and then stretched to many.
CURRICULUM = (
    Stage(0.0, 256, (2, 6), drill=0.8),
    Stage(0.25, 256, (3, 8), 0.6, drill=0.5),
    Stage(0.25, 128, (2, 4), 0.4, drill=0.5),
    Stage(0.4, 512, (8, 18), 0.45, drill=0.2),
    Stage(0.4, 256, (3, 8), 0.3, drill=0.2),
    Stage(0.4, 1024, (18, 38), 0.25, drill=0.1),
)


def stage_at(progress: float, rng: random.Random, curriculum: tuple[Stage, ...]) -> Stage:
    begin = max(s.start for s in curriculum if s.start <= progress)
    choices = [s for s in curriculum if s.start == begin]
    return rng.choices(choices, [s.share for s in choices])[0]


def encode_dialogue(
    tokenizer: Tokenizer, place: Institution, length: int
) -> tuple[list[int], list[bool]] | None:
    """Tokens and whether each belongs to an answer; None where not even one question fits."""
    texts = [prompt_head(place.documents)]
    for question in place.questions:
        texts += [prompt_question(question.text), question.answer + "<|end|>", "\n"]
    pieces = [e.ids for e in tokenizer.encode_batch_fast(texts)]
    ids, answer = list(pieces[0]), [False] * len(pieces[0])
    for at in range(1, len(pieces), 3):
        turn = pieces[at : at + 3]
        if len(ids) + sum(map(len, turn)) > length:
            break
        for piece, is_answer in zip(turn, (False, True, False), strict=True):
            ids += piece
            answer += [is_answer] * len(piece)
    return (ids, answer) if any(answer) else None


def encode_text(
    tokenizer: Tokenizer, seed: int, facts: int, length: int, domain: bool = False
) -> tuple[list[int], list[bool]]:
    """Documents alone, told twice in different words, which already rewards looking back."""
    place = (make_harbour if domain else make_institution)(seed, max(1, facts * 2 // 3))
    again = render(place, random.Random(seed))
    ids = tokenizer.encode(f"<|bos|>{system_prompt(place.documents)}{system_prompt(again)}<|end|>").ids[
        :length
    ]
    return ids, [True] * len(ids)


class Batches(IterableDataset):
    """Endless batches; the consumer reports how far it is through `progress`, one shared number."""

    def __init__(
        self,
        tokenizer_json: str,
        seed: int,
        phase: str,
        tokens: int,
        progress: Tensor,
        curriculum: tuple[Stage, ...] = CURRICULUM,
    ):
        self.json, self.seed, self.phase, self.tokens = tokenizer_json, seed, phase, tokens
        self.progress, self.curriculum = progress, curriculum

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        torch.set_num_threads(1)
        tokenizer, rng = Tokenizer.from_str(self.json), random.Random(self.seed)
        while True:
            yield self.batch(tokenizer, rng, stage_at(float(self.progress), rng, self.curriculum))

    def batch(
        self, tokenizer: Tokenizer, rng: random.Random, stage: Stage
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = max(1, self.tokens // stage.length)
        ids = torch.full((rows, stage.length), PAD)
        answer = torch.zeros((rows, stage.length), dtype=torch.bool)
        for row in range(rows):
            found = None
            while found is None:
                seed, facts = rng.randrange(2**40), rng.randint(*stage.facts)
                make = make_drill if rng.random() < stage.drill else make_institution
                found = (
                    encode_dialogue(tokenizer, make(seed, facts), stage.length)
                    if self.phase == "instruct"
                    else encode_text(tokenizer, seed, facts, stage.length, self.phase == "domain")
                )
            ids[row, : len(found[0])] = torch.tensor(found[0])
            answer[row, : len(found[0])] = torch.tensor(found[1])
        return select(ids, answer, 0.25 if self.phase == "instruct" else 0.75, rng)


def select(
    ids: Tensor, answer: Tensor, share: float, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses a fixed number of positions to learn from: all answers first, then a sample of the text.

    A fixed number keeps every batch of one shape, as torch.compile wants, and saves most of the
    output layer.
    """
    targets = torch.roll(ids, -1, 1)
    targets[:, -1] = PAD
    is_answer = torch.roll(answer, -1, 1)
    is_answer[:, -1] = False
    rank = torch.rand(ids.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    rank += is_answer * 2.0 - (targets == PAD) * 2.0 - (ids == PAD) * 2.0
    where = rank.flatten().topk(int(ids.numel() * share), sorted=False).indices.sort().values
    first = is_answer & ~answer
    weight = torch.where(first, FIRST_WEIGHT, torch.where(is_answer, 1.0, TEXT_WEIGHT))
    weight *= (targets != PAD) & (ids != PAD)
    return ids, where, targets.flatten()[where], weight.flatten()[where]


def questions_as_rows(
    tokenizer: Tokenizer, place: Institution, with_documents: bool
) -> list[tuple[list[int], int]]:
    """Each question alone behind the documents (or behind none): tokens and where the answer starts."""
    head = prompt_head(place.documents if with_documents else {})
    rows = []
    for question in place.questions:
        prompt = tokenizer.encode(head + prompt_question(question.text)).ids
        rows.append((prompt + tokenizer.encode(question.answer + "<|end|>").ids, len(prompt)))
    return rows


__all__ = [
    "BOS",
    "CURRICULUM",
    "END",
    "Batches",
    "Stage",
    "encode_dialogue",
    "encode_text",
    "questions_as_rows",
]
