"""Checkpoint files: only tensors are read, and a broken or foreign file is refused with a reason."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from critiq_exporters.core.checkpoints import CheckpointError, fill, read_state


class Evil:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def test_pickled_objects_are_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"weight": torch.zeros(1), "extra": Evil(mark)}, tmp_path / "model.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil(mark)))
    for name in ("model.pt", "old.pt"):
        with pytest.raises(CheckpointError, match="never unpickles"):
            read_state(tmp_path / name)
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"Save the model's state_dict\(\)"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"weight": torch.zeros(1000)}, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:700])
    with pytest.raises(CheckpointError):
        read_state(tmp_path / name)


def test_something_else_than_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"epoch": 3, "weight": torch.zeros(1)}, tmp_path / "training.pt")
    for name in ("list.pt", "training.pt"):
        with pytest.raises(CheckpointError, match="does not hold a state dict"):
            read_state(tmp_path / name)


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; pass a local checkpoint file"):
        read_state(tmp_path / "owner" / "model")
    with pytest.raises(CheckpointError, match="exactly one checkpoint file, it holds: none"):
        read_state(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert read_state(tmp_path)["a"].tolist() == [1, 1]
    torch.save({"a": torch.ones(2)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"it holds: a\.pt, b\.pt"):
        read_state(tmp_path)


def test_half_precision_is_read_as_float32() -> None:
    module = nn.Linear(2, 1, bias=False)
    fill(module, {"w": torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16)}, {"w": "weight"})
    assert module.weight.dtype == torch.float32
    assert module.weight.tolist() == [[0.5, 2.0]]


def test_a_table_that_leaves_out_a_parameter_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="bias"):
        fill(nn.Linear(1, 1), {"w": torch.zeros(1, 1)}, {"w": "weight"})


def test_long_lists_are_cut() -> None:
    state = {f"part_{'abcdefghijkl'[i]}": torch.zeros(1) for i in range(12)}
    with pytest.raises(CheckpointError, match=r"unknown: 12 parameters(.|\n)*and 4 groups more"):
        fill(nn.Identity(), state, {})
