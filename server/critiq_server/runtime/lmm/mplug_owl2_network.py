"""mPLUG-Owl2 without its language head: vision tower, abstractor, modality-adaptive Llama (arXiv 2311.04257).

Modules are named as in the published checkpoint, so that its entries need no table. What is particular: the vision
tower's query, key and value are interleaved head by head; the abstractor's keys are its own queries beside the
picture's tokens; and each decoder layer has two norms, keys and values, one for text (``multiway.0``), one for the
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_LEVELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and spread of the pixels 0..1: CLIP's."""


@dataclass(frozen=True)
class Shape:
    """Sizes, as the folder's ``config.json`` has them."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    norm_eps: float
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_hidden: int
    image: int
    patch: int
    queries: int
    abstractor_layers: int
    abstractor_heads: int
    abstractor_hidden: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """From ``config.json``. Raises ``KeyError`` for what is missing, ``ValueError`` for what is not understood."""
        vision = config["visual_config"]["visual_model"]
        abstractor = config["visual_config"]["visual_abstractor"]
        if config.get("num_key_value_heads", config["num_attention_heads"]) != config["num_attention_heads"]:
            raise ValueError("the language model shares keys between heads, which mPLUG-Owl2 does not")
        return cls(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            norm_eps=config.get("rms_norm_eps", 1e-5),
            vision_width=vision["hidden_size"],
            vision_layers=vision["num_hidden_layers"],
            vision_heads=vision["num_attention_heads"],
            vision_hidden=vision["intermediate_size"],
            image=vision["image_size"],
            patch=vision["patch_size"],
            queries=abstractor["num_learnable_queries"],
            abstractor_layers=abstractor["num_hidden_layers"],
            abstractor_heads=abstractor["num_attention_heads"],
            abstractor_hidden=abstractor["intermediate_size"],
        )


class MplugOwl2(nn.Module):
    """Pictures and the words around them to hidden states."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = _RmsNorm(shape)
        self.vision_model = _VisionTower(shape)
        self.visual_abstractor = _Abstractor(shape)
        self._head = shape.width // shape.heads

    def picture(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[batch, 3, side, side]`` to the picture's positions ``[batch, queries + 1, width]``."""
        tokens: Tensor = self.visual_abstractor(self.vision_model(pixels))
        return tokens

    def hidden(self, before: Tensor, picture: Tensor, after: Tensor) -> Tensor:
        """The last layer's hidden states behind the final norm, ``[batch, positions, width]``.

        ``before`` and ``after`` are the token ids around the picture, int64 ``[length]``, the same for all of a batch.
        """
        count = picture.shape[0]
        words = [self.embed_tokens(ids).expand(count, -1, -1) for ids in (before, after)]
        hidden = torch.cat([words[0], picture, words[1]], dim=1)
        start, stop = len(before), len(before) + picture.shape[1]
        rotation = _rotation(hidden.shape[1], self._head, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, start, stop, rotation)
        normed: Tensor = self.norm(hidden)
        return normed


class _VisionTower(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = _PatchEmbeddings(shape)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_VisionLayer(shape) for _ in range(shape.vision_layers))
        self.post_layernorm = nn.LayerNorm(shape.vision_width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.embeddings(pixels)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            hidden = layer(hidden)
        normed: Tensor = self.post_layernorm(hidden)
        return normed


class _PatchEmbeddings(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, tokens = shape.vision_width, (shape.image // shape.patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.patch_embed = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.pre_layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        normed: Tensor = self.pre_layernorm(tokens + self.position_embedding)
        return normed


class _VisionLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.vision_width
        self._heads = shape.vision_heads
        self.self_attn = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.input_layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, shape.vision_hidden), "fc2": nn.Linear(shape.vision_hidden, width)}
        )
        self.post_attention_layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        mixed = self.self_attn["query_key_value"](self.input_layernorm(hidden))
        # Rows of the weight lie head by head, each head's query, key and value together.
        query, key, value = mixed.reshape(batch, length, self._heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.self_attn["dense"](attended)
        inner = self.mlp["fc1"](self.post_attention_layernorm(hidden))
        out: Tensor = hidden + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))
        return out


class _Abstractor(nn.Module):
    """Learned queries that look at the picture's tokens; what they found is the picture to the language model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.query_embeds = nn.Parameter(torch.empty(1, shape.queries, shape.vision_width))
        self.vit_eos = nn.Parameter(torch.empty(1, 1, shape.width))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            nn.ModuleDict({"crossattention": _CrossAttention(shape)}) for _ in range(shape.abstractor_layers)
        )
        self.visual_fc = nn.Linear(shape.vision_width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.query_embeds.expand(len(tokens), -1, -1)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            queries = layer["crossattention"](queries, tokens)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(len(tokens), -1, -1)], dim=1)


class _CrossAttention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, hidden = shape.vision_width, shape.abstractor_hidden
        self._heads = shape.abstractor_heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        # Sines and cosines of the positions, which the checkpoint carries.
        tokens = (shape.image // shape.patch) ** 2 + 1
        self.attention.register_parameter("q_pos_embed", nn.Parameter(torch.empty(shape.queries, width)))
        self.attention.register_parameter("k_pos_embed", nn.Parameter(torch.empty(tokens, width)))
        self.norm1, self.normk = nn.LayerNorm(width), nn.LayerNorm(width)
        self.output = nn.ModuleDict(
            {
                "out_proj": nn.Linear(width, width),
                "norm2": nn.LayerNorm(width),
                "mlp": nn.ModuleDict(
                    {
                        "w1": nn.Linear(width, hidden),
                        "w2": nn.Linear(hidden, width),
                        "w3": nn.Linear(width, hidden),
                        "ffn_ln": nn.LayerNorm(hidden, eps=1e-6),
                    }
                ),
            }
        )

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.norm1(queries)
        both = torch.cat([queries, self.normk(tokens)], dim=1)
        attention: Any = self.attention
        places = (attention.q_pos_embed, torch.cat([attention.q_pos_embed, attention.k_pos_embed]))
        query = _heads(attention["query"](queries + places[0]), self._heads)
        key = _heads(attention["key"](both + places[1]), self._heads)
        value = _heads(attention["value"](both), self._heads)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(queries.shape)
        queries = queries + self.output["out_proj"](attended)
        mlp: Any = self.output["mlp"]
        inner = self.output["norm2"](queries)
        out: Tensor = queries + mlp["w2"](mlp["ffn_ln"](F.silu(mlp["w1"](inner)) * mlp["w3"](inner)))
        return out


class _DecoderLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self._heads = shape.heads
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": _linear(width, width),
                "k_proj": _multiway(lambda: _linear(width, width)),
                "v_proj": _multiway(lambda: _linear(width, width)),
                "o_proj": _linear(width, width),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": _linear(width, shape.hidden),
                "up_proj": _linear(width, shape.hidden),
                "down_proj": _linear(shape.hidden, width),
            }
        )
        self.input_layernorm = _multiway(lambda: _RmsNorm(shape))
        self.post_attention_layernorm = _multiway(lambda: _RmsNorm(shape))

    def forward(self, hidden: Tensor, start: int, stop: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        def by_kind(modules: nn.Module, values: Tensor) -> Tensor:
            """Text positions through the first of two modules, those of the picture through the second."""
            text, image = modules.multiway  # type: ignore[misc]
            parts = [text(values[:, :start]), image(values[:, start:stop]), text(values[:, stop:])]
            return torch.cat(parts, dim=1)

        normed = by_kind(self.input_layernorm, hidden)
        query = _rotated(_heads(self.self_attn["q_proj"](normed), self._heads), rotation)
        key = _rotated(_heads(by_kind(self.self_attn["k_proj"], normed), self._heads), rotation)
        value = _heads(by_kind(self.self_attn["v_proj"], normed), self._heads)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.self_attn["o_proj"](attended.transpose(1, 2).reshape(hidden.shape))
        normed = by_kind(self.post_attention_layernorm, hidden)
        inner = F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        out: Tensor = hidden + self.mlp["down_proj"](inner)
        return out


class _RmsNorm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.width))
        self._eps = shape.norm_eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return self.weight * scaled.to(hidden.dtype)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _multiway(make: Callable[[], nn.Module]) -> nn.Module:
    pair = nn.Module()
    pair.multiway = nn.ModuleList([make(), make()])
    return pair


def _heads(values: Tensor, count: int) -> Tensor:
    """``[batch, length, width]`` to ``[batch, heads, length, width / heads]``."""
    return values.reshape(*values.shape[:2], count, -1).transpose(1, 2)


def _rotation(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of Llama's rotary positions, float32 ``[length, width]``."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    twice = torch.cat([angles, angles], dim=1)
    return twice.cos(), twice.sin()


def _rotated(values: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (part.to(values.dtype) for part in rotation)
    first, second = values.chunk(2, dim=-1)
    return values * cosine + torch.cat([-second, first], dim=-1) * sine
