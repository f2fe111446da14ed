"""Feed damaged and hostile dataset folders to the loader; anything but a Dataset or a ConfigError is a finding.

    python tools/fuzz_data.py [--inputs 100000] [--seed 0] [--folder /dev/shm] [--only NUMBER]

Every input is a folder of a few rows, made from the seed and its number alone, so that ``--only`` makes
one again (``--keep`` leaves its folder). One child process loads them and is watched from here. A finding is

- an exception that is no ConfigError, or a ConfigError that does not say where (the folder is not in it),
- a folder that loads although it must not: a manifest that leaves the folder, an id that is there twice,
- an undamaged folder that does not load,
- a call that does not end within --seconds, a child that dies, and memory: a call that takes more than
  --megabytes at its peak or keeps as much, or a child that keeps growing,
- a file descriptor that stays open.

Exit status 1 when there are findings. Needs pyarrow.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pytest_speedbench.data.loading import load
from pytest_speedbench.data.schema import CONFIGS, SENTINEL, categories_of
from pytest_speedbench.errors import ConfigError

Record = dict[str, Any]
MIB = 2**20
SHOWN_OF_A_KIND, SHOWN_CHARACTERS = 3, 1200

WORDS = (
    "Explain ",
    "été ",
    "数学 ",
    "مدينة ",
    "👩‍👩‍👧 ",
    "\u2028",
    "def f(x):\n\treturn x ",
    "<|im_end|>",
    "\x00",
    "\ufeff",
    "½ ",
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", " ", "\n", "text", "\ud800", "\udfffx"),
    *("\x00", "../../etc/passwd", [], {}, [[]], [None], [1], [""], ["a", 1], [["a"]], {"a": []}, ["\ud83d"], [{}]),
    *([{"role": "user"}], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x"}], "x" * 100_000),
    *([SENTINEL], [SENTINEL + "\n\n{article}"], ["ok", SENTINEL], ["x"] * 1000),
)
COLUMNS = ("question_id", "category", "sub_category", "turns", "source", "src_id", "difficulty", "multiturn")


@dataclass(frozen=True)
class Expect:
    """What the loader must do, where that is known: ``loads`` True, False, or None for either."""

    loads: bool | None = None


def record(rng: random.Random, config: str, number: int) -> Record:
    turns = ["".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "?" for _ in range(rng.choice((1, 1, 1, 2)))]
    return {
        "question_id": f"{rng.getrandbits(96):024x}{number:08x}",
        "category": rng.choice(categories_of(config)),
        "sub_category": rng.choice((None, "", "law")),
        "turns": turns,
        "source": "https://example.org/data/resolve/" + "0123456789" * 4 + "/file",
        "src_id": str(number),
        "difficulty": None,
        "multiturn": len(turns) > 1,
    }


# JSON lines


def as_lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def odd_value(rng: random.Random, rows: list[Record]) -> bytes:
    rows[rng.randrange(len(rows))][rng.choice(COLUMNS)] = rng.choice(ODD)
    return as_lines(rows)


def odd_columns(rng: random.Random, rows: list[Record]) -> bytes:
    row = rng.choice(rows)
    match rng.randrange(5):
        case 0:
            del row[rng.choice(COLUMNS)]
        case 1:
            row[rng.choice(("", "turns ", "Turns", "messages", "\ud800", "extra"))] = rng.choice(ODD)
        case 2:
            row["messages"] = [{"role": "user", "content": turn} for turn in row.pop("turns")]
            row["messages"][0][rng.choice(("role", "content", "name"))] = rng.choice(ODD)
        case 3:
            row.clear()
        case _:
            # The same key twice: the last one counts.
            text = json.dumps(row)[:-1] + f', "{rng.choice(COLUMNS)}": {json.dumps(rng.choice(ODD))}}}'
            return as_lines(rows) + text.encode() + b"\n"
    return as_lines(rows)


def odd_document(rng: random.Random, rows: list[Record]) -> bytes:
    deep = rng.choice((100, 5_000, 100_000))
    row = json.dumps(rows[0]).encode()
    return rng.choice(
        (
            *(
                b"",
                b"\n\n",
                b"null\n",
                b"[]\n",
                b"1\n",
                b'"text"\n',
                json.dumps(rows).encode(),
                json.dumps(rows, indent=1).encode(),
            ),
            *(
                b"[" * deep,
                b'{"turns":' * deep,
                b'{"turns":' + b"[" * deep + b"]" * deep + b"}",
                b"9" * deep,
                b"-" + b"9" * deep,
            ),
            *(row[:-1] + b', "multiturn": ' + b"9" * deep + b"}", row[:-1] + b', "x": 1e' + b"9" * 400 + b"}"),
            *(row + b"\r\n" + row, row + b"\r" + row, row.replace(b" ", b"\x0c"), row + row, row + b"\x1a"),
        )
    )


def encoding(rng: random.Random, rows: list[Record]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return rng.choice(
        (
            b"\xef\xbb\xbf" + text.encode(),
            b"\xef\xbb\xbf" * 2 + text.encode(),
            text.replace("\n", "\n\ufeff").encode(),
            text.encode("utf-16"),
            text.encode("utf-32-be"),
            text.encode("latin-1", "replace"),
            text.replace("?", "\udcff").encode("utf-8", "surrogateescape"),
            text.replace("?", "\ud800").encode("utf-8", "surrogatepass"),
            text.replace("?", "\u2028").encode(),
            text.replace("?", "\\ud83d\\ude00").encode(),
            text.replace("?", "\\ud83d").encode(),
            text.replace("?", "\\u0000").encode(),
        )
    )


def huge_row(rng: random.Random, rows: list[Record]) -> bytes:
    # Above 16 MiB it is not read; one in some hundred is that large, since it costs time.
    characters = 17 * MIB if rng.random() < 0.01 else rng.choice((10**5, 10**6))
    rows[-1]["turns"] = [rng.choice("a \n") * characters + "b"]
    return as_lines(rows)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """``data`` with some bytes flipped, cut, repeated, moved or put in."""
    array = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not array:
            break
        # The last bytes of a Parquet file say what the others mean.
        place = (
            rng.randrange(len(array)) if rng.random() < 0.5 else len(array) - 1 - rng.randrange(min(len(array), 400))
        )
        match rng.randrange(7):
            case 0 | 1:
                array[place] ^= 1 << rng.randrange(8)
            case 2:
                array[place] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x22, 0x5C, 0x0A))
            case 3:
                del array[place:]
            case 4:
                del array[place : place + rng.randint(1, 50)]
            case 5:
                array[place:place] = rng.randbytes(rng.randint(1, 20))
            case _:
                array[place:place] = array[place : place + rng.randint(1, 200)]
    return bytes(array)


def lines(rng: random.Random, rows: list[Record]) -> tuple[bytes, Expect]:
    make: Callable[[random.Random, list[Record]], bytes] = rng.choice(
        (odd_value, odd_value, odd_columns, odd_columns, odd_document, encoding, encoding)
    )
    if rng.random() < 0.02:
        make = huge_row
    if rng.random() < 0.4:
        return damaged(rng, as_lines(rows)), Expect()
    return make(rng, rows), Expect()


# Parquet

STRINGS = ("question_id", "category", "sub_category", "source", "src_id", "difficulty")
TYPES: tuple[Any, ...] = (
    *(pa.int64(), pa.uint8(), pa.float64(), pa.bool_(), pa.null(), pa.binary(), pa.large_string(), pa.large_binary()),
    *(
        pa.string_view(),
        pa.date32(),
        pa.timestamp("ns", "UTC"),
        pa.time64("us"),
        pa.duration("s"),
        pa.decimal128(38, 10),
    ),
    *(pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.list_(pa.string())), pa.list_(pa.string(), 2)),
    *(
        pa.list_(pa.int32()),
        pa.struct([("role", pa.string()), ("content", pa.string())]),
        pa.map_(pa.string(), pa.string()),
    ),
    *(pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), pa.dictionary(pa.int8(), pa.string())),
    *(pa.list_(pa.binary()), pa.binary(4), pa.float16()),
)


def values_of(kind: Any, number: int) -> Any:
    """``number`` values of an Arrow type, empty ones where nothing better is at hand."""
    samples: tuple[Any, ...] = (
        *("text", ["a", "b"], [["a"]], [1], {"role": "user", "content": "x"}, [{"role": "user", "content": "x"}]),
        *([("a", "b")], b"\xff\xfe", [b"\xff", b"a"], b"abcd", 3, 1.5, True, None),
    )
    for sample in samples:
        try:
            return pa.array([sample] * number, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return pa.nulls(number, kind)


def table(rows: Sequence[Record]) -> Any:
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in STRINGS}
    columns["turns"] = pa.array([row["turns"] for row in rows], pa.list_(pa.string()))
    columns["multiturn"] = pa.array([row["multiturn"] for row in rows], pa.bool_())
    return pa.table({name: columns[name] for name in COLUMNS})


def as_parquet(rng: random.Random, data: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        data,
        sink,
        compression=rng.choice(("snappy", "none", "zstd", "gzip", "brotli", "lz4")),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(("1.0", "2.0")),
        row_group_size=rng.choice((1, 2, 1000)),
        store_schema=rng.random() < 0.7,
        write_page_checksum=rng.random() < 0.2,
    )
    return sink.getvalue()


def odd_table(rng: random.Random, data: Any) -> Any:
    place = rng.randrange(len(COLUMNS))
    name = COLUMNS[place]
    match rng.randrange(6):
        case 0:
            return data.remove_column(place)
        case 1:
            return data.append_column(name, data.column(place))
        case 2:
            return data.rename_columns([f"{column}\x00" if column == name else column for column in data.column_names])
        case 3:
            return data.slice(0, 0)
        case 4:
            blown = ["x" * 10**6] * data.num_rows
            return data.set_column(place, name, pa.array(blown, pa.string()))
        case _:
            return data.set_column(place, name, values_of(rng.choice(TYPES), data.num_rows))


def parquet(rng: random.Random, rows: list[Record]) -> tuple[bytes, Expect]:
    data = table(rows)
    if rng.random() < 0.65:
        return damaged(rng, as_parquet(rng, data)), Expect()
    try:
        return as_parquet(rng, odd_table(rng, data)), Expect()
    except pa.ArrowException:  # a type that cannot be written
        return b"PAR1", Expect(loads=False)


# Folders


def place_of(config: str, kind: str, rng: random.Random) -> str:
    if kind == "jsonl":
        return f"{config}.jsonl"
    return rng.choice((f"speed/{config}/test.parquet", f"{config}/test-00000-of-00001.parquet"))


def write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def manifest_of(files: dict[str, bytes], number: int) -> Record:
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "rows": number} for name, data in files.items()}
    return {"id": "fuzz@1", "files": entries}


def with_manifest(rng: random.Random, folder: Path, name: str, data: bytes, number: int) -> Expect:
    """Sound data and a manifest that is odd, or leads out of the folder."""
    content = manifest_of({name: data}, number)
    write(folder, name, data)
    entry = content["files"][name]
    text = None
    expect = Expect()
    match rng.randrange(8):
        case 0:
            write(folder, "manifest.json", json.dumps(content).encode())
            return Expect(loads=True)
        case 1:
            write(folder.parent, f"{folder.name}.outside.jsonl", data)
            outside = rng.choice(
                (
                    f"../{folder.name}.outside.jsonl",
                    str(folder / name),
                    f"a/../{name}",
                    f"{name}/../{name}",
                    f"../{folder.name}/{name}",
                )
            )
            content["files"][outside] = entry
            expect = Expect(loads=False)
        case 2:
            content["files"][
                rng.choice(("", ".", "..", "/", "\x00", "a\x00b", "\ud800", "x" * 5000, "gone.jsonl", "a//b"))
            ] = entry
            expect = Expect(loads=False)
        case 3:
            entry[rng.choice(("sha256", "rows"))] = rng.choice(ODD)
        case 4:
            content[rng.choice(("id", "files"))] = rng.choice(ODD)
        case 5:
            entry["sha256"] = rng.choice((entry["sha256"].upper(), "0" * 64, entry["sha256"][:-1]))
            expect = Expect(loads=False)
        case 6:
            text = rng.choice(
                (b"", b"[" * 100_000, b"null", b'{"files": {}}', b"\xff\xfe{}", b'{"id": "x", "files": {}}')
            )
            expect = Expect(loads=False)
        case _:
            text = damaged(rng, json.dumps(content).encode())
    write(folder, "manifest.json", json.dumps(content).encode() if text is None else text)
    return expect


def tricks(rng: random.Random, folder: Path, name: str, data: bytes) -> Expect:
    """Sound data, and a folder that is not as it should be."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match rng.randrange(10):
        case 0:  # as in a download cache
            write(folder, "blobs/1", data)
            path.symlink_to(folder / "blobs" / "1")
            return Expect(loads=True)
        case 1:
            path.symlink_to(rng.choice((path, folder / "gone", Path("/dev/zero"), Path("/dev/null"), folder)))
            return Expect(loads=False)
        case 2:
            path.mkdir()
            return Expect(loads=False)
        case 3:
            os.mkfifo(path)
            return Expect(loads=False)
        case 4:
            path.write_bytes(data)
            (path.parent / "loop").symlink_to(path.parent)
            return Expect(loads=True)
        case 5:
            path.write_bytes(data)
            config = next(part for part in Path(name).with_suffix("").parts if part in CONFIGS)
            write(folder, f"{config}.jsonl" if path.suffix == ".parquet" else f"speed/{config}/x.parquet", b"PAR1")
            return Expect(loads=False)
        case 6:
            path.write_bytes(data)
            write(folder, rng.choice(("throughput_4k.jsonl", "speed/throughput_0k/x", "throughput_128k.jsonl")), b"")
            return Expect(loads=False)
        case 7:
            path.write_bytes(data)
            Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe" + os.fsencode(path.suffix))).write_bytes(b"PAR1")
            return Expect()
        case 8:
            path.write_bytes(data)
            write(folder, f"{rng.choice(CONFIGS)}.jsonl/x", b"") if path.suffix == ".parquet" else None
            return Expect()
        case _:
            path.write_bytes(b"")
            return Expect(loads=False)


def build(folder: Path, seed: int, number: int) -> Expect:
    """Write input ``number`` of ``seed`` to ``folder``."""
    rng = random.Random(f"{seed}/{number}")
    folder.mkdir()
    config, kind = rng.choice(CONFIGS), rng.choice(("jsonl", "parquet"))
    rows = [record(rng, config, index) for index in range(rng.randint(1, 4))]
    name = place_of(config, kind, rng)
    draw = rng.random()
    if draw < 0.04:
        twice = draw < 0.02
        rows += rows[:1] if twice else []
        write(folder, name, as_lines(rows) if kind == "jsonl" else as_parquet(rng, table(rows)))
        return Expect(loads=not twice)
    if draw < 0.20:
        sound = as_lines(rows) if kind == "jsonl" else as_parquet(rng, table(rows))
        return with_manifest(rng, folder, name, sound, len(rows)) if draw < 0.12 else tricks(rng, folder, name, sound)
    data, expect = (lines if kind == "jsonl" else parquet)(rng, rows)
    write(folder, name, data)
    return expect


# Running


def attempt(folder: Path, expect: Expect, *, allow_partial: bool) -> tuple[str, str]:
    """What loading did: ``loaded``, ``refused`` or ``finding``, and the message."""
    try:
        dataset = load(str(folder), allow_partial=allow_partial)
        for point in dataset.points():
            dataset.rows(dataset.prompts(point))
    except ConfigError as error:
        text = str(error)
        if str(folder) not in text:
            return "finding", f"an error that does not say where: {text[:500]}"
        if expect.loads:
            return "finding", f"sound data refused: {text[:500]}"
        return "refused", text.replace(str(folder), "")
    except BaseException:  # whatever it is, it is a finding
        return "finding", traceback.format_exc(limit=-6)
    if expect.loads is False:
        return "finding", f"loaded, and must not: {sorted(map(str, folder.rglob('*')))[:8]}"
    return "loaded", ""


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / MIB


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(connection: Connection, root: Path, seed: int, numbers: Sequence[int], megabytes: float, keep: bool) -> None:
    """Load the inputs ``numbers``; say before each one which it is, and after it what it did."""
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the cheapest way to count them
    for number in numbers:
        folder = root / str(number)
        expect = build(folder, seed, number)
        connection.send(("start", number, "", 0.0, 0.0))
        resident, peak, start = resident_mib(), peak_mib(), time.perf_counter()
        outcome, text = attempt(folder, expect, allow_partial=number % 2 == 0)
        seconds = time.perf_counter() - start
        # A peak shows only where it is a new one of the process, so the first call of a kind tells.
        grown = max(resident_mib() - resident, peak_mib() - peak)
        if grown > megabytes:
            outcome, text = "finding", f"{grown:.0f} MiB more memory; {outcome}: {text[:300]}"
        opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        if opened > descriptors:
            gc.collect()
            opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        if opened > descriptors:
            outcome, text = "finding", f"{opened - descriptors} file descriptors left open; {outcome}: {text[:300]}"
            descriptors = opened
        if not keep:
            shutil.rmtree(folder)
            (root / f"{number}.outside.jsonl").unlink(missing_ok=True)
        connection.send((outcome, number, text, seconds, resident_mib()))
    connection.close()


@dataclass
class Tally:
    outcomes: Counter[str]
    refusals: Counter[str]
    findings: Counter[str]
    slowest: tuple[float, int] = (0.0, -1)
    resident_early: float = 0.0
    resident: float = 0.0


def kind_of(message: str) -> str:
    """A refusal without what differs from input to input."""
    text = re.sub(r"^[^:]*: ", "", message)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\(.*|found .*|\b[0-9a-f]{8,}\b|/\S+", "…", text)
    return re.sub(r"\d+", "N", text)[:70]


def watch(root: Path, numbers: Sequence[int], options: argparse.Namespace) -> tuple[Tally, int]:
    """Have children load the inputs, one after another; the tally and the number of findings."""
    context = multiprocessing.get_context("fork")
    tally = Tally(Counter(), Counter(), Counter())
    rest, findings = list(numbers), 0

    def finding(number: int, text: str) -> None:
        nonlocal findings
        findings += 1
        tally.outcomes["finding"] += 1
        kind = kind_of(text.strip().splitlines()[-1])
        tally.findings[kind] += 1
        if tally.findings[kind] <= SHOWN_OF_A_KIND:
            shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:300]}…{text[-SHOWN_CHARACTERS:]}"
            print(f"FINDING input {number} (--seed {options.seed} --only {number}): {shown}", flush=True)

    while rest:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=child, args=(theirs, root, options.seed, rest, options.megabytes, options.keep), daemon=True
        )
        process.start()
        theirs.close()
        current, done = rest[0], 0
        try:
            while done < len(rest):
                if not ours.poll(options.seconds):
                    process.kill()
                    finding(current, f"no end after {options.seconds} s")
                    done += 1
                    break
                outcome, current, text, seconds, resident = ours.recv()
                if outcome == "start":
                    continue
                done += 1
                tally.slowest = max(tally.slowest, (seconds, current))
                tally.resident = resident
                if sum(tally.outcomes.values()) == options.warm_up:
                    tally.resident_early = resident
                if outcome == "finding":
                    finding(current, text)
                    continue
                tally.outcomes[outcome] += 1
                if outcome == "refused":
                    tally.refusals[kind_of(text)] += 1
        except EOFError:
            process.join()
            finding(current, f"the process died with status {process.exitcode}")
            done += 1
        process.join()
        ours.close()
        rest = rest[done:]
    grown = tally.resident - tally.resident_early
    if tally.resident_early and grown > options.megabytes:
        finding(-1, f"memory grew by {grown:.0f} MiB between input {options.warm_up} and the last")
    return tally, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input alone")
    parser.add_argument("--keep", action="store_true", help="leave the folders")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest call (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=300.0, help="most memory of a call (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=2000, help="inputs before growth counts (default: %(default)s)")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz-data-", dir=options.folder if options.folder.is_dir() else None))
    numbers = range(options.inputs) if options.only is None else [options.only]
    start = time.perf_counter()
    try:
        tally, findings = watch(root, numbers, options)
    finally:
        if options.keep:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    print(f"seed {options.seed}: {len(numbers)} inputs in {time.perf_counter() - start:.0f} s, {dict(tally.outcomes)}")
    print(
        f"slowest {tally.slowest[0]:.2f} s (input {tally.slowest[1]}); memory at the end {tally.resident:.0f} MiB, "
        f"after the first {options.warm_up} inputs {tally.resident_early:.0f} MiB"
    )
    for kind, count in tally.findings.most_common():
        print(f"{count:7} findings: {kind}")
    print(f"{len(tally.refusals)} kinds of refusal; the most frequent:")
    for kind, count in tally.refusals.most_common(25):
        print(f"{count:7} {kind}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
