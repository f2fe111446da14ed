"""What every test folder shares."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    """Shells start what is put in the background with SIGINT ignored, nohup with SIGHUP; children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lease and quarantine files of test engines, and token ids, stay out of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEEDBENCH_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("SPEEDBENCH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
