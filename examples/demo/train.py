"""Trains the demo model: first on documents alone (base), then on questions about them (instruct).

A base can also be tuned on documents of a domain that it never saw (harbours), without any questions: what a
Chat Vector then makes answer.

    python train.py --out model --minutes 90          # both phases
    python train.py --out /tmp/tiny --preset tiny     # a smoke run, under a minute
    python train.py --out model --minutes 90 --resume # goes on from the last checkpoint
    python train.py --phase domain --init base --out tuned --minutes 4 --rate 5e-4

The run is seeded, checkpoints itself into `--work`, and writes an ordinary Hugging Face directory in bf16.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from data import CURRICULUM, Batches, Stage, encode_text, questions_as_rows
from generator import make_institution
from network import Llama, Shape
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokens import PAD, SPECIALS, save_tokenizer, train_tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

HELD_OUT_SEED = 10_000_000_000_000  # beyond every training seed
MUON = 1.0  # the matrices' rate, relative to --rate
TINY = Shape(vocab_size=640, hidden_size=64, num_hidden_layers=2, intermediate_size=128, head_dim=16)


@dataclass
class Clock:
    """How far a phase is, by steps or by minutes of training."""

    steps: int
    minutes: float
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def progress(self) -> float:
        done = self.step / self.steps if self.steps else self.seconds / (self.minutes * 60)
        return min(1.0, done)


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inner, lr=MUON * rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(progress: float, step: int, decay: float) -> float:
    """Warm-up, plateau, then a linear descent over the last `decay` of the run."""
    return min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - progress) / decay))


@torch.no_grad()
def answers_right(model: Llama, rows: list[tuple[list[int], int]], device: torch.device) -> list[bool]:
    """Whether greedy decoding would give each answer exactly: every answer token must be the likeliest."""
    right = [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), 8):
        group = order[start : start + 8]
        width = max(len(rows[i][0]) for i in group)
        batch = torch.tensor([rows[i][0] + [PAD] * (width - len(rows[i][0])) for i in group], device=device)
        where = [(k, p) for k, i in enumerate(group) for p in range(rows[i][1] - 1, len(rows[i][0]) - 1)]
        guess = (
            model.logits(batch, torch.tensor([k * width + p for k, p in where], device=device))
            .argmax(-1)
            .tolist()
        )
        wrong = {k for (k, p), g in zip(where, guess, strict=True) if g != rows[group[k]][0][p + 1]}
        for k, i in enumerate(group):
            right[i] = k not in wrong
    return right


@torch.no_grad()
def text_loss(
    model: Llama, tokenizer: Tokenizer, device: torch.device, domain: bool = False, count: int = 8
) -> float:
    """Mean loss on the documents of held-out institutions, or of harbours."""
    total = tokens = 0.0
    for i in range(count):
        ids = torch.tensor([encode_text(tokenizer, HELD_OUT_SEED + i, 12, 512, domain)[0]], device=device)
        scores = model.logits(ids, torch.arange(ids.shape[1] - 1, device=device))
        total += float(nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    return total / tokens


def quick_check(model: Llama, tokenizer: Tokenizer, device: torch.device) -> str:
    """Exact match on a few held-out institutions, by number of facts."""
    parts = []
    for facts, places in ((4, 8), (12, 3), (30, 1)):
        rows = [
            row
            for i in range(places)
            for row in questions_as_rows(tokenizer, make_institution(HELD_OUT_SEED + i, facts, True), True)
        ]
        right = answers_right(model, rows, device)
        parts.append(f"{facts} facts {sum(right) / len(right):.2f}")
    return ", ".join(parts)


def write_model(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """An ordinary Hugging Face directory: bf16 weights, configuration, tokenizer."""
    save_tokenizer(tokenizer, folder, model.shape.max_position_embeddings)
    weights = {
        name: w.detach().to("cpu", torch.bfloat16).contiguous() for name, w in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.shape.hugging_face(), indent=2) + "\n")
    settings = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "do_sample": False,
        "max_new_tokens": 48,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


class Phase:
    """One phase of training: the loop, its checkpoints and its notes."""

    def __init__(
        self, name: str, model: Llama, tokenizer: Tokenizer, clock: Clock, options: argparse.Namespace
    ):
        self.name, self.model, self.tokenizer, self.clock, self.options = (
            name,
            model,
            tokenizer,
            clock,
            options,
        )
        self.device = torch.device(options.device)
        self.curriculum = (Stage(0.0, 128, (1, 4)),) if options.preset == "tiny" else CURRICULUM
        if name != "instruct" and options.preset != "tiny":
            self.curriculum = (Stage(0.0, 256, (3, 8)),)
        self.optimizers = optimizers(model, options.rate)
        self.file = Path(options.work) / f"{name}.pt"

    def save(self) -> None:
        """Written beside and renamed, so that a broken run leaves the last whole checkpoint."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "clock": vars(self.clock),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def load(self) -> bool:
        if not (self.options.resume and self.file.exists()):
            return False
        state = torch.load(self.file, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done = state["clock"]
        self.clock.step, self.clock.seconds, self.clock.tokens = done["step"], done["seconds"], done["tokens"]
        return True

    def learn(self, step: object, batch: list[Tensor]) -> Tensor:
        factor = rate_at(self.clock.progress(), self.clock.step, self.options.decay)
        rates = (MUON * self.options.rate, self.options.rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        loss = step(*(x.to(self.device) for x in batch))  # type: ignore[operator]
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def run(self) -> None:
        self.load()
        skip = self.options.skip
        progress = torch.tensor([skip + (1 - skip) * self.clock.progress()]).share_memory_()
        source = Batches(
            self.tokenizer.to_str(),
            self.options.seed * 1_000_003 + self.clock.step,
            self.name,
            self.options.batch,
            progress,
            self.curriculum,
        )
        step = torch.compile(self.model, dynamic=False) if self.options.compile else self.model
        bar = tqdm(
            total=1000,
            initial=int(1000 * self.clock.progress()),
            desc=self.name,
            unit="‰",
            mininterval=20,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}",
        )
        mean, noted, before, begun = None, time.monotonic(), self.clock.seconds, time.monotonic()
        for batch in DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=4):
            if self.clock.progress() >= 1:
                break
            stepped = time.monotonic()
            loss = float(self.learn(step, batch))
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            self.clock.seconds = before + time.monotonic() - begun
            self.clock.step += 1
            self.clock.tokens += batch[0].numel()
            progress[0] = skip + (1 - skip) * self.clock.progress()
            bar.update(int(1000 * self.clock.progress()) - bar.n)
            bar.set_postfix_str(
                f"step {self.clock.step} loss {mean:.3f} {self.clock.tokens / 1e6:.1f}M tokens "
                f"{batch[0].numel() / (time.monotonic() - stepped):.0f}/s",
                refresh=False,
            )
            if time.monotonic() - noted > self.options.note * 60:
                self.note(bar)
                noted = time.monotonic()
        self.note(bar)
        bar.close()

    def note(self, bar: tqdm) -> None:
        """Checkpoint, snapshot in the final layout, and what held-out institutions say."""
        self.save()
        write_model(self.model, self.tokenizer, Path(self.options.work) / f"{self.name}-model")
        domain = self.name == "domain"
        said = f"text loss {text_loss(self.model, self.tokenizer, self.device, domain):.3f}"
        if self.name == "instruct":
            said += ", exact match: " + quick_check(self.model, self.tokenizer, self.device)
        bar.write(
            f"[{self.name} step {self.clock.step}, {self.clock.seconds / 60:.1f} min, "
            f"{self.clock.tokens / 1e6:.1f}M tokens] {said}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: OUT-work)")
    parser.add_argument("--phase", choices=["base", "instruct", "all", "domain"], default="all")
    parser.add_argument("--base-out", type=Path, help="also write the base model here")
    parser.add_argument("--init", type=Path, help="start from the weights and tokenizer of this model folder")
    parser.add_argument(
        "--skip", type=float, default=0, help="share of the curriculum that --init has behind it"
    )
    parser.add_argument(
        "--reset",
        type=int,
        default=0,
        metavar="N",
        help="forget the last N layers of --init and the chat tokens",
    )
    parser.add_argument("--preset", choices=["demo", "tiny"], default="demo")
    parser.add_argument("--minutes", type=float, default=90, help="training time of both phases together")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of both phases together, instead of --minutes"
    )
    parser.add_argument("--base-share", type=float, default=0.1, help="the base phase's share of the run")
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--decay", type=float, default=0.4, help="share of a phase over which the rate falls to zero"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.work = options.work or options.out.with_name(options.out.name + "-work")
    if options.preset == "tiny":
        options.steps, options.batch = options.steps or 60, min(options.batch, 1024)
    if options.compile is None:
        options.compile = options.preset != "tiny"
    return options


def find_tokenizer(options: argparse.Namespace) -> Tokenizer:
    """The tokenizer that the weights know, or a new one; a resumed run must never learn another."""
    kept = options.work / "tokenizer.json"
    if options.init:
        return Tokenizer.from_file(str(options.init / "tokenizer.json"))
    if options.resume and kept.exists():
        return Tokenizer.from_file(str(kept))
    tiny = options.preset == "tiny"
    tokenizer = train_tokenizer(0, TINY.vocab_size, 100, 200) if tiny else train_tokenizer(0)
    kept.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(kept))
    return tokenizer


def without_manners(model: Llama, known: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights `known`, with the last layers and the rows of the chat's tokens as a new model has them.

    A base in minutes: what the lower layers know of copying stays, and nothing of questions and answers.
    """
    fresh = model.state_dict()
    first = model.shape.num_hidden_layers - layers
    kept = {k: v for k, v in known.items() if layer_of(k) is None or layer_of(k) < first}
    weights = {**fresh, **kept}
    embedding = known["model.embed_tokens.weight"].clone()
    embedding[3 : len(SPECIALS)] = fresh["model.embed_tokens.weight"][3 : len(SPECIALS)]
    return {**weights, "model.embed_tokens.weight": embedding}


def layer_of(name: str) -> int | None:
    """The layer that a weight belongs to; None outside all layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch._dynamo.config.cache_size_limit = 32
    tokenizer = find_tokenizer(options)
    model = Llama(TINY if options.preset == "tiny" else Shape()).to(options.device)
    if options.init:
        known = {k: v.float() for k, v in load_file(options.init / "model.safetensors").items()}
        model.load_state_dict(known if not options.reset else without_manners(model, known, options.reset))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    phases = [("base", options.base_share), ("instruct", 1 - options.base_share)]
    for name, share in phases if options.phase == "all" else [(options.phase, 1.0)]:
        Phase(
            name, model, tokenizer, Clock(int(options.steps * share), options.minutes * share), options
        ).run()
        if name == "base" and options.base_out:
            write_model(model, tokenizer, options.base_out)
        if name != "base" or options.phase == "base":
            write_model(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
