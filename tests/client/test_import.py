"""``import critiq`` is light."""

from __future__ import annotations

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_import_pulls_in_nothing_heavy() -> None:
    loaded = modules_after("import critiq; critiq.Client(); critiq.Client('http://localhost').close()")
    unwanted = {"torch", "transformers", "onnxruntime", "critiq_server", "fastapi", "PIL", "numpy", "typer"}
    assert not loaded & unwanted
    assert {"grpc", "httpx"} <= loaded


def test_command_line_pulls_in_no_server() -> None:
    loaded = modules_after("import critiq.cli")
    assert not loaded & {"torch", "onnxruntime", "critiq_server", "fastapi", "pyarrow"}


def test_import_is_fast() -> None:
    code = "import time; start = time.process_time(); import critiq; print(time.process_time() - start)"
    # Processor time, and the best of three: the machine may be busy.
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)
        for _ in range(3)
    )
    assert seconds < 1.0
