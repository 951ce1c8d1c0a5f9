from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles import write_bundle, write_simulated


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_simulated(root, batch_ms=150.0, max_batch=4)
    return root
