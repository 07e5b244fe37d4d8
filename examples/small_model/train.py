"""Trains a Llama of 12 million parameters on public text: something real to shrink and to measure on.

    python train.py --data corpora --out small-model --minutes 45
    python train.py --data corpora --out small-model --minutes 45 --resume  # goes on from the last checkpoint
    python train.py --data corpora --out /tmp/tiny --steps 20 --no-compile  # a smoke run

Every attention head has its own keys and values, so there is something to merge.  The run is seeded,
checkpoints itself, and writes an ordinary Hugging Face directory in bf16 with the held-out text beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm import tqdm

from text import read

# The network, its optimizers and the checkpoint's layout are the demo's; its train.py must be found first.
sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
from network import Llama, Shape
from tokens import BOS, END, QWEN2, SPECIALS
from train import MUON, Clock, optimizers, rate_at, write_model

SHAPE = Shape(
    vocab_size=4096,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=32,
    intermediate_size=1024,
    max_position_embeddings=512,
)


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE that puts BOS before every text, as most pretrained models' tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIALS[:3],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[BOS]} $A",
        pair=f"{SPECIALS[BOS]} $A {SPECIALS[BOS]} $B:1",
        special_tokens=[(SPECIALS[BOS], BOS)],
    )
    return tokenizer


def rows(tokenizer: Tokenizer, texts: list[str], length: int, rng: random.Random | None) -> Tensor:
    """Rows of `length` tokens that all begin with BOS and together hold every token of the texts once.

    Texts stand one behind the other as BOS, text, end.  The order is shuffled by `rng`; the last,
    incomplete row is dropped.
    """
    if rng:
        texts = rng.sample(texts, len(texts))
    stream = [token for e in tokenizer.encode_batch_fast(texts) for token in [*e.ids, END]]
    found, at = [], rng.randrange(length) if rng else 0
    while at + length <= len(stream):
        begins = stream[at] == BOS
        found.append(stream[at : at + length] if begins else [BOS, *stream[at : at + length - 1]])
        at += length if begins else length - 1
    return torch.tensor(found)


def batches(tokenizer: Tokenizer, texts: list[str], length: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of `size` rows, each pass over the texts in another order and cut elsewhere."""
    epoch = 0
    while True:
        rng = random.Random(f"{seed} {epoch}")
        every = rows(tokenizer, texts, length, rng)
        if len(every) < size:
            raise SystemExit(f"the text has {len(every)} rows of {length} tokens, a batch needs {size}")
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(rng.randrange(2**31)))
        for group in order.split(size):
            if len(group) == size:
                yield every[group]
        epoch += 1


def next_tokens(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the flattened batch that have a next token worth learning, and that token."""
    where = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, :-1].flatten()
    targets = ids[:, 1:].flatten()
    return where, targets, (targets != BOS).float()


@torch.no_grad()
def perplexity(model: Llama, tokenizer: Tokenizer, texts: list[str], length: int, most: int) -> float:
    """Of the texts cut into at most `most` rows (spread evenly), each read from BOS."""
    every = rows(tokenizer, texts, length, None).to(next(model.parameters()).device)
    every = every[torch.linspace(0, len(every) - 1, min(most, len(every))).long()]
    loss = count = 0.0
    for group in every.split(4):
        where, targets, weights = next_tokens(group)
        loss += float(model(group, where, targets, weights)) * float(weights.sum())
        count += float(weights.sum())
    return math.exp(loss / count)


class Run:
    """The loop, its checkpoints and its notes."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.clock = options, Clock(options.steps, options.minutes)
        self.device = torch.device(options.device)
        self.learn_text, self.held_out = read(options.data)
        self.file = options.out / "checkpoint.pt"
        kept = options.out / "tokenizer.json"
        texts = [text for source in self.learn_text.values() for text in source]
        resumed = options.resume and self.file.exists()
        self.tokenizer = (
            Tokenizer.from_file(str(kept)) if resumed else train_tokenizer(texts, SHAPE.vocab_size)
        )
        self.model = Llama(SHAPE).to(self.device)
        self.optimizers = optimizers(self.model, options.rate)
        self.source = batches(self.tokenizer, texts, options.length, options.rows, options.seed)
        if resumed:
            self.load()
        (options.out / "held_out").mkdir(parents=True, exist_ok=True)
        for name, parts in self.held_out.items():
            lines = (json.dumps({"text": part}, ensure_ascii=False) + "\n" for part in parts)
            (options.out / "held_out" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def load(self) -> None:
        state = torch.load(self.file, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.clock = Clock(**(state["clock"] | {"steps": self.clock.steps, "minutes": self.clock.minutes}))
        for _ in range(self.clock.step):
            next(self.source)

    def save(self, folder: Path, most: int = 8) -> None:
        """Checkpoint, model folder, and what the held-out text says."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "clock": vars(self.clock),
        }
        # Written beside and renamed: a broken run leaves the last whole one.
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)
        write_model(self.model, self.tokenizer, folder)
        self.describe_tokenizer(folder)
        found = {
            name: round(perplexity(self.model, self.tokenizer, parts, self.options.length, most), 3)
            for name, parts in self.held_out.items()
        }
        note = vars(self.clock) | {"held_out_perplexity": found, "rows": most, "seed": self.options.seed}
        (folder / "training.json").write_text(json.dumps(note, indent=2) + "\n")
        tqdm.write(f"step {self.clock.step}, {self.clock.tokens / 1e6:.2f}M tokens, held out: {found}")

    def describe_tokenizer(self, folder: Path) -> None:
        """This tokenizer has no turns of a chat, and says that it adds BOS."""
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings = {
            k: v for k, v in settings.items() if k not in ("chat_template", "additional_special_tokens")
        }
        path.write_text(
            json.dumps(settings | {"add_bos_token": True, "add_eos_token": False}, indent=2) + "\n"
        )
        path = folder / "special_tokens_map.json"
        named = json.loads(path.read_text())
        named.pop("additional_special_tokens", None)
        path.write_text(json.dumps(named, indent=2) + "\n")

    def step(self, learn: object, batch: Tensor) -> float:
        factor = rate_at(self.clock.progress(), self.clock.step, self.options.decay)
        for optimizer, rate in zip(self.optimizers, (MUON, 1.0), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.options.rate * rate * factor
            optimizer.zero_grad()
        loss = learn(batch, *next_tokens(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    def run(self) -> None:
        learn = torch.compile(self.model, dynamic=False) if self.options.compile else self.model
        size = sum(p.numel() for p in self.model.parameters())
        print(f"{size / 1e6:.2f}M parameters", flush=True)
        warm = torch.full((self.options.rows, self.options.length), END, device=self.device)
        learn(warm, *next_tokens(warm)).backward()  # compiles, outside the clock
        bar = tqdm(total=1000, unit="‰", mininterval=20)
        noted, mean = time.monotonic(), None
        while self.clock.progress() < 1:
            begun = time.monotonic()
            loss = self.step(learn, next(self.source).to(self.device))
            self.clock.seconds += time.monotonic() - begun
            self.clock.step += 1
            self.clock.tokens += self.options.rows * self.options.length
            mean = loss if mean is None else 0.95 * mean + 0.05 * loss
            bar.update(int(1000 * self.clock.progress()) - bar.n)
            speed = self.options.rows * self.options.length / (time.monotonic() - begun)
            bar.set_postfix_str(f"step {self.clock.step} loss {mean:.3f} {speed:.0f} tokens/s", refresh=False)
            if time.monotonic() - noted > self.options.note * 60:
                self.save(self.options.out / f"step-{self.clock.step}")
                noted = time.monotonic()
        bar.close()
        self.save(self.options.out, most=10_000)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its checkpoints")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--rows", type=int, default=8, help="per step")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.5, help="share of the run over which the rate falls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", type=float, default=10, help="minutes between checkpoints")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    Run(options).run()


if __name__ == "__main__":
    main()
