"""MINT-IQA checkpoints: the fixtures made with the authors' code, small ones of our own; tokenizers for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from critiq_exporters.families.mint_iqa.checkpoint import explaining_names, scoring_names
from critiq_exporters.families.mint_iqa.network import Explanation, MintIqa, Shape
from tests.exporters.families.clip_made import made
from tests.exporters.families.rule_made import PARITY, cut

torch.set_num_threads(1)  # for networks this small a second thread only waits

BERT_WORDS = 30522
SMALL = Shape(
    image=28,
    width=32,
    hidden=48,
    layers=2,
    heads=2,
    queries=4,
    text_width=24,
    text_hidden=32,
    text_layers=3,
    text_heads=12,
    words=41,
    context=40,
    regressor=6,
    embedding=16,
)
"""The published structure with two patches a side, for checkpoints that are to be spoilt."""
SCORES = ("score1_quality", "score2_authenticity", "score3_correspondence")


def fixture_state(folder: str) -> dict[str, Tensor]:
    """The checkpoint of a fixture, as the authors' training would save it."""
    layout = json.loads((PARITY / folder / "layout.json").read_text())
    with np.load(PARITY / folder / "buffers.npz") as buffers:
        as_built = {name: torch.from_numpy(buffers[name]) for name in buffers.files}
    return {
        name: as_built[name] if name in as_built else _made(name, tuple(shape))
        for name, shape, _ in layout["state_dict"]
    }


def _made(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("embed_tokens.weight"):  # by the fixtures' rule a table of words, like those named embeddings
        return made(name, shape) * float(0.02 / (0.7 / np.sqrt(shape[1])))
    return made(name, shape)


def small_state(*, explaining: bool = True) -> dict[str, Tensor]:
    """A checkpoint of the shape ``SMALL`` in the published layout, with what inference does not use."""
    state = _named(MintIqa(SMALL), scoring_names(SMALL))
    unused = {"temp": (), "vision_proj.weight": (8, 24), "text_proj.bias": (8,)}
    unused["Qformer.bert.encoder.layer.2.intermediate.dense.weight"] = (32, 24)
    halves = ["qformer1"]
    if explaining:
        state |= _named(Explanation(SMALL), explaining_names(SMALL))
        halves.append("qformer2")
    for half in halves:
        state |= {f"{half}.{name}": torch.ones(shape) for name, shape in unused.items()}
        state[f"{half}.Qformer.bert.embeddings.position_ids"] = torch.arange(40)[None]
    return state


def _named(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    ours = network.state_dict()
    return {theirs: made(theirs, tuple(ours[name].shape)) for theirs, name in names.items()}


def write_bert(folder: Path) -> None:
    """``vocab.txt`` of BERT's size, whose words say their numbers: text for any ids that the fixtures hold."""
    words = [f"w{number}" for number in range(BERT_WORDS)]
    words[0], words[100], words[101], words[102] = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")


def prompt_of(ids: NDArray[np.int64]) -> str:
    """The text that those words make of one row of padded ids."""
    return " ".join(f"w{number}" for number in ids if number not in (0, 101, 102))


def write_llama(folder: Path, words: int = 32000, replaced: Mapping[str, str] | None = None) -> None:
    """``tokenizer.json`` of a language model, whose words say their numbers, in transformers' layout.

    Texts that ``replaced`` holds are read as others.
    """
    table = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{number}": number for number in range(3, words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if replaced:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(*pair) for pair in replaced.items()])
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def watch(network: nn.Module, ours: dict[str, str], seen: dict[str, NDArray[Any]]) -> list[RemovableHandle]:
    """Keeps what modules of ``network`` give in ``seen``, by the authors' name. Returns what to remove afterwards."""

    def keep(theirs: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[theirs] = output.numpy()

        return hook

    modules = dict(network.named_modules())
    return [modules[name].register_forward_hook(keep(theirs)) for theirs, name in ours.items()]


def activations(half: str, layers: tuple[int, ...], blocks: tuple[int, ...], place: str) -> dict[str, str]:
    """Our names of the modules whose outputs the fixtures hold."""
    bert = f"{half}.Qformer.bert"
    return (
        {f"{half}.visual_encoder.patch_embed": "vision.patches", f"{half}.ln_vision": "vision.norm"}
        | {f"{half}.visual_encoder.blocks.{number}": f"vision.blocks.{number}" for number in blocks}
        | {f"{bert}.embeddings": f"{place}.norm"}
        | {f"{bert}.encoder.layer.{number}": f"{place}.layers.{number}" for number in layers}
    )


def check_activations(seen: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], half: str) -> None:
    """Everything watched against the fixture, within its tolerances. The last layer gives the queries only."""
    compared = set()
    for key, wanted in expected.items():
        if not key.startswith(f"act.{half}."):
            continue
        name, _, part = key.removeprefix("act.").partition("[")
        found = seen[name]
        if found.ndim == 4:
            found = found.reshape(*found.shape[:2], -1).swapaxes(1, 2)
        found = found[cut(part)]
        atol = 8e-6 if ".Qformer." in name else 5e-5
        np.testing.assert_allclose(found, wanted[:, : found.shape[1]], atol=atol, rtol=1e-4, err_msg=key)
        compared.add(name)
    assert compared == seen.keys()
