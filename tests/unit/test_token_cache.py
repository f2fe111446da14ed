"""The cache of token ids: what it saves comes back, and whatever is wrong with it costs only time."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.token_cache import MAX_BYTES, TokenCache, folder_of

IDS = [array("I", [1, 2, 3]), array("I"), array("I", [0, 2**32 - 1])]
HEADER = 88
SIZE = HEADER + 8 * len(IDS) + 4 * 5


class Computed:
    """Counts how often ids had to be computed."""

    def __init__(self, ids: Sequence[array[int]] = tuple(IDS)) -> None:
        self.ids, self.times = ids, 0

    def __call__(self) -> Sequence[array[int]]:
        self.times += 1
        return self.ids


def stored(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_second_time_is_read_from_disk(tmp_path: Path) -> None:
    folder, computed = tmp_path / "new" / "folder", Computed()
    for _ in range(3):
        found = TokenCache(folder).ids(["key"], 3, computed)
        assert found == IDS
        assert {ids.typecode for ids in found} == {"I"}
    assert computed.times == 1
    (file,) = stored(folder)
    assert file.suffix == ".ids"
    assert file.stat().st_size == SIZE
    assert folder.stat().st_mode & 0o077 == 0


def test_the_format(tmp_path: Path) -> None:
    TokenCache(tmp_path).ids(["key"], 3, Computed())
    (file,) = stored(tmp_path)
    data = file.read_bytes()
    assert data[:8] == b"SBIDS\0\0\1"
    assert data[8:40].hex() == file.stem
    assert struct.unpack("<QQ", data[40:56]) == (3, 5)
    assert struct.unpack("<3Q5I", data[HEADER:]) == (3, 0, 2, 1, 2, 3, 0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=20).map(lambda numbers: array("I", numbers))))
def test_any_ids_come_back(ids: list[array[int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        computed = Computed(ids)
        assert TokenCache(Path(name)).ids(["key"], len(ids), computed) == ids
        assert TokenCache(Path(name)).ids(["key"], len(ids), computed) == ids
        assert computed.times == 1


@pytest.mark.parametrize(
    "other", [["abc"], ["ab", "", "c"], ["a", "bc"], ["c", "ab"], ["ab"], [], ["ab", "d"], ["ab", "c", ""]]
)
def test_another_key_is_another_entry(tmp_path: Path, other: list[str]) -> None:
    cache, computed = TokenCache(tmp_path), Computed()
    cache.ids(["ab", "c"], 3, computed)
    cache.ids(other, 3, computed)
    assert computed.times == 2
    assert len(stored(tmp_path)) == 2


def test_a_key_of_any_text(tmp_path: Path) -> None:
    computed = Computed()
    for _ in range(2):
        assert TokenCache(tmp_path).ids(["日本\0\ud800"], 3, computed) == IDS
    assert computed.times == 1


def test_no_folder_is_no_cache() -> None:
    computed = Computed()
    for _ in range(2):
        assert TokenCache(None).ids(["key"], 3, computed) == IDS
    assert computed.times == 2


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_of({"SPEEDBENCH_CACHE_DIR": str(tmp_path)}) == tmp_path / "token-ids"
    assert folder_of({"SPEEDBENCH_CACHE_DIR": ""}) is None
    assert folder_of({"SPEEDBENCH_CACHE_DIR": " "}) is None
    assert folder_of({}) == Path(platformdirs.user_cache_dir("pytest-speedbench")) / "token-ids"
    monkeypatch.chdir(tmp_path)
    assert folder_of({"SPEEDBENCH_CACHE_DIR": "here"}) == tmp_path / "here" / "token-ids"


# Damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header cut": lambda data: data[: HEADER - 1],
    "body cut": lambda data: data[:-1],
    "only a header": lambda data: data[:HEADER],
    "longer": lambda data: data + b"\0",
    "four bytes longer": lambda data: data + bytes(4),
    "another version": lambda data: data[:7] + b"\2" + data[8:],
    "another key": lambda data: data[:8] + bytes(32) + data[40:],
    "another count": lambda data: data[:40] + struct.pack("<Q", 4) + data[48:],
    "a huge count": lambda data: data[:40] + struct.pack("<Q", 2**63) + data[48:],
    "a huge total": lambda data: data[:48] + struct.pack("<Q", 2**62) + data[56:],
    "a huge length": lambda data: data[:HEADER] + struct.pack("<3Q", 2**62, 0, 2) + data[HEADER + 24 :],
    "lengths moved": lambda data: data[:HEADER] + struct.pack("<3Q", 2, 1, 2) + data[HEADER + 24 :],
    "an id changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "text": lambda data: b"nonsense" * 20,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_and_written_again(tmp_path: Path, damage: str) -> None:
    cache, computed = TokenCache(tmp_path), Computed()
    cache.ids(["key"], 3, computed)
    (file,) = stored(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert cache.ids(["key"], 3, computed) == IDS
    assert computed.times == 2
    assert file.read_bytes() == whole
    assert stored(tmp_path) == [file]


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(at: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache, computed = TokenCache(Path(name)), Computed()
        cache.ids(["key"], 3, computed)
        (file,) = stored(Path(name))
        data = bytearray(file.read_bytes())
        data[at] ^= 1 << bit
        file.write_bytes(data)
        assert cache.ids(["key"], 3, computed) == IDS
        assert computed.times == 2


def test_a_renamed_file_is_not_taken_for_another(tmp_path: Path) -> None:
    cache, other = TokenCache(tmp_path), Computed([array("I", [9])] * 3)
    cache.ids(["one"], 3, Computed())
    cache.ids(["two"], 3, other)
    one = next(path for path in stored(tmp_path) if path.stat().st_size == SIZE)
    two = next(path for path in stored(tmp_path) if path != one)
    one.replace(two)
    assert cache.ids(["two"], 3, other) == other.ids
    assert other.times == 2


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    cache, computed = TokenCache(tmp_path), Computed()
    cache.ids(["key"], 3, computed)
    (file,) = stored(tmp_path)
    file.unlink()
    file.mkdir()
    assert cache.ids(["key"], 3, computed) == IDS
    assert stored(tmp_path) == [file]  # and no temporary file


# Disks that do not take it


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert TokenCache(tmp_path / "file" / "folder").ids(["key"], 3, Computed()) == IDS
    assert TokenCache(tmp_path / "file").ids(["key"], 3, Computed()) == IDS
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_nobody_can_write() -> None:
    assert TokenCache(Path("/proc/self")).ids(["key"], 3, Computed()) == IDS  # also for root


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    ids = [array("I", range(10_000))]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # Python ignores SIGXFSZ: a write fails
    try:
        assert TokenCache(tmp_path).ids(["key"], 1, Computed(ids)) == ids
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stored(tmp_path) == []


def test_errors_of_the_computation_are_not_hidden(tmp_path: Path) -> None:
    def compute() -> Sequence[array[int]]:
        raise OSError("of its own")

    with pytest.raises(OSError, match="of its own"):
        TokenCache(tmp_path).ids(["key"], 3, compute)
    assert stored(tmp_path) == []


# Size


def fill(cache: TokenCache, key: str, tokens: int = 100) -> None:
    cache.ids([key], 1, Computed([array("I", [0] * tokens)]))


def known(cache: TokenCache, key: str, tokens: int = 100) -> bool:
    computed = Computed([array("I", [0] * tokens)])
    cache.ids([key], 1, computed)
    return computed.times == 0


ENTRY = HEADER + 8 + 400


def aged(folder: Path) -> None:
    """Make every file older, keeping the order of those used before."""
    for path in stored(folder):
        facts = path.stat()
        os.utime(path, (facts.st_mtime - 100, facts.st_mtime - 100))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, 3 * ENTRY)
    for key in "abc":
        fill(cache, key)
        aged(tmp_path)
    assert known(cache, "a")  # which makes b the oldest
    aged(tmp_path)
    fill(cache, "d")
    assert len(stored(tmp_path)) == 3
    assert [known(TokenCache(tmp_path, MAX_BYTES), key) for key in "acd"] == [True] * 3
    assert not known(cache, "b")


def test_what_is_larger_than_the_limit_is_not_stored(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, ENTRY)
    fill(cache, "a")
    fill(cache, "large", tokens=101)
    assert known(cache, "a")
    assert len(stored(tmp_path)) == 1


def test_files_of_others_are_left_alone_and_abandoned_ones_removed(tmp_path: Path) -> None:
    for name in ("notes.txt", "young.tmp", "old.tmp"):
        (tmp_path / name).write_bytes(bytes(10_000))
    for name in ("notes.txt", "old.tmp"):
        os.utime(tmp_path / name, (0, 0))
    fill(TokenCache(tmp_path, ENTRY), "a")
    assert {path.name for path in stored(tmp_path) if path.suffix != ".ids"} == {"notes.txt", "young.tmp"}
    assert len(stored(tmp_path)) == 3


# Several processes


def test_processes_that_share_a_folder_never_see_half_a_file(tmp_path: Path) -> None:
    # A limit of two entries, so that files come and go under the readers.
    code = (
        "import sys; from array import array; from pathlib import Path\n"
        "from pytest_speedbench.token_cache import TokenCache\n"
        "cache = TokenCache(Path(sys.argv[1]), 2 * (88 + 8 + 4 * 5000))\n"
        "for i in range(300):\n"
        "    number = (i * int(sys.argv[2])) % 5\n"
        "    wanted = array('I', [number] * 5000)\n"
        "    assert cache.ids([str(number)], 1, lambda: [wanted]) == [wanted], number\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), step], stderr=subprocess.PIPE, text=True)
        for step in ("1", "2", "3", "4")
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=60)
        assert worker.returncode == 0, stderr
    assert all(path.suffix == ".ids" for path in stored(tmp_path))
    assert 1 <= len(stored(tmp_path)) <= 2
