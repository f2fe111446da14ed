"""Options and profile file, resolved into one frozen Settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.cells import DEFAULT_CONCURRENCY, Axes
from pytest_speedbench.data.loading import MINI
from pytest_speedbench.engines import embedded, registry
from pytest_speedbench.engines.base import Profile, Sampling, Speculation
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load.arrivals import Arrivals
from pytest_speedbench.names import BASELINE, CONTROL_KINDS, PLAIN
from pytest_speedbench.options import BY_KEY, OPTIONS, Option, Resolved, parsed, resolve

if TYPE_CHECKING:
    from pytest_speedbench.gates.yaml_nodes import Value

PROFILE_FILE = "speedbench.yaml"
SHIPPED = "shipped with the plugin"
_PATHS = ("model", "tokenizer", "draft_model")
_SPECULATION_KEYS = ("method", "draft_model", "draft_tokens")
_OWN_KEYS = ("speculation", "engines", "max_model_len", "chat_template_args")
_ENGINE_KEYS = ("model", "tokenizer", "draft_model", "tensor_parallel", "gpus")
"""Options that the part of one engine may set in place of the whole file: engines read other formats."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One option as the header shows it."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the user decided, with defaults filled in.

    ``prompts`` None means all of a cell. ``control`` is the kind of random prompts that are measured beside
    ``dataset``, or alone where that is None. ``origins`` lists each option that is not at its default.
    ``embedded`` is set when the bundled model, data or limits of the quick start are in use. ``baselines`` and
    ``plain`` are, by the label of a profile, the engine before the upgrade and the one without speculation that
    it is compared with; ``baseline_source`` is how the user named the former.
    """

    profiles: tuple[Profile, ...]
    axes: Axes
    default_concurrency: Mapping[str, tuple[int, ...]]
    dataset: str | None
    control: str | None
    allow_partial: bool
    prompts: int | None
    prompt_order: str
    sampling: Sampling
    seed: int
    arrivals: Arrivals | None
    thresholds: Path
    thresholds_origin: str
    measure_only: bool
    inconclusive: str
    starts: tuple[int, ...]
    repeats: int
    speedup: bool
    lossless: bool
    turn_timeout_s: float
    start_timeout_s: float
    artifact: Path
    junit: Path | None
    embedded: bool
    origins: tuple[Origin, ...]
    baselines: Mapping[str, Profile] = field(default_factory=dict)
    baseline_source: str = ""
    plain: Mapping[str, Profile] = field(default_factory=dict)

    @property
    def needs_limits(self) -> bool:
        """Whether a cell without a limit of its own cannot be judged: a baseline is one for every cell."""
        return not (self.measure_only or self.baselines)

    def companions(self, profile: Profile) -> tuple[Profile, ...]:
        """What ``profile`` is measured beside."""
        found = (self.plain.get(profile.label), self.baselines.get(profile.label))
        return tuple(companion for companion in found if companion is not None)

    @property
    def reproduce_options(self) -> tuple[str, ...]:
        """What was typed besides the engine and the axes, for a command that repeats a cell."""
        left_out = ("engine", "split", "category", "isl", "difficulty", "concurrency", "junit", "artifact")
        return tuple(
            f"--speedbench-{o.name}" if BY_KEY[o.name.replace("-", "_")].is_flag else f"--speedbench-{o.name}={o.value}"
            for o in self.origins
            if o.origin == "command line" and o.name not in left_out
        )


def build(
    *,
    command_line: Callable[[Option], Any],
    ini: Callable[[Option], Any],
    environ: Mapping[str, str],
    rootdir: Path,
    invocation_dir: Path,
) -> Settings:
    """Read every layer and check what can be checked without data, model or engine.

    Relative paths count from where they were written: the command line and the environment from
    ``invocation_dir``, ini and profile from ``rootdir``. A model, drafter, tokenizer or dataset that is
    there becomes an absolute path, since engines run in a folder of their own; anything else (a hub id,
    a bundled name) stays as it is. Raises ConfigError.
    """

    def build_with(given: Mapping[str, Any]) -> Settings:
        """The settings as they would be with some options typed otherwise."""
        return _build(
            command_line=lambda option: given[option.key] if option.key in given else command_line(option),
            ini=ini,
            environ=environ,
            rootdir=rootdir,
            invocation_dir=invocation_dir,
        )

    def option(key: str) -> Resolved:
        return resolve(
            BY_KEY[key], command_line=command_line(BY_KEY[key]), environ=environ, ini=ini(BY_KEY[key]), profile={}
        )

    settings = build_with({})
    spaced = option("arrivals")
    if spaced.origin != "default" and settings.arrivals is None:
        raise ConfigError(
            "--speedbench-arrivals spaces the conversations of --speedbench-arrival-rate; give a rate too"
        )
    if settings.starts != (1,) and any(profile.base_url is not None for profile in settings.profiles):
        raise ConfigError(
            f"--speedbench-starts={_shown(settings.starts)}: a server that someone else runs is not started here; use "
            "--speedbench-repeats, or let the engine be started"
        )
    if len(settings.starts) > 1 and settings.inconclusive == "rerun":
        raise ConfigError(
            f"--speedbench-starts={_shown(settings.starts)} adds engine starts to inconclusive cells already, so "
            "--speedbench-inconclusive=rerun has nothing to add; give one of them"
        )
    baseline = option("baseline")
    if baseline.value is not None:
        base = rootdir if baseline.origin.startswith("ini") else invocation_dir
        baselines = _baselines(settings, baseline.value, base, build_with)
        settings = replace(settings, baselines=baselines, baseline_source=baseline.value)
        if settings.thresholds_origin == SHIPPED:
            # What ships with the plugin is for the quick start as it is, not for an engine of the user's.
            settings = replace(settings, thresholds=rootdir / "thresholds", thresholds_origin="default")
    if settings.speedup or settings.lossless:
        settings = replace(settings, plain=_plain_profiles(settings, build_with))
    _refuse_vain(settings)
    return settings


def _refuse_vain(settings: Settings) -> None:
    """Raise ConfigError for comparisons that were asked for and could not be made, before any GPU time is spent."""
    if (settings.speedup or settings.lossless) and not settings.plain:
        raise ConfigError(
            "--speedbench-speedup and --speedbench-lossless compare with the engine without speculation, and no "
            "profile speculates; give --speedbench-method"
        )
    if settings.lossless and settings.sampling.temperature != 0:
        raise ConfigError(
            f"--speedbench-lossless compares greedy output, and the temperature is {settings.sampling.temperature:g}; "
            "drop one of the two"
        )
    if settings.baselines and (settings.arrivals is not None or settings.dataset is None):
        raise ConfigError(
            "--speedbench-baseline judges, and random prompts or an open loop are only measured; drop one of the two"
        )
    if settings.inconclusive == "rerun" and (settings.baselines or settings.plain):
        raise ConfigError(
            "--speedbench-inconclusive=rerun cannot measure the other engine again, which has been stopped by then; "
            "use --speedbench-starts=2,4"
        )


def _baselines(
    settings: Settings, spec: str, base: Path, build_with: Callable[[Mapping[str, Any]], Settings]
) -> dict[str, Profile]:
    """Per profile label the engine before the upgrade: from a profile file, or running at an address."""
    if spec.startswith(("http://", "https://")):
        address = BY_KEY["base_url"].parse("baseline", spec)
        if any(profile.base_url is None for profile in settings.profiles):
            raise ConfigError(
                f"--speedbench-baseline={spec} is a running server, so the new engine must be one too: give "
                "--speedbench-base-url, or the profile file of the old engine"
            )
        return {p.label: replace(p, label=f"{BASELINE}{p.label}", base_url=address) for p in settings.profiles}
    if any(profile.base_url is not None for profile in settings.profiles):
        raise ConfigError(
            f"--speedbench-baseline={spec} would start an engine beside a running one; give the address of the old "
            "server too, or let both be started"
        )
    old = build_with({"profile": str(base / spec)})
    unlike = [
        f"{name} {ours} against {theirs}"
        for name, ours, theirs in (
            ("model", [p.model for p in settings.profiles], [p.model for p in old.profiles]),
            ("dataset", settings.dataset, old.dataset),
            ("prompts", settings.prompts, old.prompts),
            ("sampling", settings.sampling, old.sampling),
        )
        if ours != theirs
    ]
    if unlike:
        raise ConfigError(
            f"--speedbench-baseline={spec} is another workload ({'; '.join(unlike)}), which cannot be compared with; "
            "an upgrade changes the engine, not the model, data or sampling"
        )
    return {p.label: replace(p, label=f"{BASELINE}{p.label}") for p in old.profiles}


def _plain_profiles(settings: Settings, build_with: Callable[[Mapping[str, Any]], Settings]) -> dict[str, Profile]:
    """Per label of a profile that speculates the same engine without."""
    if any(profile.base_url is not None for profile in settings.profiles):
        raise ConfigError(
            "--speedbench-speedup and --speedbench-lossless need the engine without speculation too, which cannot be "
            "started beside a server that someone else runs; let the engine be started, or compare two artifacts"
        )
    plain = build_with({"method": "none", "draft_tokens": None, "draft_model": None})
    return {
        own.label: replace(without, label=f"{PLAIN}{own.label}")
        for own, without in zip(settings.profiles, plain.profiles, strict=True)
        if own.speculation.active
    }


def _build(
    *,
    command_line: Callable[[Option], Any],
    ini: Callable[[Option], Any],
    environ: Mapping[str, str],
    rootdir: Path,
    invocation_dir: Path,
) -> Settings:
    """``build`` without the engines that a profile is compared with."""

    def read(option: Option, profile: Mapping[str, Any]) -> Resolved:
        return resolve(option, command_line=command_line(option), environ=environ, ini=ini(option), profile=profile)

    file = _ProfileFile.find(read(BY_KEY["profile"], {}), rootdir, invocation_dir)
    found = {option.key: read(option, file.options) for option in OPTIONS}
    engines = found["engine"].value
    if not engines:
        raise ConfigError(f"no engine was named; give --speedbench-engine, one of {', '.join(registry.NAMES)}")
    for engine in engines:
        registry.require(engine)
    if found["base_url"].value and len(engines) > 1:
        raise ConfigError(f"--speedbench-base-url is one server, but {len(engines)} engines are named; name one")
    defaults = _Defaults.of(found, file, engines)

    def value(key: str) -> Any:
        return defaults.values.get(key, found[key].value) if found[key].origin == "default" else found[key].value

    def base_of(key: str) -> Path:
        return rootdir if found[key].origin.startswith(("ini", "profile", "default")) else invocation_dir

    def path(key: str) -> Path:
        return base_of(key) / str(value(key))

    def located(key: str, name: Any) -> Any:
        there = name not in (None, MINI) and (base_of(key) / str(name)).exists()
        return str(base_of(key) / str(name)) if there else name

    def of_engine(engine: str) -> Callable[[str], Any]:
        """Values for one engine: its own part of the file comes before the rest of the file."""
        own = file.engine_options.get(engine, {})

        def read(key: str) -> Any:
            if key not in own or not found[key].origin.startswith(("profile", "default")):
                return located(key, value(key)) if key in _PATHS else value(key)
            given = parsed(BY_KEY[key], own[key])
            return str(rootdir / given) if key in _PATHS and (rootdir / str(given)).exists() else given

        return read

    dataset, control = _dataset(str(value("dataset")))
    thresholds, thresholds_origin = path("thresholds"), found["thresholds"].origin
    if thresholds_origin == "default" and defaults.embedded and not thresholds.exists():
        thresholds, thresholds_origin = embedded.thresholds_folder(), SHIPPED
    return Settings(
        profiles=tuple(_profile(engine, of_engine(engine), file, defaults) for engine in engines),
        axes=Axes(
            splits=value("split") or (),
            categories=value("category") or (),
            isls=value("isl") or (),
            difficulties=value("difficulty") or (),
            concurrencies=value("concurrency") or (),
        ),
        default_concurrency=embedded.CONCURRENCY if defaults.embedded else DEFAULT_CONCURRENCY,
        dataset=located("dataset", dataset),
        control=control,
        allow_partial=value("allow_partial"),
        prompts=value("prompts"),
        prompt_order=value("prompt_order"),
        sampling=Sampling(
            osl_cap=value("osl"),
            temperature=value("temperature"),
            seed=value("seed"),
            ignore_eos=value("ignore_eos"),
        ),
        seed=value("seed"),
        thresholds=thresholds,
        thresholds_origin=thresholds_origin,
        arrivals=None if value("arrival_rate") is None else Arrivals(value("arrival_rate"), value("arrivals")),
        # Random prompts are a control, and limits are for a concurrency that is held: there is nothing to judge by.
        measure_only=value("measure_only") or dataset is None or value("arrival_rate") is not None,
        inconclusive=value("inconclusive"),
        starts=value("starts") or (1,),
        repeats=value("repeats"),
        speedup=value("speedup"),
        lossless=value("lossless"),
        turn_timeout_s=float(value("turn_timeout")),
        start_timeout_s=float(value("start_timeout")),
        artifact=path("artifact"),
        junit=path("junit") if value("junit") else None,
        embedded=bool(defaults.values),
        origins=tuple(
            Origin(key.replace("_", "-"), _shown(resolved.value), resolved.origin)
            for key, resolved in found.items()
            if resolved.origin != "default"
        ),
    )


def _dataset(spec: str) -> tuple[str | None, str | None]:
    """The dataset, and the kind of random control beside it; the first is None where the control is all."""
    dataset, comma, last = spec.rpartition(",")
    if last.strip() not in CONTROL_KINDS:
        return spec, None
    if comma and not dataset.strip():
        raise ConfigError(f"--speedbench-dataset={spec}: name the dataset before the comma, or {last} alone")
    return dataset.strip() or None, last.strip()


def _shown(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Defaults that replace those of the options table: the quick start's, with llamacpp alone."""

    values: Mapping[str, Any]

    @property
    def embedded(self) -> bool:
        return bool(self.values)

    @classmethod
    def of(cls, found: Mapping[str, Resolved], file: _ProfileFile, engines: tuple[str, ...]) -> _Defaults:
        named = found["model"].origin != "default" or "model" in file.engine_options.get("llamacpp", {})
        if engines != ("llamacpp",) or named or found["base_url"].value:
            return cls({})
        return cls(embedded.defaults(found["method"].value))


def _profile(engine: str, value: Callable[[str], Any], file: _ProfileFile, defaults: _Defaults) -> Profile:
    model = value("model")
    if model is None:
        raise ConfigError(
            f"{engine}: no model was given; give --speedbench-model, or `model:` in the profile file {file.name}"
        )
    method = value("method") or "none"
    supported = registry.methods(engine)
    if method not in supported:
        raise ConfigError(f"{engine} has no method {method!r}; choose from {', '.join(supported)}")
    draft_tokens = value("draft_tokens")
    if method == "none" and draft_tokens is not None:
        draft_tokens = None
    if method != "none" and draft_tokens is None:
        raise ConfigError(f"method {method} needs a number of draft tokens; give --speedbench-draft-tokens=K")
    own_drafter = defaults.embedded and value("draft_model") is None
    if method == "draft" and not own_drafter and value("draft_model") is None:
        raise ConfigError(
            "method draft needs a drafter; give --speedbench-draft-model (the target itself would agree with itself)"
        )
    options = {**(embedded.engine_options(method) if own_drafter else {}), **file.engines.get(engine, {})}
    arguments = value("engine_arg")
    if arguments:
        given = options.get("args", [])
        if not isinstance(given, list):
            raise ConfigError(f"{file.name}: engines.{engine}.args must be a list, but is {given!r}")
        options["args"] = [*given, *arguments]
    return Profile(
        label=engine,
        engine=engine,
        model=str(model),
        tokenizer=value("tokenizer"),
        speculation=Speculation(
            method=method,
            draft_tokens=draft_tokens or 0,
            draft_model=value("draft_model") if method != "none" else None,
        ),
        max_model_len=file.max_model_len,
        tensor_parallel=value("tensor_parallel"),
        gpus=value("gpus") or value("tensor_parallel"),
        base_url=value("base_url"),
        completions=value("completions"),
        chat_template_args=file.chat_template_args,
        options=options,
    )


@dataclass(frozen=True, slots=True)
class _ProfileFile:
    """What a profile file says: options by key, and per engine its settings and its own values of options."""

    name: str
    options: Mapping[str, Any]
    engines: Mapping[str, Mapping[str, Any]]
    engine_options: Mapping[str, Mapping[str, Any]]
    max_model_len: int | None
    chat_template_args: Mapping[str, Any]

    @classmethod
    def find(cls, asked: Resolved, rootdir: Path, invocation_dir: Path) -> _ProfileFile:
        """The file that was asked for, or ``speedbench.yaml`` in rootdir if there is one."""
        if asked.value is not None:
            base = rootdir if asked.origin.startswith("ini") else invocation_dir
            return cls.read(base / asked.value)
        default = rootdir / PROFILE_FILE
        if default.exists():
            return cls.read(default)
        return cls(PROFILE_FILE, {}, {}, {}, None, {})

    @classmethod
    def read(cls, path: Path) -> _ProfileFile:
        from pytest_speedbench.gates import yaml_nodes

        allowed = [option.key for option in OPTIONS if option.in_profile and option.key not in _SPECULATION_KEYS]
        entries = yaml_nodes.read(path).mapping(allowed=(*allowed, *_OWN_KEYS))
        options: dict[str, Any] = {key: _option(key, entry) for key, entry in entries.items() if key not in _OWN_KEYS}
        if "speculation" in entries:
            speculation = entries["speculation"].mapping(allowed=_SPECULATION_KEYS, required=("method",))
            options |= {key: _option(key, entry) for key, entry in speculation.items()}
        engines: dict[str, Mapping[str, Any]] = {}
        own: dict[str, Mapping[str, Any]] = {}
        if "engines" in entries:
            for name, entry in entries["engines"].mapping(allowed=registry.NAMES).items():
                items = entry.mapping()
                engines[name] = {key: _plain(item) for key, item in items.items() if key not in _ENGINE_KEYS}
                values = {key: _option(key, item) for key, item in items.items() if key in _ENGINE_KEYS}
                own[name] = {key: value for key, value in values.items() if value is not None}
        length = entries["max_model_len"].count() if "max_model_len" in entries else None
        arguments: Mapping[str, Any] = {}
        if "chat_template_args" in entries:
            arguments = {key: _plain(item) for key, item in entries["chat_template_args"].mapping().items()}
        return cls(path.name, options, engines, own, length, arguments)


def _option(key: str, entry: Value) -> Any:
    """The value of an option, checked here so that a mistake is reported with its file and line."""
    raw = _plain(entry)
    if raw is not None:
        try:
            parsed(BY_KEY[key], raw)
        except ConfigError as error:
            raise entry.error(str(error)) from None
    return raw


def _plain(value: Value) -> Any:
    """The Python value of a YAML node, without positions."""
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(value.node, deep=True)
    except yaml.YAMLError as error:
        raise value.error(f"{value.name}: {error}") from None
    finally:
        loader.dispose()
