# SPDX-License-Identifier: Apache-2.0
"""A transformers model stepped row by row says what it says of each path alone, and stays as it was."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402
from modicum._transformers_tree import check_attention  # noqa: E402
from modicum.transformers_step import TransformersStep  # noqa: E402
from parity import cut, hf_generate  # noqa: E402

torch.set_num_threads(1)  # models this small only wait for the others

VOCABULARY = 160
POSITIONS = 64
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # large, so that a token more or less shows
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
NO_STOP = {"bos_token_id": None, "eos_token_id": None}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen3": ("Qwen3Config", COMMON),
    "mistral": ("MistralConfig", COMMON | {"sliding_window": 5}),
    "gemma2": ("Gemma2Config", COMMON | {"sliding_window": 5, "layer_types": MIXED}),
    "gemma3": ("Gemma3TextConfig", COMMON | {"sliding_window": 5, "layer_types": MIXED}),
    "gpt_oss": (
        "GptOssConfig",
        COMMON
        | {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    ),
    "gpt2": ("GPT2Config", GPT2 | NO_STOP | {"initializer_range": 0.4}),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8} | NO_STOP,
    ),
    "lfm2": ("Lfm2Config", COMMON | {"layer_types": ["conv", "full_attention", "conv"]}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.4,
        }
        | NO_STOP,
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 64,
            "attention_window_size": 16,
        }
        | NO_STOP,
    ),
}
TREES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "gpt2")
TIERS = dict.fromkeys(TREES, "tree") | {
    "mamba": "batch",
    "lfm2": "batch",
    "gpt_neo": "batch",
    "recurrent_gemma": "recompute",
}
PROMPT = [7, 3, 90, 41, 12, 66, 5, 23]


@functools.cache
def model(kind: str, attention: str | None = None, dtype: str = "float32") -> Any:
    config_class, options = CONFIGS[kind]
    torch.manual_seed(len(kind))
    made = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config_class)(**options),
        **({"attn_implementation": attention} if attention else {}),
    )
    made.generation_config = transformers.GenerationConfig()
    return made.to(getattr(torch, dtype)).eval()


@functools.cache
def cached_step(kind: str, **options: Any) -> TransformersStep:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformersStep(model(kind), **options)


def plain(hf_model: Any, paths: Sequence[Sequence[int]]) -> np.ndarray:
    """The logits after each path, from a pass that knows no cache."""
    with torch.inference_mode():
        return hf_model(torch.tensor(np.array(paths)), use_cache=False).logits[:, -1].float().numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 1e-4) -> None:
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= share * np.ptp(expected)


class Walk:
    """Steps a model and keeps account of the tree beside it."""

    def __init__(self, step: TransformersStep, hf_model: Any, prompt: Sequence[int]) -> None:
        self.step, self.model, self.prompt = step, hf_model, list(prompt)
        self.logits = step(None, prompt)
        self.paths = [self.prompt]
        self.nodes: list[tuple[int, ...]] = [()]
        self.made = 0

    def go(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        self.logits = self.step(np.array(parents), np.array(tokens))
        self.paths = [[*self.paths[p], t] for p, t in zip(parents, tokens, strict=True)]
        self.nodes = [(*self.nodes[p], self.made + i) for i, p in enumerate(parents)]
        self.made += len(parents)

    def check(self) -> None:
        assert self.logits.shape == (len(self.paths), self.step.vocabulary_size)
        assert_close(self.logits, plain(self.model, self.paths))
        stats = self.step.stats
        assert stats.rows == len(self.paths)
        if self.step.tier == "tree":
            live = set().union(*self.nodes)
            assert stats.tokens_held == len(self.prompt) + len(live)
            ancestors = self.step._tier.ancestors  # type: ignore[attr-defined]
            assert (ancestors.sum(1) == len(self.nodes[0])).all()
            assert ancestors.any(0).sum() == len(live)
            # Slots are taken lowest first, so the cache reaches no further than all that ever lived at once.
            assert ancestors.shape[1] <= stats.tokens_peak - len(self.prompt) + len(self.paths)
        else:
            assert stats.tokens_held == sum(len(path) for path in self.paths)


@pytest.mark.parametrize("kind", TIERS)
def test_each_model_takes_the_tier_that_it_allows_and_says_what_it_does_not(kind: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = TransformersStep(model(kind))
    assert step.tier == TIERS[kind]
    assert step.vocabulary_size == VOCABULARY
    assert step.gives_logits
    ours = [str(w.message) for w in caught if "transformers_step" in str(w.message)]
    assert ours == list(step.notes)
    assert len(ours) == ("tree", "batch", "recompute").index(step.tier)
    if ours:
        assert "cannot be stepped as tree" in ours[0]


moves = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, VOCABULARY - 1)), min_size=1, max_size=6),
    min_size=1,
    max_size=9,
)
prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", TIERS)
def test_rows_of_any_tree_equal_a_plain_pass_over_their_paths(kind: str) -> None:
    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @hypothesis.given(prompts, moves)
    def walk(prompt: list[int], steps: list[list[tuple[int, int]]]) -> None:
        tree = Walk(cached_step(kind), model(kind), prompt)
        tree.check()
        for rows in steps:
            tree.go([p % len(tree.paths) for p, _ in rows], [t for _, t in rows])
            tree.check()

    walk()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_both_attention_functions_of_an_owner_do(kind: str, attention: str) -> None:
    hf_model = model(kind, attention)
    tree = Walk(TransformersStep(hf_model, tier="tree"), hf_model, PROMPT)
    for parents in ([0, 0, 0], [2, 1, 1, 0], [3, 0]):
        tree.go(parents, range(len(parents)))
        tree.check()
    assert hf_model.config._attn_implementation == attention


@pytest.mark.parametrize("tier", ["tree", "batch", "recompute"])
def test_a_tier_can_be_demanded(tier: Any) -> None:
    tree = Walk(cached_step("llama", tier=tier), model("llama"), PROMPT)
    assert tree.step.tier == tier
    for parents in ([0, 0, 0, 0], [3, 3, 0], [0, 1, 2], [1]):
        tree.go(parents, range(10, 10 + len(parents)))
        tree.check()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_half_precision_stays_within_its_rounding(kind: str, dtype: str) -> None:
    hf_model = model(kind, None, dtype)
    step = TransformersStep(hf_model, tier="tree")
    tree = Walk(step, hf_model, PROMPT)
    for parents in ([0, 0, 0], [2, 1, 1, 0]):
        tree.go(parents, range(len(parents)))
        assert_close(tree.logits, plain(hf_model, tree.paths), 0.1 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_slots_of_dead_rows_serve_the_next_rows(kind: str) -> None:
    tree = Walk(cached_step(kind), model(kind), PROMPT)
    tree.step.reset()
    tree = Walk(tree.step, tree.model, PROMPT)
    at_first = tree.step.stats.kv_bytes
    for i in range(25):  # 200 rows, of which 25 + 7 live at once
        tree.go([i % len(tree.paths)] * 8, range(8 * i % 100, 8 * i % 100 + 8))
    tree.check()
    assert tree.step.stats.tokens_peak == len(PROMPT) + 24 + 8
    assert tree.step.stats.kv_bytes_peak == at_first


def test_a_tree_that_outgrows_its_slots_keeps_what_it_has() -> None:
    tree = Walk(cached_step("llama"), model("llama"), PROMPT)
    at_first = tree.step.stats.kv_bytes
    tree.go([0] * 9, range(9))
    for i in range(20):
        tree.go(list(range(9)), range(i, i + 9))
        tree.check()
    assert tree.step.stats.tokens_held == len(PROMPT) + 9 * 21
    per_token = at_first // (len(PROMPT) + 64)
    assert at_first < tree.step.stats.kv_bytes <= per_token * (len(PROMPT) + 2 * 9 * 21)
    tree.step.reset()
    assert tree.step.stats.kv_bytes == tree.step.stats.kv_bytes_peak == tree.step.stats.tokens_held == 0


def test_a_tree_holds_the_prompt_once_where_a_batch_holds_it_for_every_row() -> None:
    held = {}
    for tier in ("tree", "batch"):
        step = cached_step("llama", tier=tier)
        step.reset()
        step(None, [1] * 200)
        step([0] * 16, range(16))
        held[tier] = step.stats
    assert held["tree"].tokens_held == 200 + 16
    assert held["batch"].tokens_held == 16 * 201
    assert held["batch"].kv_bytes > 10 * held["tree"].kv_bytes


def test_a_new_prompt_forgets_the_tree() -> None:
    step = cached_step("llama")
    step(None, PROMPT)
    step([0, 0], [1, 2])
    tree = Walk(step, model("llama"), PROMPT[:3])
    tree.go([0], [5])
    tree.check()


def test_ids_may_be_lists_arrays_or_tensors() -> None:
    step = cached_step("llama")
    expected = step(None, PROMPT)
    for same in (np.array(PROMPT, np.int32), torch.tensor(PROMPT), tuple(PROMPT)):
        assert np.array_equal(step(None, same), expected)


# The search of transformers' generate(do_sample=False, early_stopping=False), on top of a step.


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def beam_search(
    step: Callable[..., np.ndarray], beams: int, new_tokens: int, stops: Sequence[int]
) -> list[tuple[list[int], float]]:
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    logits = step(None, PROMPT)
    for length in range(1, new_tokens + 1):
        scores = log_softmax(logits.astype(np.float64)) + np.array([[score] for score, _ in running])
        best = np.argsort(-scores, axis=None, kind="stable")[: max(2, 1 + len(stops)) * beams]
        found = [(scores.flat[i], i // scores.shape[1], i % scores.shape[1]) for i in best.tolist()]
        over = [token in stops or length == new_tokens for _, _, token in found]
        for (score, row, token), done in list(zip(found, over, strict=True))[:beams]:
            if done:
                finished.append((score / length, [*running[row][1], token]))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[:beams]
        going = [f for f, done in zip(found, over, strict=True) if not done][:beams]
        if not going or (len(finished) == beams and going[0][0] / length <= finished[-1][0]):
            break
        running = [(score, [*running[row][1], token]) for score, row, token in going]
        logits = step([row for _, row, _ in going], [token for _, _, token in going])
    return [(ids, score) for score, ids in finished]


def generate(
    hf_model: Any, beams: int, new_tokens: int, stops: Sequence[int]
) -> list[tuple[list[int], float]]:
    out = hf_generate(
        hf_model, PROMPT, stops, num_beams=beams, num_return_sequences=beams, max_new_tokens=new_tokens
    )
    found = out.sequences[:, len(PROMPT) :].tolist()
    scores = out.sequences_scores.tolist() if beams > 1 else [None]
    return [(cut(ids, stops), score) for ids, score in zip(found, scores, strict=True)]


@pytest.mark.parametrize("kind", TIERS)
def test_a_search_over_the_step_is_transformers_own_and_leaves_the_model_as_it_was(kind: str) -> None:
    hf_model = model(kind)
    weights = {name: x.clone() for name, x in hf_model.state_dict().items()}
    config = hf_model.config.to_dict() | {"attention": hf_model.config._attn_implementation}
    before = generate(hf_model, 3, 10, [])
    step = cached_step(kind)
    searches = [(1, []), (3, []), (5, [before[0][0][4]])]
    # transformers' beams change places, the states that this model keeps in its modules do not.
    for beams, stops in searches[:1] if kind == "recurrent_gemma" else searches:
        found = beam_search(step, beams, 10, stops)
        expected = generate(hf_model, beams, 10, stops)
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        if beams > 1:
            assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-4)
    assert generate(hf_model, 3, 10, []) == before
    assert hf_model.config.to_dict() | {"attention": hf_model.config._attn_implementation} == config
    assert all(torch.equal(x, weights[name]) for name, x in hf_model.state_dict().items())
    assert all(x.requires_grad for x in hf_model.parameters())


# Who else uses the model.


def inside(hf_model: Any, act: Callable[[], None]) -> Any:
    """Acts in the middle of the next pass of this thread, after some of its layers."""
    thread = threading.get_ident()

    def hook(*_: Any) -> None:
        if threading.get_ident() == thread:
            act()

    return hf_model.model.layers[1].register_forward_pre_hook(hook)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_another_thread_may_use_the_model_in_the_middle_of_a_step(kind: str, attention: str) -> None:
    hf_model = model(kind, attention)
    step = TransformersStep(hf_model, tier="tree")
    tree = Walk(step, hf_model, PROMPT)
    expected = plain(hf_model, [PROMPT])
    found = []

    def other() -> None:
        assert hf_model.config._attn_implementation != attention
        worker = threading.Thread(target=lambda: found.append(plain(hf_model, [PROMPT])))
        worker.start()
        worker.join()

    handle = inside(hf_model, other)
    try:
        tree.go([0, 0], [4, 9])
    finally:
        handle.remove()
    tree.check()
    assert np.array_equal(found[0], expected)


def test_searches_in_threads_over_one_model_do_not_meet() -> None:
    hf_model = model("qwen3")
    steps = [TransformersStep(hf_model) for _ in range(3)]
    failures = []

    def run(step: TransformersStep, offset: int) -> None:
        try:
            tree = Walk(step, hf_model, [offset + 1, *PROMPT])
            for parents in ([0, 0, 0], [2, 1, 1, 0], [3, 0], [0, 1, 1]) * 3:
                tree.go(parents, range(offset, offset + len(parents)))
                tree.check()
        except BaseException as error:  # a thread's failure is silent otherwise
            failures.append(error)

    threads = [threading.Thread(target=run, args=(step, 40 * i)) for i, step in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert hf_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_a_pass_gives_the_model_back_and_empties_the_step(error: Any) -> None:
    hf_model = model("llama")
    step = cached_step("llama")
    step(None, PROMPT)

    def fail() -> None:
        raise error("in the middle")

    handle = inside(hf_model, fail)
    try:
        with pytest.raises(error, match="in the middle"):
            step([0], [1])
    finally:
        handle.remove()
    assert hf_model.config._attn_implementation == "sdpa"
    assert step.stats.kv_bytes == step.stats.rows == 0
    with pytest.raises(mo.InvalidArgument, match="prompt first"):
        step([0], [1])
    Walk(step, hf_model, PROMPT).check()


# What cannot be stepped.


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_cannot_be_ranked_are_refused(wrong: float) -> None:
    hf_model = model("qwen2")
    step = cached_step("qwen2")
    step(None, PROMPT)
    kept = hf_model.lm_head.weight.data[3].clone()
    try:
        hf_model.lm_head.weight.data[3] = wrong
        with pytest.raises(mo.FormatError, match=r"\[transformers_step\] logits: expected numbers .* row"):
            step([0, 0], [1, 2])
        with pytest.raises(mo.FormatError, match="logits"):
            TransformersStep(hf_model)
    finally:
        hf_model.lm_head.weight.data[3] = kept
    Walk(step, hf_model, PROMPT).check()


@pytest.mark.parametrize(
    ("parents", "tokens", "message"),
    [
        (None, [], "n at least 1"),
        (None, [[1, 2]], r"shape \[1, 2\]"),
        (None, [[1], [1, 2]], "ragged"),
        (None, [1.5], "integers, got float64"),
        (None, [True], "integers, got bool"),
        (None, [VOCABULARY], "0 to 159, got 160"),
        (None, [-1], "0 to 159, got -1"),
        ([0, 2], [1, 1], "parents: expected 0 to 1, got 2"),
        ([-1], [1], "parents: expected 0 to 1, got -1"),
        ([0, 1], [1], "tokens: expected 2, one a parent, got 1"),
        ([], [], "n at least 1"),
        ([0], [VOCABULARY], "tokens: expected 0 to 159"),
    ],
)
@pytest.mark.parametrize("tier", ["tree", "batch", "recompute"])
def test_wrong_arguments_are_named_and_change_nothing(
    parents: Any, tokens: Any, message: str, tier: Any
) -> None:
    tree = Walk(cached_step("llama", tier=tier), model("llama"), PROMPT)
    tree.go([0, 0], [1, 2])
    with pytest.raises(mo.InvalidArgument, match=message):
        tree.step(parents, tokens)
    tree.go([1, 0], [3, 4])
    tree.check()


def test_learned_positions_end_in_a_context_overflow() -> None:
    tree = Walk(cached_step("gpt2"), model("gpt2"), [1] * (POSITIONS - 1))
    tree.go([0, 0], [1, 2])
    with pytest.raises(mo.ContextOverflow, match=f"at most {POSITIONS}"):
        tree.step([0], [1])
    tree.check()
    with pytest.raises(mo.ContextOverflow, match=f"got {POSITIONS + 1}"):
        tree.step(None, [1] * (POSITIONS + 1))


def test_what_is_no_causal_model_in_eval_mode_is_refused() -> None:
    with pytest.raises(mo.InvalidArgument, match="got function"):
        TransformersStep(plain)  # type: ignore[arg-type]
    with pytest.raises(mo.InvalidArgument, match="tier: expected auto, tree, batch, recompute"):
        TransformersStep(model("llama"), tier="forest")  # type: ignore[arg-type]
    training = transformers.AutoModelForCausalLM.from_config(model("llama").config).train()
    with pytest.raises(mo.InvalidArgument, match=r"call model\.eval\(\)"):
        TransformersStep(training)
    t5 = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
    )
    with pytest.raises(mo.Unsupported, match="encoder-decoder"):
        TransformersStep(transformers.T5ForConditionalGeneration(t5).eval())
    bert = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        initializer_range=0.4,
    )
    with pytest.raises(mo.Unsupported, match="causal language model"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TransformersStep(transformers.BertForMaskedLM(bert).eval())


@pytest.mark.parametrize("kind", ["mamba", "gpt_neo", "recurrent_gemma"])
def test_a_demanded_tier_that_a_model_does_not_allow_is_refused(kind: str) -> None:
    with pytest.raises(mo.Unsupported, match="transformers_step"):
        TransformersStep(model(kind), tier="tree")


def test_an_attention_function_that_cannot_be_replaced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = model("llama", "sdpa")
    monkeypatch.setattr(hf_model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(mo.Unsupported, match=r'got flex_attention; load the model with attn_impl.*"sdpa"'):
        check_attention(hf_model)
