# SPDX-License-Identifier: Apache-2.0
"""The baselines that retrofits are compared with: what they must leave exact, what their papers promise."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "compare"))

from peers import shrink_baselines as shrink  # noqa: E402
from peers.shrink_quality import evaluate, windows  # noqa: E402

torch.set_num_threads(1)
IDS = torch.randint(3, 160, (6, 40), generator=torch.Generator().manual_seed(0))


def make(kind: str = "Llama", kv_heads: int = 8, **fields: Any) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, kind + "Config")(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        head_dim=8,
        max_position_embeddings=64,
        **fields,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.12)
    return model


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def far(one: Any, other: Any) -> float:
    """Relative error of the logits."""
    return float((logits(one) - logits(other)).norm() / logits(other).norm())


METHODS = {
    "magnitude": lambda model, width: shrink.ffn_magnitude(model, width),
    "wanda-sp": lambda model, width: shrink.ffn_wanda_sp(model, IDS, width),
    "flap": lambda model, width: shrink.ffn_flap(model, IDS, width),
}


# The stream


def test_layers_run_one_by_one_as_in_the_model() -> None:
    model = make(kv_heads=2)
    with torch.no_grad():
        stream = shrink.LayerStream(model, IDS, rows=4)
        for layer in model.model.layers:
            stream.advance(stream.run(layer, {}))
        hidden = torch.cat([h for h, _ in stream.batches])
        assert torch.equal(
            model.lm_head(model.model.norm(hidden)),
            torch.cat([model(IDS[:4], use_cache=False).logits, model(IDS[4:], use_cache=False).logits]),
        )


# Width


@pytest.mark.parametrize("method", METHODS)
def test_full_width_changes_nothing(method: str) -> None:
    model = make()
    assert far(METHODS[method](model, 96), model) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_neurons_that_give_nothing_go_first(method: str, kind: str) -> None:
    model = make(kind)
    dead = torch.arange(0, 96, 3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, dead] = 0
    new = METHODS[method](model, 64)
    assert new.config.intermediate_size == 64
    assert new.model.layers[0].mlp.gate_proj.weight.shape == (64, 64)
    assert far(new, model) < 1e-6
    assert far(METHODS[method](model, 63), model) > 1e-4
    assert model.config.intermediate_size == 96  # the old one is as it was


def test_wanda_looks_at_activations_where_magnitude_does_not() -> None:
    """Neurons with large columns that never fire: magnitude keeps them, Wanda and FLAP drop them."""
    model = make()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:32] = 0
            layer.mlp.down_proj.weight[:, :32] *= 10
    assert far(METHODS["magnitude"](model, 64), model) > 0.05
    assert far(METHODS["wanda-sp"](model, 64), model) < 1e-6
    assert far(METHODS["flap"](model, 64), model) < 1e-6


def test_flap_keeps_the_mean_of_what_the_layer_gives() -> None:
    model = make()
    new = shrink.ffn_flap(model, IDS, 32)

    def mean_output(one: Any) -> Any:
        sums = shrink.Moments()
        with torch.no_grad():
            stream = shrink.LayerStream(one, IDS)
            stream.run(one.model.layers[0], {one.model.layers[0].mlp.down_proj: lambda _, y: sums.add(y)})
        return sums.mean

    exact = mean_output(model)
    assert float((mean_output(new) - exact).norm()) < 1e-5 * float(exact.norm())
    wanda = mean_output(shrink.ffn_wanda_sp(model, IDS, 32))
    assert float((wanda - exact).norm()) > 0.1 * float(exact.norm())


@pytest.mark.parametrize("method", [*METHODS, "mean", "procrustes"])
def test_what_comes_out_is_a_standard_checkpoint(method: str, tmp_path: Path) -> None:
    model = make()
    if method in METHODS:
        new = METHODS[method](model, 64)
    else:
        new = shrink.kv_mean_pool(model, 4) if method == "mean" else shrink.kv_procrustes(model, IDS, 4)
    new.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(new))


def test_the_dtype_stays() -> None:
    model = make().to(torch.bfloat16)
    assert shrink.ffn_flap(model, IDS, 64).dtype == torch.bfloat16
    assert shrink.kv_procrustes(model, IDS, 4).dtype == torch.bfloat16


# Heads


def twins(model: Any, turned: bool) -> None:
    """Makes heads 2h and 2h + 1 give the same keys and values, but for a rotation where `turned`."""
    torch.manual_seed(2)
    heads = model.config.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for name in ("k_proj", "v_proj"):
                linear = getattr(attention, name)
                for tensor in [linear.weight] + ([] if linear.bias is None else [linear.bias]):
                    by_head = tensor.view(heads, 8, -1)
                    for h in range(0, heads, 2):
                        turn = torch.eye(8)
                        if turned and name == "v_proj":
                            turn = torch.linalg.qr(torch.randn(8, 8, generator=generator(h)))[0]
                        elif turned:
                            angle = torch.randn(4, generator=generator(h))
                            c, s = angle.cos().diag(), angle.sin().diag()
                            turn = torch.cat([torch.cat([c, s], 1), torch.cat([-s, c], 1)])
                        by_head[h + 1] = turn @ by_head[h]


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("kind", "kv_heads"), [("Llama", 8), ("Qwen2", 8), ("Llama", 4)])
def test_equal_heads_merge_without_loss(kind: str, kv_heads: int) -> None:
    model = make(kind, kv_heads)
    twins(model, turned=False)
    half = kv_heads // 2
    mean = shrink.kv_mean_pool(model, half)
    assert mean.config.num_key_value_heads == half
    assert mean.model.layers[0].self_attn.k_proj.weight.shape == (half * 8, 64)
    assert far(mean, model) < 1e-5
    assert far(shrink.kv_procrustes(model, IDS, half), model) < 1e-4
    assert far(shrink.kv_mean_pool(model, half // 2), model) > 0.05


@pytest.mark.parametrize(("kind", "kv_heads"), [("Llama", 8), ("Qwen2", 8), ("Llama", 4)])
def test_turned_heads_merge_without_loss_only_when_aligned(kind: str, kv_heads: int) -> None:
    model = make(kind, kv_heads)
    twins(model, turned=True)
    half = kv_heads // 2
    assert far(shrink.kv_procrustes(model, IDS, half, search=False), model) < 1e-4
    assert far(shrink.kv_procrustes(model, IDS, half), model) < 1e-4
    assert far(shrink.kv_mean_pool(model, half), model) > 0.05


def test_like_heads_are_found_wherever_they_stand() -> None:
    """The same twins, shuffled: only the search pairs them, and queries go with their head."""
    model = make()
    twins(model, turned=True)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                weight.copy_(weight.view(8, 8, -1)[order].flatten(0, 1))
            weight = layer.self_attn.o_proj.weight
            weight.copy_(weight.view(64, 8, 8)[:, order].flatten(1))
    assert far(shrink.kv_procrustes(model, IDS, 4), model) < 1e-4
    assert far(shrink.kv_procrustes(model, IDS, 4, search=False), model) > 0.01


def test_as_many_heads_as_before_change_nothing() -> None:
    model = make(kv_heads=4)
    assert far(shrink.kv_mean_pool(model, 4), model) < 1e-6
    assert far(shrink.kv_procrustes(model, IDS, 4), model) < 1e-5


def test_groups_have_the_least_distance_within() -> None:
    """Beside every partition of six heads into two groups of three."""
    from itertools import combinations

    points = torch.randn(6, 3, generator=generator(5), dtype=torch.float64)
    distance = torch.cdist(points, points).square()

    def cost(groups: list[list[int]]) -> float:
        return sum(float(distance[g][:, g].sum()) for g in groups)

    found = shrink.group_heads(distance, 2)
    every = [[list(c), sorted(set(range(6)) - set(c))] for c in combinations(range(6), 3)]
    assert math.isclose(cost(found), min(map(cost, every)))


def test_key_rotations_commute_with_rope() -> None:
    cross = torch.randn(8, 8, generator=generator(1), dtype=torch.float64)
    turn = shrink.key_rotation(cross)
    assert torch.allclose(turn @ turn.T, torch.eye(8, dtype=torch.float64))
    angle = torch.rand(4, generator=generator(2), dtype=torch.float64)
    c, s = angle.cos().diag(), angle.sin().diag()
    rope = torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])
    assert torch.allclose(rope.T @ turn, turn @ rope.T)
    # No other angles fit better.
    for delta in (0.1, -0.1):
        other = shrink.key_rotation(rope_turn(delta, 4) @ cross)
        assert (turn * cross).sum() > (other * cross).sum()


def rope_turn(angle: float, half: int) -> Any:
    c, s = (math.cos(angle) * torch.eye(half), math.sin(angle) * torch.eye(half))
    return torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)]).double()


# Integers


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.15)])
def test_rounding_is_to_a_grid_of_each_group(bits: int, error: float) -> None:
    model = make()
    new = shrink.rtn(model, bits, 32)
    old, now = (m.model.layers[0].mlp.up_proj.weight.detach().view(-1, 32) for m in (model, new))
    step = old.abs().amax(1, keepdim=True) / ((2**bits - 1) / 2)
    whole = now / step
    assert torch.allclose(whole, whole.round(), atol=1e-3)
    assert whole.min() >= -(2 ** (bits - 1)) - 1e-3 and whole.max() <= 2 ** (bits - 1) - 1 + 1e-3
    assert ((now - old).abs() <= step * (0.5 + 1e-3)).all()
    assert 0 < float((now - old).norm() / old.norm()) < error
    assert torch.equal(new.lm_head.weight, model.lm_head.weight)


# Quality


def test_quality_is_that_of_transformers() -> None:
    model = make()
    other = shrink.rtn(model, 4)
    with torch.no_grad():
        loss = float(model(IDS, labels=IDS).loss)
    found = evaluate(model, model, IDS, rows=4)
    assert math.isclose(found.perplexity, math.exp(loss), rel_tol=1e-5)
    assert found.kl == 0 and found.top1 == 1 and found.tokens == 6 * 39
    found = evaluate(other, model, IDS)
    p, q = logits(model)[:, :-1].double().softmax(-1), logits(other)[:, :-1].double().softmax(-1)
    assert math.isclose(found.kl, float((p * (p / q).log()).sum(-1).mean()), rel_tol=1e-4)
    same = int((p.argmax(-1) == q.argmax(-1)).sum())
    assert found.top1 == same / (6 * 39) and 0.3 < found.top1 < 1


def test_windows_hold_the_text_once() -> None:
    rows = windows(list(range(10, 33)), 6, [1])
    assert rows.tolist() == [[1, *range(at, at + 5)] for at in (10, 15, 20, 25)]
    with pytest.raises(ValueError, match="at least 5, got 4"):
        windows([1, 2, 3, 4], 6, [1])


# Refusals


@pytest.mark.parametrize("width", [0, 97])
def test_a_width_that_is_none_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width: expected 1 to 96"):
        shrink.ffn_magnitude(make(), width)


@pytest.mark.parametrize("heads", [0, 3, 16])
def test_heads_that_do_not_divide_are_refused(heads: int) -> None:
    with pytest.raises(ValueError, match="a divisor of 8"):
        shrink.kv_mean_pool(make(), heads)


def test_norms_of_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="norms of queries and keys"):
        shrink.kv_procrustes(make("Qwen3"), IDS, 4)
