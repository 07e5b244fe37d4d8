"""The arithmetic of transformers' LlamaForCausalLM, written so that torch.compile fuses it well on a CPU.

Parameter names are those of the Hugging Face checkpoint.  Attention is spelt out in blocks of queries: on
CPUs with bf16 matrix units two matrix products and a fused softmax train faster than the built-in attention.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERY_BLOCK = 256


@dataclass(frozen=True)
class Shape:
    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 640
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def hugging_face(self) -> dict[str, object]:
        """The same as config.json."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


class Linear(nn.Linear):
    """A matrix kept in f32 and used in the type of its input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half].float(), x[..., half:].float()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = Linear(s.hidden_size, s.num_attention_heads * s.head_dim)
        self.k_proj = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.v_proj = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.o_proj = Linear(s.num_attention_heads * s.head_dim, s.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (rows, length, _) = self.s, x.shape

        def heads(y: Tensor, n: int) -> Tensor:
            return y.view(rows, length, n, s.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x), s.num_attention_heads), cos, sin)
        k = rotate(heads(self.k_proj(x), s.num_key_value_heads), cos, sin)
        v = heads(self.v_proj(x), s.num_key_value_heads)
        out = [
            self.block(q, k, v, start, min(start + QUERY_BLOCK, length))
            for start in range(0, length, QUERY_BLOCK)
        ]
        return self.o_proj(torch.cat(out, 2).transpose(1, 2).reshape(rows, length, -1))

    def block(self, q: Tensor, k: Tensor, v: Tensor, start: int, end: int) -> Tensor:
        """Attention of the queries start..end to everything up to them."""
        rows, size, group = q.shape[0], end - start, self.s.num_attention_heads // self.s.num_key_value_heads
        folded = q[:, :, start:end].reshape(rows, self.s.num_key_value_heads, group * size, self.s.head_dim)
        scores = (folded @ k[:, :, :end].transpose(2, 3)).view(rows, -1, group, size, end).float()
        future = torch.arange(end, device=q.device) > torch.arange(start, end, device=q.device)[:, None]
        weights = (scores * self.s.head_dim**-0.5).masked_fill(future, -1e30).softmax(-1).to(v.dtype)
        mixed = weights.view(rows, -1, group * size, end) @ v[:, :, :end]
        return mixed.view(rows, self.s.num_attention_heads, size, self.s.head_dim)


class Mlp(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj, self.up_proj = (Linear(s.hidden_size, s.intermediate_size) for _ in range(2))
        self.down_proj = Linear(s.intermediate_size, s.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.self_attn, self.mlp = Attention(s), Mlp(s)
        self.input_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.post_attention_layernorm = Norm(s.hidden_size, s.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = Norm(s.hidden_size, s.rms_norm_eps)


class Llama(nn.Module):
    """The network; `dtype` is what activations are computed in."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.shape, self.dtype, self.model = shape, dtype, Body(shape)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                depth = (
                    (2 * shape.num_hidden_layers) ** -0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1
                )
                nn.init.normal_(weight, std=0.02 * depth)

    def logits(self, tokens: Tensor, where: Tensor) -> Tensor:
        """The logits at the positions `where` of the flattened batch: most need none while training."""
        s = self.shape
        frequency = s.rope_theta ** (-torch.arange(0, s.head_dim, 2, device=tokens.device) / s.head_dim)
        angle = torch.outer(torch.arange(tokens.shape[1], device=tokens.device), frequency)
        x = self.model.embed_tokens(tokens).to(self.dtype)
        for layer in self.model.layers:
            x = layer(x, angle.cos(), angle.sin())
        x = self.model.norm(x).flatten(0, 1)[where]
        return F.linear(x, self.model.embed_tokens.weight.to(x.dtype)).float()

    def forward(self, tokens: Tensor, where: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean loss at `where`."""
        losses = F.cross_entropy(self.logits(tokens, where), targets, reduction="none")
        return (losses * weights).sum() / weights.sum()
