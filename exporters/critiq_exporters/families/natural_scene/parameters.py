"""Files of parameters -> arrays: MATLAB's, NumPy's or safetensors, never pickled; and what a clean model must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from critiq_exporters.core.checkpoints import CheckpointError

SUFFIXES = (".mat", ".npz", ".safetensors")
Array = NDArray[np.float64]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a parameter file by name. Raises ``CheckpointError`` if it is not a readable file of that kind."""
    if path.is_dir():
        held = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
        if len(held) != 1:
            names = ", ".join(entry.name for entry in held) or "none"
            raise CheckpointError(f"{path} must hold exactly one file of parameters, it holds: {names}")
        path = held[0]
    readers: Mapping[str, Callable[[Path], dict[str, NDArray[Any]]]]
    readers = {".mat": _mat, ".npz": _npz, ".safetensors": load_file}
    if path.suffix not in readers:
        raise CheckpointError(f"{path} is none of the parameter files that are read ({', '.join(SUFFIXES)})")
    try:
        return readers[path.suffix](path)
    except (ValueError, OSError, TypeError, NotImplementedError, BadZipFile, MatReadError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable {path.suffix} file: {error}") from error


def _mat(path: Path) -> dict[str, NDArray[Any]]:
    return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def pick(
    arrays: Mapping[str, NDArray[Any]], names: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The wanted arrays as float64, each of which may go by several names.

    ``shapes`` gives the shape of each; 0 stands for any length, and vectors may lie either way. Raises
    ``CheckpointError`` with the list of what is missing, wrongly shaped or not finite; other arrays are left alone.
    """
    found: dict[str, Array] = {}
    problems = []
    for wanted, known in names.items():
        name = next((name for name in known if name in arrays), None)
        if name is None:
            problems.append(f"  missing: {' or '.join(known)}")
            continue
        value, shape = arrays[name], shapes[wanted]
        if value.dtype.kind not in "fiu":
            problems.append(f"  not numbers: {name} ({value.dtype})")
            continue
        if len(shape) == 1 and value.ndim == 2 and 1 in value.shape:
            value = value.reshape(-1)
        if value.ndim != len(shape) or any(size not in (0, got) for size, got in zip(shape, value.shape, strict=False)):
            sides = ", ".join("any" if side == 0 else str(side) for side in shape)
            problems.append(f"  wrongly shaped: {name} is {list(arrays[name].shape)}, should be [{sides}]")
        elif not np.isfinite(value).all():
            problems.append(f"  not finite: {name}")
        found[wanted] = np.array(value, np.float64)
    if problems:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise CheckpointError("\n".join(["the parameters do not fit:", *problems, f"  the file holds: {held}"]))
    return found


def check_covariance(matrix: Array, name: str) -> None:
    """Raises ``CheckpointError`` unless ``matrix`` is symmetric and positive definite."""
    scale = float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * scale):
        raise CheckpointError(f"{name} is not symmetric, so it is no covariance")
    smallest = float(np.linalg.eigvalsh((matrix + matrix.T) / 2).min())
    if not smallest > 0:
        raise CheckpointError(
            f"{name} is not positive definite (smallest eigenvalue {smallest:.3g}): fit on more pictures"
        )
