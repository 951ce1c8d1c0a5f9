"""Feeds one target with inputs that reach new code: ``python -m tests.fuzz.run --seconds 300 TARGET``.

Begins with the target's seeds and with what was found before (``tests/fuzz/found``). A finding is printed with its
traceback and kept in a file, and the status is not 0.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import atheris

FOUND = Path(__file__).parent / "found"
HEADROOM_MB = 2048
"""What inputs may take, beyond the peak so far: a process is born with its parent's, however large that was."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--keep", type=Path, default=Path(), help="where an input that fails is kept")
    chosen = parser.parse_args()
    with atheris.instrument_imports(include=["critiq", "critiq_server"], enable_loader_override=False):
        from tests.fuzz.targets import SECONDS, TARGETS
    if chosen.target not in TARGETS:
        parser.error(f"{chosen.target!r} is none of {', '.join(TARGETS)}")
    target = TARGETS[chosen.target]
    with tempfile.TemporaryDirectory() as corpus:
        kept = [path.read_bytes() for path in sorted((FOUND / chosen.target).glob("*"))]
        for number, seed in enumerate([*target.seeds(), *kept]):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        options = {
            "max_total_time": chosen.seconds,
            "max_len": target.longest,
            "timeout": SECONDS,
            "rss_limit_mb": HEADROOM_MB + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "artifact_prefix": f"{chosen.keep / chosen.target}-",
            "print_final_stats": 1,
            "verbosity": 0 if chosen.seconds < 60 else 1,
        }
        atheris.Setup([sys.argv[0], corpus, *(f"-{name}={value}" for name, value in options.items())], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
