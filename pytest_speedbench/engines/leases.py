"""What an engine leaves on the machine while it runs, and how the next run ends what a killed run left.

Every engine process carries a marker in its environment, and a lease file names the marker, the
process and its owner (the pytest process). ``kill -9`` of the owner leaves the file behind;
``reap`` finds it and ends the engine.

An environment is not always readable: programs that set their own process title, such as the
workers of vLLM and SGLang, overwrite it. So processes are also known by their session, by being
children of such a process, and, while the owner lives, by writing to the engine's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import psutil
from filelock import FileLock, Timeout

from pytest_speedbench.errors import ConfigError, EngineError

MARKER = "SPEEDBENCH_ENGINE_LEASE"
"""Environment variable of every engine process; its value is the lease's ``marker``."""
STATE_DIR = "SPEEDBENCH_STATE_DIR"
SCHEMA = 1
GRACE_S = 5.0
"""How long a left-over engine may take to end after SIGTERM."""
KILL_WAIT_S = 10.0
"""How long a process may take to be gone after SIGKILL; the driver frees GPU memory in that time."""
LOCK_WAIT_S = 120.0
_POLL_S = 0.02


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's state is kept between runs: ``SPEEDBENCH_STATE_DIR``, else the platform's place."""
    given = environ.get(STATE_DIR)
    return Path(given).absolute() if given else platformdirs.user_state_path("pytest-speedbench")


def leases_folder(environ: Mapping[str, str]) -> Path:
    """The folder of lease files."""
    return state_folder(environ) / "engines"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for good: ids are reused, an id with its time of creation is not.

    ``created``: seconds since boot, which a change of the clock does not move (seconds since 1970
    where there is no /proc).
    """

    pid: int
    created: float


def identity(pid: int) -> Identity | None:
    """The process that has this id now, also one that only waits for its parent to take notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        # The name before it may hold blanks and parentheses. Field 22 is the start in clock ticks.
        return Identity(pid, int(stat.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        with contextlib.suppress(psutil.Error):
            return Identity(pid, psutil.Process(pid).create_time())
        return None


def is_running(process: Identity) -> bool:
    """Whether this very process still runs. A zombie does not."""
    with contextlib.suppress(psutil.Error):
        return identity(process.pid) == process and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where process ids mean something: lease folders may be shared by machines and containers."""

    host: str
    boot: str
    pid_namespace: str
    uid: int

    @classmethod
    def here(cls) -> Place:
        """This process's place. What the system does not tell is empty."""
        boot = namespace = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        with contextlib.suppress(OSError):
            namespace = str(Path("/proc/self/ns/pid").readlink())
        return cls(socket.gethostname(), boot, namespace, os.getuid())

    def is_same(self, other: Place) -> bool:
        """Whether an id names the same process in both. Containers on one host may share its processes."""
        if self.boot and self.pid_namespace:
            return (self.boot, self.pid_namespace, self.uid) == (other.boot, other.pid_namespace, other.uid)
        return self == other

    def is_before_reboot_of(self, other: Place) -> bool:
        """Whether it is the same machine, started anew since."""
        known = self.boot and other.boot
        return bool(known) and self.boot != other.boot and (self.host, self.uid) == (other.host, other.uid)


@dataclass(frozen=True, slots=True)
class Lease:
    """One running engine. ``engine`` is None until it has been spawned; ``started`` is ISO 8601, UTC."""

    marker: str
    argv0: str
    log: str
    owner: Identity
    place: Place
    started: str
    engine: Identity | None = None
    port: int | None = None
    gpus: tuple[str, ...] = ()

    @classmethod
    def new(cls, *, argv0: str, log: Path, port: int | None = None, gpus: Iterable[str] = ()) -> Lease:
        """A lease of this process, with a fresh marker."""
        owner = identity(os.getpid())
        if owner is None:
            raise RuntimeError(f"this process (pid {os.getpid()}) is not in the process table")
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(uuid4().hex, argv0, str(log), owner, Place.here(), started, None, port, tuple(gpus))

    def path(self, folder: Path) -> Path:
        """Its file in ``folder``."""
        return folder / f"{self.marker}.json"

    def write(self, folder: Path) -> None:
        """Write or replace its file, whole or not at all. Raises ConfigError where that cannot be done."""
        temporary = folder / f".{self.marker}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}), encoding="utf-8")
            temporary.replace(self.path(folder))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ConfigError(
                f"cannot write the lease file {self.path(folder)} ({error.strerror or error}), without which a killed "
                f"run would leave its engine behind; set {STATE_DIR} to a folder that can be written"
            ) from error

    def remove(self, folder: Path) -> None:
        """Remove its file, if it is there."""
        with contextlib.suppress(OSError):
            self.path(folder).unlink(missing_ok=True)


def _read(path: Path) -> Lease | None:
    """The lease in a file; None when a newer version of this package wrote it. Raises ValueError or OSError."""
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    try:
        schema = data.pop("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            return None
        engine = data.pop("engine")
        lease = Lease(
            marker=str(data.pop("marker")),
            argv0=str(data.pop("argv0")),
            log=str(data.pop("log")),
            owner=_identity_in(data.pop("owner")),
            place=Place(**data.pop("place")),
            started=str(data.pop("started")),
            engine=None if engine is None else _identity_in(engine),
            port=data.pop("port"),
            gpus=tuple(data.pop("gpus")),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    if lease.marker != path.stem:
        # The marker decides what is killed: an empty or a copied one must not.
        raise ValueError("its marker is not its name")
    return lease


def _identity_in(data: Any) -> Identity:
    return Identity(int(data["pid"]), float(data["created"]))


@dataclass(frozen=True, slots=True)
class Kin:
    """How the processes of one engine are told from all others.

    ``engine``: its first process, also the id of its session. ``log``: whoever has this file as
    standard output or error belongs to it. ``own``: this process started it, so its session is
    known to be its own.
    """

    marker: str
    engine: Identity | None
    log: Path | None = None
    own: bool = False

    def find(self, known: Iterable[psutil.Process] = ()) -> tuple[psutil.Process, ...]:
        """Its processes that run now, zombies left out, by id.

        ``known``: processes seen before, which count while they run although nothing may tell any
        more that they belong to it. This process and those above it are never in the answer.
        """
        above = _self_and_above()
        leader = None if self.engine is None else identity(self.engine.pid)
        # With the id given to another process, a session of that number is another session.
        session = self.engine.pid if self.engine is not None and leader in (None, self.engine) else None
        certain = self.own or (leader is not None and leader == self.engine)
        found = {p.pid: p for p in known if _runs(p)}
        parents: dict[int, tuple[psutil.Process, int]] = {}
        for pid in psutil.pids():
            if pid in above:
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                parents[pid] = (process, process.ppid())
                if self._is_member(process, session, certain=certain):
                    found[pid] = process
        # The kernel keeps parents up to date: a child of a member is a child now.
        grew = True
        while grew:
            more = {pid: process for pid, (process, parent) in parents.items() if parent in found and pid not in found}
            found.update(more)
            grew = bool(more)
        return tuple(found[pid] for pid in sorted(found))

    def _is_member(self, process: psutil.Process, session: int | None, *, certain: bool) -> bool:
        environ: Mapping[str, str] = {}
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
        if MARKER in environ:
            return environ[MARKER] == self.marker
        if session is not None and _session(process.pid) == session:
            # Of an owner that is gone, spare what has an ordinary environment without the marker.
            return certain or "PATH" not in environ
        return self.log is not None and _writes_to(process.pid, self.log)


def _self_and_above() -> set[int]:
    pids = {os.getpid()}
    with contextlib.suppress(psutil.Error):
        pids.update(p.pid for p in psutil.Process().parents())
    return pids


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def _writes_to(pid: int, log: Path) -> bool:
    """Whether standard output or error is that file. False where /proc does not tell."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/fd/{number}").readlink() == log:
                return True
    return False


def _runs(process: psutil.Process) -> bool:
    """Whether this very process runs: ``is_running`` compares the time of creation as well."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def end(
    find: Callable[[], Iterable[psutil.Process]], *, grace_s: float, wait_s: float
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """End whatever ``find`` finds until it finds nothing: TERM, ``grace_s``, then KILL for at most ``wait_s``.

    ``grace_s`` 0 kills at once. Returns the ids that were signalled, and what is left, each as
    "pid name (state)".
    """
    seen: set[int] = set()
    if grace_s > 0:
        asked = tuple(find())
        for process in asked:
            seen.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _wait(asked, grace_s)
    deadline = time.monotonic() + wait_s
    # Again after each round: a process may have forked just before it was killed.
    while left := tuple(find()):
        for process in left:
            seen.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        now = time.monotonic()
        if now >= deadline:
            break
        _wait(left, min(1.0, deadline - now))
    return tuple(sorted(seen)), tuple(_describe(p) for p in left if _runs(p))


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Wait until they are gone. Not psutil's wait, which would take the exit code from ``subprocess``."""
    deadline = time.monotonic() + timeout_s
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {process.name()} ({process.status()})"
    return str(process.pid)


@dataclass(frozen=True, slots=True)
class Reaped:
    """What ``reap`` did about one lease file. ``note`` is a sentence for the user.

    ``ended``: ids of processes that were signalled. ``left``: those that did not end. ``lease`` is
    None when the file could not be understood.
    """

    path: Path
    note: str
    lease: Lease | None = None
    ended: tuple[int, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.note


def reap(folder: Path, *, grace_s: float = GRACE_S, wait_s: float = KILL_WAIT_S) -> tuple[Reaped, ...]:
    """End the engines of owners that are gone and remove their lease files.

    Left alone: leases of owners that run, of other users, of other machines and containers, and of
    newer versions of this package. A file that cannot be understood is removed. A lease whose
    processes do not end is kept for the next run. Raises EngineError when another run has been at
    it for two minutes.
    """
    if not folder.is_dir() or not any(folder.glob("*.json")):
        return ()
    lock = folder / "reap.lock"
    try:
        with FileLock(lock, timeout=LOCK_WAIT_S):
            done = [_reap_one(path, grace_s, wait_s) for path in sorted(folder.glob("*.json"))]
    except Timeout as error:
        raise EngineError(
            f"another run has been ending left-over engines for {LOCK_WAIT_S:.0f} s (lock {lock}); "
            "see what it is waiting for, or end it"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot lock {lock} ({error.strerror or error}); set {STATE_DIR} to a folder that can be written"
        ) from error
    return tuple(item for item in done if item is not None)


def _reap_one(path: Path, grace_s: float, wait_s: float) -> Reaped | None:
    try:
        lease = _read(path)
    except OSError:
        return None  # stopped by its owner just now, or not ours to read
    except ValueError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return Reaped(path, f"removed the lease file {path}, which could not be understood ({error})")
    if lease is None:
        return None
    here = Place.here()
    if not lease.place.is_same(here):
        if not lease.place.is_before_reboot_of(here):
            return None
        lease.remove(path.parent)
        return Reaped(path, f"removed the lease of {_what(lease)}, which ended when the machine was restarted", lease)
    if is_running(lease.owner):
        return None
    ended, left = end(Kin(lease.marker, lease.engine).find, grace_s=grace_s, wait_s=wait_s)
    owner = f"the run with pid {lease.owner.pid} that was killed"
    if left:
        note = (
            f"{_what(lease)}, left by {owner}, cannot be ended: {', '.join(left)} still there {wait_s:.0f} s after "
            "SIGKILL; it may hold GPU memory, and only the kernel or the GPU driver can let it go"
        )
        return Reaped(path, note, lease, ended, left)
    lease.remove(path.parent)
    if ended:
        pids = f"pid{'s' if len(ended) > 1 else ''} {', '.join(map(str, ended))}"
        return Reaped(path, f"ended {_what(lease)} ({pids}), left by {owner}", lease, ended)
    return Reaped(path, f"removed the lease of {_what(lease)} of {owner}; the engine had ended", lease)


def _what(lease: Lease) -> str:
    port = "" if lease.port is None else f" on port {lease.port}"
    return f"{Path(lease.argv0).name}{port}, started {lease.started}"
