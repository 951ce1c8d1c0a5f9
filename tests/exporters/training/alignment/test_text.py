from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from critiq_exporters.training.alignment import text

TEXTS = ["A red ball on the table", "two dogs play with a red ball", "the dogs sleep on the table, two by two"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in MiniLM's layout with random weights and a vocabulary of 30 pieces more than ``TEXTS`` need."""
    folder = tmp_path_factory.mktemp("minilm")
    corpus = [*TEXTS, "zebras and giraffes, quietly grazing", "zebras quietly"]
    tokenizer = text._word_tokenizer(corpus, 300)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    tower = text.TextTower(text.TowerShape(tokenizer.get_vocab_size()))
    save_file(_published_names(tower), folder / "model.safetensors")
    return folder


def _published_names(tower: text.TextTower) -> dict[str, torch.Tensor]:
    weights = {
        "embeddings.word_embeddings.weight": tower.words.weight.detach(),
        "embeddings.position_embeddings.weight": torch.randn(512, 384) * 0.1,
        "embeddings.token_type_embeddings.weight": torch.randn(2, 384) * 0.1,
        "embeddings.LayerNorm.weight": tower.norm.weight.detach(),
        "embeddings.LayerNorm.bias": tower.norm.bias.detach(),
    }
    for layer in range(6):
        for ours, theirs in text._LAYER_NAMES.items():
            for part in ("weight", "bias"):
                name = f"layers.{layer}.{ours}.{part}"
                weights[f"encoder.layer.{layer}.{theirs}.{part}"] = tower.get_parameter(name).detach()
    return weights


@torch.inference_mode()
def test_a_pruned_tower_says_the_same_of_texts_it_kept_the_pieces_of(pretrained: Path) -> None:
    tokenizer, tower = text.load_pretrained(pretrained, TEXTS * 2)
    everything = ["zebras and giraffes, quietly grazing"] * 2
    whole_tokenizer, whole = text.load_pretrained(pretrained, [*TEXTS * 2, *everything])
    assert tower.shape.vocabulary < whole.shape.vocabulary
    assert tokenizer.get_vocab_size() == tower.shape.vocabulary
    features, others = (t(*text.pad(text.encode(k, TEXTS))) for k, t in ((tokenizer, tower), (whole_tokenizer, whole)))
    assert torch.allclose(features, others, atol=1e-5)


def test_pruned_away_words_are_spelled_out_and_special_tokens_come_first(pretrained: Path) -> None:
    tokenizer, _ = text.load_pretrained(pretrained, TEXTS * 2)
    encoded = tokenizer.encode("zebras sleep")
    assert encoded.tokens[0] == "[CLS]"
    assert encoded.tokens[-1] == "[SEP]"
    assert "[UNK]" not in encoded.tokens
    assert "zebras" not in encoded.tokens
    assert "".join(piece.removeprefix("##") for piece in encoded.tokens[1:-1]) == "zebrassleep"
    assert [tokenizer.id_to_token(index) for index in range(4)] == list(text.SPECIAL)
    assert json.loads(tokenizer.to_str())["padding"] is None


@torch.inference_mode()
def test_padding_changes_nothing() -> None:
    tokenizer, tower = text.make_small(TEXTS * 5, seed=0)
    ids = text.encode(tokenizer, TEXTS[:1])
    short, wide = text.pad(ids, multiple=1), text.pad(ids, multiple=32)
    a, b = tower(*short), tower(*wide)
    assert torch.allclose(a, b[:, : a.shape[1]], atol=1e-6)
    assert torch.allclose(text.mean_of_tokens(a, short[1]), text.mean_of_tokens(b, wide[1]), atol=1e-6)


@torch.inference_mode()
def test_running_in_two_parts_is_running_at_once() -> None:
    tokenizer, tower = text.make_small(TEXTS * 5, seed=0)
    ids = text.encode(tokenizer, TEXTS)
    for index, features, sentence in text.run_tower(tower, ids, frozen=1, batch=2):
        padded, mask = text.pad([ids[index]], multiple=1)
        assert torch.allclose(tower(padded, mask, 1)[0], features, atol=1e-5)
        assert torch.allclose(text.mean_of_tokens(tower(padded, mask), mask)[0], sentence, atol=1e-5)


def test_long_texts_are_cut_but_closed() -> None:
    tokenizer, _ = text.make_small(TEXTS * 5, seed=0)
    (ids,) = text.encode(tokenizer, ["a red ball " * 100])
    assert len(ids) == text.MAX_TOKENS
    assert tokenizer.id_to_token(int(ids[-1])) == "[SEP]"
    assert np.array_equal(ids[:-1], tokenizer.encode("a red ball " * 100).ids[: text.MAX_TOKENS - 1])


def test_the_small_tower_is_the_seed_s() -> None:
    tokenizers = [text.make_small(TEXTS * 5, seed=0)[0].to_str() for _ in range(3)]
    assert len(set(tokenizers)) == 1
    first, second, third = (text.make_small(TEXTS * 5, seed)[1].words.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        text.find_pretrained(tmp_path)
