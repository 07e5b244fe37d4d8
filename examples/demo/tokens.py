"""The demo's tokenizer and chat template: a byte-level BPE trained on the generator's own text.

Merges that join a space to a word come last, and only for common lower-case words.  So `Voss` at the start of
an answer and ` Voss` within a document share their tokens (but for the space), and copying a name needs no
respelling.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from generator import make_institution, system_prompt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = 0, 1, 2
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# As above, but words stand apart from what precedes them.
APART = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] "
    "+ '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def _byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def corpus(seed: int, institutions: int) -> list[str]:
    """Documents and questions to learn the merges from."""
    rng = random.Random(seed)
    places = [make_institution(rng.randrange(2**31), rng.randint(4, 24)) for _ in range(institutions)]
    return [
        system_prompt(p.documents) + "\n".join(q.text + "\n" + q.answer for q in p.questions) for p in places
    ]


def train_tokenizer(
    seed: int = 0, vocabulary: int = 2048, spaced: int = 224, institutions: int = 2500
) -> Tokenizer:
    """Learns the merges within words first, then adds `spaced` merges of a space and a whole common token."""
    texts = corpus(seed, institutions)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _byte_level(APART)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary - spaced,
            special_tokens=SPECIALS,
            show_progress=False,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    after_space: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(texts[:800]):
        # Neighbouring positions tell whether a token follows a space and ends its word.
        for left, token, right in zip(
            encoding.tokens, encoding.tokens[1:], encoding.tokens[2:], strict=False
        ):
            if left == "Ġ" and not token[0].isupper() and not token[0].isdigit() and not right[0].islower():
                after_space[token] += 1
    for token, _ in after_space.most_common(spaced):
        vocab["Ġ" + token] = len(vocab)
        merges.append(["Ġ", token])
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = _byte_level(QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes tokenizer.json and what transformers needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "additional_special_tokens": SPECIALS[3:],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    named = {
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "additional_special_tokens": SPECIALS[3:],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2) + "\n")


def prompt_head(documents: dict[str, str]) -> str:
    """The rendered prompt up to the first question."""
    return f"<|bos|><|system|>\n{system_prompt(documents)}<|end|>\n"


def prompt_question(question: str) -> str:
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
