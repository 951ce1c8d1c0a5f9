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


_STRANGERS = """
import logging
from critiq_server.settings import LogSettings
from critiq_server.telemetry.logs import configure

configure(LogSettings())
for _ in range(1000):
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("python_multipart.multipart").warning("Expected boundary character 45, got 97 at index 2")
logging.getLogger("uvicorn.error").error("Exception in ASGI application")
"""


def test_strangers_cannot_fill_the_disk() -> None:
    done = subprocess.run([sys.executable, "-c", _STRANGERS], capture_output=True, text=True, check=True, timeout=60)
    first, second = done.stderr.splitlines()
    assert "Invalid HTTP request received. (1 since the last such line)" in first
    assert "Exception in ASGI application" in second


_LEAVING = """
import logging
from grpc._cython import cygrpc
from critiq_server.settings import LogSettings
from critiq_server.telemetry.logs import configure

configure(LogSettings())
for error in (
    cygrpc.ExecuteBatchError('Failed "execute_batch": (<grpc._cython.cygrpc.SendMessageOperation object at 0x7f48>,)'),
    cygrpc.ExecuteBatchError("Failed grpc_call_start_batch: 8"),
    TypeError("a fault"),
):
    try:
        raise error
    except Exception:
        logging.getLogger("grpc._cython.cygrpc").exception("raised by a method")
"""


def test_callers_that_leave_while_they_are_answered_are_no_faults() -> None:
    command = [sys.executable, "-c", _LEAVING]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert "SendMessageOperation" not in printed
    assert "Failed grpc_call_start_batch: 8" in printed
    assert "a fault" in printed
    assert printed.count("raised by a method") == 2


_ESCAPES = """
import sys
import structlog
from critiq_server.settings import LogSettings
from critiq_server.telemetry.logs import configure

configure(LogSettings(format=sys.argv[1]))
structlog.get_logger("critiq").info("audit", model="\\x1b[2J\\u202eforged", version="1\\nerror: é")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_names_that_callers_choose_stay_within_their_line(form: str) -> None:
    command = [sys.executable, "-c", _ESCAPES, form]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert printed.removesuffix("\n").isprintable(), ascii(printed)
    assert "forged" in printed
    assert "error: " in printed


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_fault_shows_neither_prompts_nor_pixels(form: str) -> None:
    # Logging is set up for a whole process.
    command = [sys.executable, "-c", _FAULT, form, "what stays here"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert "in fails" in printed
    assert "TypeError: 15" in printed
    assert "what stays here" not in printed
