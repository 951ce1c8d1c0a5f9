"""Small random LMMs, saved as the published ones are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from critiq_server.runtime.lmm.instructions import INSTRUCTIONS
from critiq_server.runtime.lmm.mplug_owl2_network import MplugOwl2, Shape

MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_WIDTH = 48


def save_qwen(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A Qwen3-VL of 0.2 M parameters whose hidden states have 48 numbers; returns ``folder``."""
    tokenizer = byte_tokenizer(MARKS)
    ids = {mark: tokenizer.token_to_id(mark) for mark in MARKS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": QWEN_WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": QWEN_WIDTH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        # Larger than the usual start: otherwise attention hardly matters to the outcome.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer(marks: list[str]) -> Tokenizer:
    """One token a byte, and the special ``marks``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    return tokenizer


OWL_WIDTH = 64
OWL_CONFIG = {
    "model_type": "mplug_owl2",
    "hidden_size": OWL_WIDTH,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 400,
    "rms_norm_eps": 1e-5,
    "visual_config": {
        "visual_model": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 448,
            "patch_size": 14,
        },
        "visual_abstractor": {
            "num_learnable_queries": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
    },
}
"""Sizes of the tiny mPLUG-Owl2 of the fixture made with the authors' code, but for the vocabulary."""


def save_owl(
    folder: Path, state: Mapping[str, torch.Tensor] | None = None, *, vocabulary: int = 400, seed: int = 0
) -> Path:
    """An mPLUG-Owl2 in the published layout; random weights where no ``state`` is given; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**OWL_CONFIG, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config))
    if state is None:
        with torch.device("meta"):
            shapes = MplugOwl2(Shape.read(config)).state_dict()
        generator = torch.Generator().manual_seed(seed)
        state = {
            f"model.{name}": 1 + 0.02 * torch.randn(value.shape, generator=generator)
            if value.dim() == 1 and name.endswith("weight")
            else torch.randn(value.shape, generator=generator) * (0.7 / max(value[0].numel(), 1) ** 0.5)
            for name, value in shapes.items()
        }
    save_file(dict(state), folder / "model.safetensors")
    text = folder / "text.txt"
    text.write_text("\n".join(entry.text for entry in INSTRUCTIONS.values()) + "\nUSER: picture\n ASSISTANT:\n" * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder
