"""Every option, in one table: command line, environment, ini and profile share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CATEGORIES, DIFFICULTIES, ISLS, OVERALL, PROMPT_ORDERS, SPLITS

Parser = Callable[[str, str], Any]
"""(option name, text) to value; raises ConfigError that lists the valid choices."""


def text(name: str, value: str) -> str:
    """Any non-empty text."""
    if not value.strip():
        raise ConfigError(f"--speedbench-{name} is empty; give a value or drop the option")
    return value.strip()


def url(name: str, value: str) -> str:
    """http:// or https:// with a host, without the slash at the end."""
    address = text(name, value).rstrip("/")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in address
    except ValueError:
        usable = False
    if usable and parts.username is not None:
        raise ConfigError(f"--speedbench-{name}: leave user and password out of the address")
    if not usable:
        raise ConfigError(f"--speedbench-{name}={value}: give an address such as http://127.0.0.1:8000")
    return address


def whole(minimum: int) -> Parser:
    """A whole number of at least ``minimum``."""

    def parse(name: str, value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise ConfigError(f"--speedbench-{name}={value}: give a whole number of at least {minimum}")
        return number

    return parse


def temperature(name: str, value: str) -> float:
    """A finite number of at least 0."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(f"--speedbench-{name}={value}: give a number of at least 0 (0 is greedy)")
    return number


def above_zero(name: str, value: str) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"--speedbench-{name}={value}: give a number above 0")
    return number


def flag(name: str, value: str) -> bool:
    """true/false in the spellings of ini files."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.strip().lower() not in words:
        raise ConfigError(f"--speedbench-{name}={value}: give true or false")
    return words[value.strip().lower()]


def one_of(*choices: str) -> Parser:
    """One of ``choices``."""

    def parse(name: str, value: str) -> str:
        if value not in choices:
            raise ConfigError(f"--speedbench-{name}={value}: choose from {', '.join(choices)}")
        return value

    return parse


def some_of(*choices: str) -> Parser:
    """A comma list out of ``choices``, without repeats."""

    def parse(name: str, value: str) -> tuple[str, ...]:
        picked = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        wrong = [part for part in picked if part not in choices]
        if wrong or not picked:
            raise ConfigError(f"--speedbench-{name}={value}: choose from {', '.join(choices)}")
        return picked

    return parse


def names(name: str, value: str) -> tuple[str, ...]:
    """A comma list of names."""
    picked = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not picked:
        raise ConfigError(f"--speedbench-{name} is empty; give a comma-separated list or drop the option")
    return picked


def whole_numbers(name: str, value: str) -> tuple[int, ...]:
    """A comma list of whole numbers of at least 1, ascending."""
    return tuple(sorted({whole(1)(name, part.strip()) for part in value.split(",")}))


class Option(NamedTuple):  # a dataclass would cost a millisecond in every pytest start
    """One option. ``default`` None means that the default depends on others (``help`` says how).

    ``in_profile`` allows the key in a profile file, with underscores. ``repeatable`` options
    gather every occurrence on the command line, one per line in ini files.
    """

    name: str
    parse: Parser
    help: str
    default: Any = None
    aliases: tuple[str, ...] = ()
    is_flag: bool = False
    repeatable: bool = False
    in_profile: bool = True
    metavar: str | None = None

    @property
    def key(self) -> str:
        """Name in profiles and Settings: ``draft_tokens``."""
        return self.name.replace("-", "_")

    @property
    def ini(self) -> str:
        """Name in ini files and argparse: ``speedbench_draft_tokens``."""
        return f"speedbench_{self.key}"

    @property
    def env(self) -> str:
        """Name in the environment: ``SPEEDBENCH_DRAFT_TOKENS``."""
        return self.ini.upper()


OPTIONS: tuple[Option, ...] = (
    Option("engine", names, "engine to start; a comma list runs several", in_profile=False, metavar="NAME[,NAME]"),
    Option(
        "profile",
        text,
        "profile file (default: speedbench.yaml in rootdir, if there)",
        in_profile=False,
        metavar="FILE",
    ),
    Option("model", text, "target model: hub id, folder, or .gguf file", metavar="MODEL"),
    Option("tokenizer", text, "tokenizer with chat template (default: the model's)", metavar="PATH"),
    Option("draft-model", text, "drafter", metavar="MODEL"),
    Option("method", text, "how drafts are made: none, ngram, draft, … as the engine has it", metavar="METHOD"),
    Option("draft-tokens", whole(1), "draft tokens per step", metavar="K"),
    Option("tensor-parallel", whole(1), "GPUs that one replica is spread over", 1, metavar="N"),
    Option("gpus", whole(1), "GPUs that one replica takes in all (default: tensor-parallel)", metavar="N"),
    Option(
        "base-url",
        url,
        "attach to a server that someone else runs, instead of starting one",
        in_profile=False,
        metavar="URL",
    ),
    Option(
        "engine-arg", text, "extra engine setting, repeatable", (), repeatable=True, in_profile=False, metavar="ARG"
    ),
    Option("split", some_of(*SPLITS), f"{' or '.join(SPLITS)} (comma list)", metavar="SPLIT"),
    Option("category", some_of(*CATEGORIES, OVERALL), "qualitative categories (comma list)", metavar="NAME[,NAME]"),
    Option("isl", some_of(*ISLS), f"input lengths of the throughput split: {', '.join(ISLS)}", metavar="ISL[,ISL]"),
    Option(
        "difficulty",
        some_of(*DIFFICULTIES),
        f"tiers of the throughput split: {', '.join(DIFFICULTIES)}",
        metavar="TIER[,TIER]",
    ),
    Option(
        "concurrency", whole_numbers, "conversations in flight (comma list)", aliases=("batch-size",), metavar="N[,N]"
    ),
    Option(
        "arrival-rate",
        above_zero,
        "open loop: so many conversations begin per second, whatever is in flight; measured, not compared with limits "
        "(default: closed loop at the cell's concurrency)",
        metavar="R",
    ),
    Option(
        "arrivals", one_of("poisson", "fixed"), "how arrivals are spaced: poisson or fixed", "poisson", metavar="HOW"
    ),
    Option(
        "dataset",
        text,
        "folder with the data, hub id with its commit, `mini` (bundled), or `random` (control; also DATASET,random)",
        "nvidia/SPEED-Bench",
        metavar="DATASET",
    ),
    Option("allow-partial", flag, "measure without the prompts that are placeholders", False, is_flag=True),
    Option("prompts", whole(1), "prompts per cell: a seeded subset, nested as N grows (default: all)", metavar="N"),
    Option(
        "prompt-order",
        one_of(*PROMPT_ORDERS),
        "which prompts a subset takes: stratified and seeded, or round-robin as upstream takes them",
        PROMPT_ORDERS[0],
        metavar="ORDER",
    ),
    Option("completions", flag, "send the bare text of each turn: no chat template, no history", False, is_flag=True),
    Option("osl", whole(1), "most output tokens per turn", 4096, metavar="TOKENS"),
    Option("temperature", temperature, "sampling temperature", 0.0, metavar="T"),
    Option("seed", whole(0), "seed of subsets, send order and sampling", 0, metavar="N"),
    Option("ignore-eos", flag, "generate up to --speedbench-osl whatever the model says", False, is_flag=True),
    Option("thresholds", text, "thresholds file or folder", "thresholds", metavar="PATH"),
    Option("measure-only", flag, "measure cells that have no gate too, and judge nothing", False, is_flag=True),
    Option(
        "inconclusive",
        one_of("fail", "warn", "rerun"),
        "what an INCONCLUSIVE verdict does: fail, warn, or rerun (measure once more, pool, then fail)",
        "fail",
        metavar="WHAT",
    ),
    Option(
        "starts",
        whole_numbers,
        "how often the engine is started anew and every cell measured (default: 1); of a comma list such as 3,5,8 the "
        "next number is only reached for where a cell is still inconclusive",
        metavar="N[,N]",
    ),
    Option("repeats", whole(1), "how often every cell is measured within one engine start", 1, metavar="N"),
    Option(
        "baseline",
        text,
        "profile file of the engine before an upgrade (or the address where it runs): measured in turn with the new "
        "one, and each cell is gated against it",
        in_profile=False,
        metavar="FILE|URL",
    ),
    Option("lossless", flag, "compare greedy output with that of the engine without speculation", False, is_flag=True),
    Option("speedup", flag, "measure without speculation too, for the speed-up of each cell", False, is_flag=True),
    Option("turn-timeout", whole(1), "seconds after which a turn counts as lost", 600, metavar="SECONDS"),
    Option("start-timeout", whole(1), "seconds that an engine may take to start", 900, metavar="SECONDS"),
    Option("artifact", text, "JSON artifact to write", "speedbench.json", in_profile=False, metavar="FILE"),
    Option("junit", text, "JUnit XML of cells to write (pytest's own is --junitxml)", in_profile=False, metavar="FILE"),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}


class Resolved(NamedTuple):
    """A value and where it came from: ``command line``, ``environment``, ``ini``, ``profile``, ``default``."""

    value: Any
    origin: str


def resolve(
    option: Option,
    *,
    command_line: Any,
    environ: Mapping[str, str],
    ini: Any,
    profile: Mapping[str, Any],
) -> Resolved:
    """The winner of command line > environment > ini > profile > default, parsed.

    ``command_line`` and ``ini`` are None where not given (a list, possibly empty, for repeatable
    options). An empty text counts as not given, except on the command line, where it is what an unset
    shell variable leaves. Raises ConfigError; the message tells the origin unless it is the command line.
    """
    layers = (
        ("command line", command_line),
        (f"environment {option.env}", environ.get(option.env)),
        (f"ini {option.ini}", ini),
        ("profile", profile.get(option.key)),
    )
    for origin, raw in layers:
        if raw is None or raw == [] or (raw == "" and origin != "command line"):
            continue
        try:
            return Resolved(parsed(option, raw), origin)
        except ConfigError as error:
            raise error if origin == "command line" else ConfigError(f"{error} (from {origin})") from None
    return Resolved(option.default, "default")


def parsed(option: Option, raw: Any) -> Any:
    """The value of one layer: text, or what YAML makes of it. Raises ConfigError."""
    if isinstance(raw, Mapping) or (isinstance(raw, list) and any(isinstance(part, list | Mapping) for part in raw)):
        raise ConfigError(f"--speedbench-{option.name}: give a single value or a flat list, not {raw}")
    if option.repeatable:
        entries = raw.splitlines() if isinstance(raw, str) else raw
        return tuple(option.parse(option.name, str(entry)) for entry in entries)
    if isinstance(raw, list):
        raw = ",".join(str(part) for part in raw)
    if isinstance(raw, bool):
        raw = str(raw).lower()
    return option.parse(option.name, str(raw))
