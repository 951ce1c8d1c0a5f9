"""What the log shows of a fault: where it happened, and none of the values that were at hand there."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULT = """
import sys
from critiq_server.settings import LogSettings
from critiq_server.telemetry.faults import internal
from critiq_server.telemetry.logs import configure

def fails(prompt, pixels):
    raise TypeError(len(prompt))

configure(LogSettings(format=sys.argv[1]))
try:
    fails(sys.argv[2], sys.argv[2].encode())
except TypeError as error:
    internal("a test", error)
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_fault_shows_neither_prompts_nor_pixels(form: str) -> None:
    # Logging is set up for a whole process.
    command = [sys.executable, "-c", _FAULT, form, "what stays here"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert "in fails" in printed
    assert "TypeError: 15" in printed
    assert "what stays here" not in printed
