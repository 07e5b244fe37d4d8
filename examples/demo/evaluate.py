"""Measures a finished model with transformers, by greedy decoding, on institutions training never showed.

python evaluate.py --model model              # exact match by facts and by kind, with and without documents
python evaluate.py --model model --handbook   # the demo's own questions
python evaluate.py --model base --only perplexity
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from generator import UNKNOWN, Institution, make_institution, system_prompt
from train import HELD_OUT_SEED
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

HERE = Path(__file__).parent


class Reader:
    """A model that reads documents once and answers many questions from the same cache."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, documents: Mapping[str, str], question: str) -> list[int]:
        messages = [
            {"role": "system", "content": system_prompt(documents)},
            {"role": "user", "content": question},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.no_grad()
    def answers(self, documents: Mapping[str, str], questions: list[str], longest: int = 40) -> list[str]:
        prompts = [self.prompt(documents, question) for question in questions]
        shared = next(
            (i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1),
            min(map(len, prompts)) - 1,
        )
        shared = min(shared, min(map(len, prompts)) - 1)
        cache = DynamicCache()
        self.model(torch.tensor([prompts[0][:shared]]), past_key_values=cache)
        out = []
        for prompt in prompts:
            out.append(self.greedy(prompt[shared:], copy.deepcopy(cache), longest))
        return out

    def greedy(self, tokens: list[int], cache: DynamicCache, longest: int) -> str:
        answer: list[int] = []
        while len(answer) < longest:
            token = int(self.model(torch.tensor([tokens]), past_key_values=cache).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            answer.append(token)
            tokens = [token]
        return self.tokenizer.decode(answer)

    @torch.no_grad()
    def perplexity(self, texts: list[str], longest: int = 1024) -> float:
        loss = count = 0.0
        for text in texts:
            ids = torch.tensor(
                [self.tokenizer.encode(self.tokenizer.bos_token + text, add_special_tokens=False)[:longest]]
            )
            loss += float(self.model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(loss / count)


def institutions(facts: int, questions: int, new_names: bool) -> list[Institution]:
    """Held-out institutions with `questions` questions or a few more between them."""
    places: list[Institution] = []
    while sum(len(p.questions) for p in places) < questions:
        places.append(make_institution(HELD_OUT_SEED + 1000 + len(places), facts, new_names))
    return places


def exact_match(reader: Reader, places: list[Institution], with_documents: bool) -> dict[str, list[bool]]:
    """Right or wrong by kind of question."""
    marks: dict[str, list[bool]] = defaultdict(list)
    for place in places:
        given = reader.answers(place.documents if with_documents else {}, [q.text for q in place.questions])
        for question, answer in zip(place.questions, given, strict=True):
            marks[question.kind].append(answer == question.answer)
    return marks


def mean(marks: Mapping[str, list[bool]], unknown: bool = False) -> tuple[float, int]:
    """Share of right answers and their number, of the questions with an answer (or of those without)."""
    flat = [m for kind, some in marks.items() for m in some if (kind == "unknown") == unknown]
    return (sum(flat) / len(flat) if flat else math.nan), len(flat)


def report(reader: Reader, questions: int) -> None:
    print("| facts in the documents | names of new syllables | questions | exact match | without documents |")
    print("| ---: | --- | ---: | ---: | ---: |")
    everything: dict[str, list[bool]] = defaultdict(list)
    for new_names in ("no", "yes"):
        for facts in (4, 8, 16, 24, 36):
            places = institutions(facts, questions, new_names == "yes")
            marks, blind = exact_match(reader, places, True), exact_match(reader, places, False)
            for kind, some in marks.items():
                everything[kind] += some
            share, count = mean(marks)
            print(
                f"| {facts} | {new_names} | {count} | {share:.3f} | {mean(blind)[0]:.3f} |",
                flush=True,
            )
    print("\n| kind of question | questions | exact match |\n| --- | ---: | ---: |")
    for kind, some in sorted(everything.items(), key=lambda item: -len(item[1])):
        label = f"{kind} (the right answer is `{UNKNOWN}`)" if kind == "unknown" else kind
        print(f"| {label} | {len(some)} | {sum(some) / len(some):.3f} |")


def handbook(reader: Reader) -> bool:
    """Asks the demo's questions over the whole handbook; true when every answer is exact."""
    documents = {path.name: path.read_text() for path in sorted((HERE / "handbook").glob("*.md"))}
    questions = json.loads((HERE / "questions.json").read_text())
    print(f"{len(reader.prompt(documents, questions[0]['question']))} tokens of prompt")
    given = reader.answers(documents, [q["question"] for q in questions])
    for question, answer in zip(questions, given, strict=True):
        mark = "right" if answer == question["answer"] else f"WRONG, expected {question['answer']}"
        print(f"{question['question']}  ->  {answer}  [{mark}]")
    return all(a == q["answer"] for q, a in zip(questions, given, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--questions", type=int, default=150, help="questions per line of the table")
    parser.add_argument("--handbook", action="store_true")
    parser.add_argument("--only", choices=["exact", "perplexity"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reader = Reader(options.model)
    if options.handbook:
        raise SystemExit(0 if handbook(reader) else 1)
    if options.only != "exact":
        texts = [system_prompt(p.documents) for p in institutions(12, 600, False)]
        print(
            f"perplexity of {len(texts)} held-out institutions' documents: {reader.perplexity(texts):.2f}\n"
        )
    if options.only != "perplexity":
        report(reader, options.questions)


if __name__ == "__main__":
    main()
