"""What the gates promise, tried on simulated gates whose truth is known.

    python benchmarks/gates.py [--gates N] [--figure FILE.png] [TABLE ...]

Tables: floors, pairs, rates, sequential, doubtful. Each line is N gates (20,000), every one with a calibration and
a measurement of its own. The noise of prompts is normal, or drawn from what recorded runs in examples/ show. The
rules are written anew over arrays here; on the first gates of each kind they are compared with the package's.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_speedbench.gates.limits import Evidence, Limit
from pytest_speedbench.gates.paired import Arm, judge_pair
from pytest_speedbench.gates.sequential import (
    blocks,
    concentrated,
    early_floor,
    early_pair,
    last_rate,
    look_sizes,
    prompts_to_see,
)
from pytest_speedbench.gates.spending import OBRIEN_FLEMING, POCOCK, increments, levels
from pytest_speedbench.gates.verdict import UNREACHABLE, Verdict, judge
from pytest_speedbench.measure.runs import prompt_lengths
from pytest_speedbench.measure.student import t_quantile
from pytest_speedbench.report.requests import read_windows

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
EXAMPLES = Path(__file__).parent.parent / "examples"
DATE = dt.date(2026, 12, 1)
ALPHA, BETA = 0.025, 0.05
CHECKED = 40
"""So many gates of each kind are also judged by the package."""


@lru_cache(maxsize=64)
def _table(level: float) -> tuple[Array, Array]:
    inverse = np.linspace(0.0, 1.0, 401)
    return inverse, np.array([t_quantile(1 - level, 1 / x if x else math.inf) for x in inverse])


def quantiles(level: float, df: Array | float) -> Array:
    """Student's t for many degrees of freedom, all at least 1; interpolated over 1/df."""
    return np.interp(1 / np.asarray(df, dtype=float), *_table(level))


def table(title: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print one table as markdown, line by line."""
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


# Noise of prompts


def recorded_differences() -> Array:
    """Relative differences of the same prompt's acceptance length between two recorded runs of one unchanged engine."""
    found: list[float] = []
    for path in sorted(EXAMPLES.glob("h100/artifacts/*/speedbench-requests.jsonl.gz")):
        if path.parent.name.endswith("none"):
            continue
        cells: dict[object, list[dict[str, float]]] = {}
        for _, window in read_windows(path):
            cells.setdefault(
                (window.cell.split, window.cell.category, window.cell.isl, window.cell.difficulty), []
            ).append(prompt_lengths(window.turns))
        for runs in cells.values():
            for one, other in itertools.pairwise(runs):
                mean = float(np.mean([*one.values(), *other.values()]))
                found += [(other[name] - one[name]) / mean for name in one if name in other]
    return np.array(found)


def recorded_spread() -> tuple[float, float]:
    """Sd of acceptance length over prompts relative to its mean: of known, independent acceptance, and of real text."""
    known = [
        np.array(list(lengths.values()))
        for path in EXAMPLES.glob("known-truth/artifacts/*/speedbench-requests.jsonl.gz")
        for _, window in read_windows(path)
        if len(lengths := prompt_lengths(window.turns)) > 1
    ]
    real = [
        np.array(list(lengths.values()))
        for path in EXAMPLES.glob("h100/artifacts/*-draft/speedbench-requests.jsonl.gz")
        for _, window in read_windows(path)
        if len(lengths := prompt_lengths(window.turns)) > 1
    ]
    return tuple(float(np.mean([v.std(ddof=1) / v.mean() for v in group])) for group in (known, real))  # type: ignore[return-value]


Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape)


def skewed(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Log-normal with a skewness of 2.3, mean 0 and sd 1."""
    values = np.exp(0.6 * random.standard_normal(shape))
    return np.asarray((values - math.exp(0.18)) / math.sqrt((math.exp(0.36) - 1) * math.exp(0.36)))


def autocorrelated(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Neighbours in the send order correlated by 0.5, along the last axis."""
    values = random.standard_normal(shape)
    for i in range(1, shape[-1]):
        values[..., i] = 0.5 * values[..., i - 1] + math.sqrt(0.75) * values[..., i]
    return values


def flips(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """What recorded runs show: most prompts exactly as before, a few far off; mean 0 and sd 1."""
    pool = _pool()
    return np.asarray(pool[random.integers(0, len(pool), shape)])


@lru_cache(maxsize=1)
def _pool() -> Array:
    values = recorded_differences()
    # With either sign, since which of the two runs came first means nothing.
    both = np.concatenate((values, -values))
    return np.asarray(both / both.std())


# Floors


def calibrated(
    random: np.random.Generator, gates: int, starts: int, repeats: int, sd: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """References (true value 1) and the mean squares between and within starts, one of each per gate."""
    runs = random.normal(0, sd[0], (gates, starts, 1)) + random.normal(0, sd[1], (gates, starts, repeats))
    means = runs.mean(axis=2)
    return 1 + means.mean(axis=1), repeats * means.var(axis=1, ddof=1), runs.var(axis=2, ddof=1).mean(axis=1)


def band(squares: tuple[Array, Array], calibration: tuple[int, int], measured: tuple[int, int]) -> tuple[Array, Array]:
    """σ and degrees of freedom of measured − reference; the formula of ``run_sigma``."""
    (starts, repeats), (b, r) = calibration, measured
    within = squares[1]
    start = np.maximum(0, squares[0] - within) / repeats
    between, inside = 1 / b + 1 / starts, 1 / (b * r) + 1 / (starts * repeats)
    variance = between * start + inside * within
    of_starts = between / repeats * (repeats * start + within)
    spread = (of_starts / variance) ** 2 / (starts - 1)
    spread += ((inside - between / repeats) * within / variance) ** 2 / (starts * (repeats - 1))
    return np.sqrt(variance), np.maximum(1 / spread, starts - 1)


def floor_gates(
    gates: int, drop: float, *, starts: int, sd: tuple[float, float], margin: float, rerun: str, alpha: float, seed: int
) -> dict[str, float]:
    """Shares of verdicts of calibrated floors where the true value is ``drop`` below the calibrated one."""
    random, repeats = np.random.default_rng(seed), 2
    reference, *squares = calibrated(random, gates, starts, repeats, sd)
    limit = reference * (1 - margin)
    start = random.normal(0, sd[0], (gates, 2))
    runs = 1 - drop + random.normal(0, sd[1], (gates, 2)) + (start[:, :1] if rerun == "repeat" else start)
    looks = 1 if rerun == "none" else 2
    sizes = [(1, 1), {"repeat": (1, 2), "start": (2, 1)}.get(rerun, (1, 1))]
    passed, failed, measured = np.zeros((3, gates), dtype=bool)
    invalid = np.zeros(gates, dtype=bool)
    rates = [levels(rate, tuple((k + 1) / looks for k in range(looks)), POCOCK) for rate in (alpha, BETA)]
    for look in range(looks):
        sigma, df = band((squares[0], squares[1]), (starts, repeats), sizes[look])
        value = runs[:, : look + 1].mean(axis=1)
        undecided = ~(passed | failed | invalid)
        measured |= undecided & (look > 0)
        invalid |= undecided & (sigma > margin * reference / UNREACHABLE)
        undecided &= ~invalid
        ok = value - quantiles(rates[1][look], df) * sigma >= limit
        bad = (value < limit) & (value + quantiles(rates[0][look], df) * sigma < reference)
        if look == 0:
            _check_floors(value, reference, squares, starts, margin, looks, alpha, (ok, bad, invalid))
        passed |= undecided & ok
        failed |= undecided & bad
    return {
        "pass": passed.mean(),
        "fail": failed.mean(),
        "invalid": invalid.mean(),
        "again": measured.mean(),
    }


def _check_floors(
    value: Array,
    reference: Array,
    squares: Sequence[Array],
    starts: int,
    margin: float,
    looks: int,
    alpha: float,
    found: tuple[Bools, Bools, Bools],
) -> None:
    for i in range(CHECKED):
        evidence = Evidence(
            starts,
            2,
            math.sqrt(max(0.0, squares[0][i] - squares[1][i]) / 2),
            math.sqrt(squares[1][i]),
            DATE,
        )
        limit = Limit(
            "acceptance_length", reference[i] * (1 - margin), False, "a.yaml:1", reference[i], margin, evidence
        )
        verdict = judge("acceptance_length", value[i], limit, alpha=alpha, beta=BETA, look=1, looks=looks).verdict
        ok, bad, invalid = (bool(each[i]) for each in found)
        assert (verdict is Verdict.INVALID) == invalid
        assert (verdict is Verdict.PASS) == (ok and not invalid)
        assert (verdict is Verdict.FAIL) == (bad and not invalid)


def floors(gates: int) -> None:
    def rows() -> Iterator[Sequence[str]]:
        margin = 0.04
        for noise in (9, 6):
            sigma = margin / noise
            for starts in (5, 6, 10):
                for shares in ((1.0, 0.0), (0.5, 0.5)):
                    # So that σ of the comparison, not of one run, is the stated part of the margin.
                    unit = sigma / math.sqrt(shares[0] * (1 + 1 / starts) + shares[1] * (1 + 1 / (2 * starts)))
                    sd = (unit * math.sqrt(shares[0]), unit * math.sqrt(shares[1]) + 1e-9)
                    for rerun in ("none", "repeat", "start"):
                        at = {
                            drop: floor_gates(
                                gates,
                                drop * margin,
                                starts=starts,
                                sd=sd,
                                margin=margin,
                                rerun=rerun,
                                alpha=ALPHA,
                                seed=1,
                            )
                            for drop in (0.0, 1.0, 1.5)
                        }
                        yield (
                            f"δ/{noise}",
                            str(starts),
                            "all" if shares[0] == 1 else "half",
                            rerun,
                            percent(at[1.0]["pass"]),
                            percent(at[0.0]["fail"], 2),
                            percent(at[0.0]["pass"]),
                            percent(at[1.5]["fail"]),
                            percent(at[0.0]["again"]),
                            percent(at[0.0]["invalid"]),
                        )

    table(
        f"Floors: δ 4 %, α {ALPHA:.1%}, β {BETA:.0%}, calibrated with 2 repeats per start, measured in one run",
        (
            "σ",
            "calibration starts",
            "noise from starts",
            "rerun",
            "PASS at the limit (≤ 5 %)",
            "FAIL at the reference (≤ 2.5 %)",
            "PASS at the reference",
            "FAIL at 1.5 δ",
            "measured again at the reference",
            "unreachable",
        ),
        rows(),
    )


# Paired gates on acceptance


def pair_gates(
    gates: int,
    drop: float,
    *,
    starts: int,
    repeats: int,
    prompts: int,
    sd: float,
    shift: float,
    margin: float,
    draw: Draw,
    seed: int,
    few: bool = False,
) -> tuple[float, float]:
    """Shares of PASS and FAIL. ``sd`` is that of a prompt's value in one run, ``shift`` that of a whole start.

    With ``few`` the drop is that of the fewest prompts that fall to one token per step.
    """
    random = np.random.default_rng(seed)
    passed = failed = done = 0
    rows = max(1, min(gates, 4_000_000 // (starts * repeats * prompts)))
    while done < gates:
        size = min(rows, gates - done)
        shape = (size, 2, starts, repeats, prompts)
        values = 1 + sd * draw(random, shape) + shift * random.standard_normal(shape[:3])[..., None, None]
        if few:
            count = concentrated(prompts, 2.5, margin)
            values[:, 0, :, :, :count] = 0.4
            values[:, 0, :, :, count:] += (count * 0.6 - margin * prompts) / (prompts - count)
        else:
            values[:, 0] -= drop
        ok, bad = _judge_pairs(values, margin)
        if done == 0:
            _check_pairs(values, margin, ok, bad)
        passed, failed, done = passed + int(ok.sum()), failed + int(bad.sum()), done + size
    return passed / gates, failed / gates


def _judge_pairs(values: Array, margin: float) -> tuple[Bools, Bools]:
    starts, prompts = values.shape[2], values.shape[4]
    per_prompt = values.mean(axis=(2, 3))
    whole = per_prompt.mean(axis=2)
    differences = (per_prompt - whole[:, :, None])[:, 0] - (per_prompt - whole[:, :, None])[:, 1]
    bands = [(standard_error(differences), prompts - 1)]
    runs = values.mean(axis=4)
    level = runs.mean(axis=3) if starts > 1 else runs[:, :, 0]
    units = level.shape[2]
    if units > 1:
        squares = ((level - level.mean(axis=2, keepdims=True)) ** 2).sum(axis=(1, 2)) / (2 * (units - 1))
        bands.append((np.sqrt(squares * 2 / units), 2 * (units - 1)))
    guard, reach = (np.max([t_quantile(1 - rate, df) * sigma for sigma, df in bands], axis=0) for rate in (BETA, ALPHA))
    new, old = whole[:, 0], whole[:, 1]
    limit = old * (1 - margin)
    return (new - guard >= limit) & (new >= limit), (new < limit) & (new + reach < old)


def standard_error(differences: Array) -> Array:
    """Of the mean over the last axis, neighbours taken to be alike as they look; ``prompt_sigma``."""
    n = differences.shape[1]
    off = differences - differences.mean(axis=1, keepdims=True)
    squares = (off**2).sum(axis=1)
    rho = np.clip((off[:, 1:] * off[:, :-1]).sum(axis=1) / np.maximum(squares, 1e-300), 0, 0.9)
    return np.asarray(np.sqrt(squares / (n - 1) / n * (1 + rho) / (1 - rho)))


def _check_pairs(values: Array, margin: float, ok: Bools, bad: Bools) -> None:
    for i in range(min(CHECKED, len(values))):
        arms = [
            Arm(
                [(s, r, float(arm[s, r].mean())) for s in range(arm.shape[0]) for r in range(arm.shape[1])],
                {str(q): float(v) for q, v in enumerate(arm.mean(axis=(0, 1)))},
            )
            for arm in values[i]
        ]
        verdict = judge_pair(
            "acceptance_length", arms[0], arms[1], margin=margin, alpha=ALPHA, beta=BETA, source="old"
        ).verdict
        assert (verdict is Verdict.PASS, verdict is Verdict.FAIL) == (bool(ok[i]), bool(bad[i]))


def pairs(gates: int) -> None:
    known, _ = recorded_spread()

    def row(
        what: str, starts: int, repeats: int, prompts: int, margin: float, sd: float, shift: float, draw: Draw
    ) -> Sequence[str]:
        def at(drop: float, few: bool = False) -> tuple[float, float]:
            return pair_gates(
                gates,
                drop * margin,
                starts=starts,
                repeats=repeats,
                prompts=prompts,
                sd=sd,
                shift=shift,
                margin=margin,
                draw=draw,
                seed=2,
                few=few,
            )

        same, limit, double = at(0.0), at(1.0), at(2.0)
        return (
            what,
            f"{starts} × {repeats}",
            str(prompts),
            f"{margin:.0%}",
            f"{shift / (sd / math.sqrt(prompts)):.0f}",
            percent(limit[0]),
            percent(at(1.0, few=True)[0]),
            percent(same[1], 2),
            percent(same[0]),
            percent(double[1]),
        )

    def rows() -> Iterator[Sequence[str]]:
        for ratio in (0, 1, 3):
            for starts, repeats, prompts, margin in PLANS:
                shift = ratio * known / math.sqrt(prompts)
                yield row("known acceptance", starts, repeats, prompts, margin, known, shift, normal)
        for name, draw in (("recorded flips", flips), ("skewed", skewed), ("autocorrelated 0.5", autocorrelated)):
            for starts, repeats in ((1, 1), (1, 3), (2, 1)):
                yield row(name, starts, repeats, 80, 0.04, known, 0.0, draw)

    table(
        f"Paired gates on acceptance; a prompt's sd in one run is {known:.1%}",
        (
            "noise",
            "starts × repeats per arm",
            "prompts",
            "δ",
            "start shift / prompts' noise of a run",
            "PASS at the limit (≤ 5 %)",
            "same, a few prompts at 1",
            "FAIL unchanged (≤ 2.5 %)",
            "PASS unchanged",
            "FAIL at 2 δ",
        ),
        rows(),
    )


# Paired gates on rates


def rate_gates(
    gates: int, drop: float, *, noise: float, margin: float, looks: Sequence[int], shape: str, seed: int
) -> tuple[float, float, float]:
    """Shares of PASS and FAIL, and the mean number of pairs of starts; ``noise`` is the sd of one start."""
    random = np.random.default_rng(seed)
    logs = math.log1p(-drop) + noise * math.sqrt(2) * random.standard_normal((gates, looks[-1]))
    limit = math.log1p(-margin)
    information = tuple(n / looks[-1] for n in looks)
    passed, failed = np.zeros((2, gates), dtype=bool)
    used = np.zeros(gates)
    for look, n in enumerate(looks):
        open_ = ~(passed | failed)
        used[open_] = n
        mean, sigma = logs[:, :n].mean(axis=1), logs[:, :n].std(axis=1, ddof=1) / math.sqrt(n)
        guard, reach = (t_quantile(1 - increments(rate, information, shape)[look], n - 1) for rate in (BETA, ALPHA))
        ok, bad = mean - guard * sigma >= limit, (mean < limit) & (mean + reach * sigma < 0)
        if shape == POCOCK:
            for i in range(CHECKED):
                new, old = (
                    Arm([(k, 0, 100 * math.exp(v)) for k, v in enumerate(values)])
                    for values in (logs[i, :n].tolist(), [0.0] * n)
                )
                verdict = judge_pair(
                    "output_tps", new, old, margin=margin, alpha=ALPHA, beta=BETA, source="old", looks=looks
                ).verdict
                assert (verdict is Verdict.PASS, verdict is Verdict.FAIL) == (bool(ok[i]), bool(bad[i]))
        passed |= open_ & ok
        failed |= open_ & bad
    return passed.mean(), failed.mean(), used.mean()


def rates(gates: int) -> None:
    def rows() -> Iterator[Sequence[str]]:
        for noise in (0.005, 0.01, 0.02):
            for looks in ((2,), (3,), (8,), (3, 5, 8)):
                for shape in (POCOCK, OBRIEN_FLEMING) if len(looks) > 1 else (POCOCK,):
                    same, limit, double = (
                        rate_gates(gates, d * 0.05, noise=noise, margin=0.05, looks=looks, shape=shape, seed=3)
                        for d in (0.0, 1.0, 2.0)
                    )
                    yield (
                        percent(noise),
                        ", ".join(map(str, looks)) + (f" ({shape})" if len(looks) > 1 else ""),
                        percent(limit[0]),
                        percent(same[1], 2),
                        percent(same[0]),
                        percent(double[1]),
                        f"{same[2]:.1f}",
                        f"{double[2]:.1f}",
                    )

    table(
        "Paired gates on rates, δ 5 %",
        (
            "noise of a start",
            "looks at pairs of starts",
            "PASS at the limit (≤ 5 %)",
            "FAIL unchanged (≤ 2.5 %)",
            "PASS unchanged",
            "FAIL at 2 δ",
            "pairs used, unchanged",
            "pairs used at 2 δ",
        ),
        rows(),
    )


# Sequential cells


def floor_looks(
    gates: int, drop: float, *, prompts: int, spread: float, run: float, margin: float, few: bool, draw: Draw, seed: int
) -> tuple[float, float, float, float]:
    """Shares of PASS, FAIL and early FAIL, and the mean share of prompts, of cells whose gate is a calibrated floor.

    ``spread`` is the sd over prompts of what is averaged, of which nothing is left when all are measured (the prompts
    are what they are); ``run`` is σ of the comparison, known from 6 starts.
    """
    random, sizes = np.random.default_rng(seed), _sizes(prompts)
    passed = failed = early = 0
    used, done, rows = 0.0, 0, max(1, 4_000_000 // prompts)
    while done < gates:
        size = min(rows, gates - done)
        values = spread * draw(random, (size, prompts))
        values -= values.mean(axis=1, keepdims=True)
        values += 1 + _dropped(random, values, drop, margin, few)
        # Evidence of 6 starts with one repeat each, so 5 degrees of freedom.
        sd = run / math.sqrt(7 / 6)
        calibration = sd * random.standard_normal((size, 6))
        reference = 1 + calibration.mean(axis=1)
        sigma = calibration.std(axis=1, ddof=1) * math.sqrt(7 / 6)
        values += sd * random.standard_normal((size, 1))
        open_, limit = np.ones(size, dtype=bool), reference * (1 - margin)
        for look, n in enumerate(sizes[:-1]):
            so_far = values[:, :n]
            mean = so_far.mean(axis=1)
            missing = so_far.var(axis=1, ddof=1) * (1 / n - 1 / prompts)
            total = missing + sigma**2
            df = total**2 / (missing**2 / (n - 1) + sigma**4 / 5)
            level = levels(ALPHA, tuple(k / prompts for k in sizes))[look]
            bad = (mean < limit) & (mean + quantiles(level, df) * np.sqrt(total) < reference)
            bad &= sigma <= margin * reference / UNREACHABLE
            if done == 0:
                _check_floor_looks(so_far, sizes, calibration, reference, margin, bad)
            used += n * (open_ & bad).sum()
            early += int((open_ & bad).sum())
            open_ &= ~bad
        mean = values.mean(axis=1)
        failed += early_now(open_, mean, sigma, limit, reference, sizes)
        passed += int((open_ & (mean - t_quantile(1 - BETA, 5) * sigma >= limit)).sum())
        used += prompts * open_.sum()
        done += size
    return passed / gates, (failed + early) / gates, early / gates, used / gates / prompts


def early_now(open_: Bools, mean: Array, sigma: Array, limit: Array, reference: Array, sizes: Sequence[int]) -> int:
    """How many of the cells without an early verdict fail at the end."""
    reach = t_quantile(1 - last_rate(ALPHA, sizes), 5) * sigma
    return int((open_ & (mean < limit) & (mean + reach < reference)).sum())


def _check_floor_looks(
    so_far: Array, sizes: Sequence[int], calibration: Array, reference: Array, margin: float, bad: Bools
) -> None:
    for i in range(CHECKED):
        evidence = Evidence(6, 1, float(calibration[i].std(ddof=1)), 0.0, DATE)
        limit = Limit(
            "acceptance_length", reference[i] * (1 - margin), False, "a.yaml:1", reference[i], margin, evidence
        )
        values = {str(q): float(v) for q, v in enumerate(so_far[i])}
        found = early_floor("acceptance_length", values, limit, sizes=sizes, alpha=ALPHA, beta=BETA)
        assert (found is not None) == bool(bad[i])


def pair_looks(
    gates: int, drop: float, *, prompts: int, spread: float, margin: float, few: bool, draw: Draw, seed: int
) -> tuple[float, float, float, float]:
    """The same of paired gates: shares of PASS, FAIL and of any early verdict, and the mean share of prompts.

    ``spread`` is the sd over prompts of the differences, all of it noise of the two runs.
    """
    random, sizes = np.random.default_rng(seed), _sizes(prompts)
    shares = tuple(n / prompts for n in sizes)
    passed = failed = early = 0
    used, done, rows = 0.0, 0, max(1, 4_000_000 // prompts)
    fewest = concentrated(prompts, 2.5, margin)
    while done < gates:
        size = min(rows, gates - done)
        differences = spread * draw(random, (size, prompts))
        differences += _dropped(random, differences, drop, margin, few)
        open_ = np.ones(size, dtype=bool)
        for look, n in enumerate(sizes):
            so_far = differences[:, :n]
            mean, sigma = so_far.mean(axis=1), standard_error(so_far)
            guard, reach = (t_quantile(1 - levels(rate, shares)[look], n - 1) * sigma for rate in (BETA, ALPHA))
            ok, bad = mean - guard >= -margin, (mean < -margin) & (mean + reach < 0)
            if look + 1 < len(sizes):
                ok &= n >= prompts_to_see(prompts, fewest, levels(BETA, shares, POCOCK)[look])
                if done == 0:
                    _check_pair_looks(so_far, sizes, margin, ok, bad)
                early += int((open_ & (ok | bad)).sum())
            used += n * (open_ & ((ok | bad) | (n == prompts))).sum()
            passed, failed = passed + int((open_ & ok).sum()), failed + int((open_ & bad).sum())
            open_ &= ~(ok | bad)
        done += size
    return passed / gates, failed / gates, early / gates, used / gates / prompts


def _check_pair_looks(so_far: Array, sizes: Sequence[int], margin: float, ok: Bools, bad: Bools) -> None:
    for i in range(CHECKED):
        old = {str(q): 2.5 for q in range(so_far.shape[1])}
        new = {str(q): 2.5 + 2.5 * float(v) for q, v in enumerate(so_far[i])}
        found = early_pair(
            "acceptance_length", new, old, sizes=sizes, margin=margin, alpha=ALPHA, beta=BETA, source="old"
        )
        wanted = Verdict.PASS if ok[i] else Verdict.FAIL if bad[i] else None
        assert (found and found.verdict) == wanted


@lru_cache(maxsize=8)
def _sizes(prompts: int) -> tuple[int, ...]:
    return look_sizes(blocks({"": [str(i) for i in range(prompts)]}, 0))


def _dropped(random: np.random.Generator, values: Array, drop: float, margin: float, few: bool) -> Array:
    """What the regression takes from each prompt, in the random send order."""
    if not few:
        return np.full_like(values, -drop)
    prompts = values.shape[1]
    count = concentrated(prompts, 2.5, margin)
    loss = np.full(prompts, (count * 0.6 - drop * prompts) / (prompts - count))
    loss[:count] = -0.6
    return random.permuted(np.tile(loss, (len(values), 1)), axis=1)


CELLS = ((512, 0.02, 2.0), (80, 0.04, 1.25))
"""Prompts, margin, and the spread over prompts in margins."""


def sequential(gates: int) -> None:
    def rows() -> Iterator[Sequence[str]]:
        for prompts, margin, ratio in CELLS:
            for few, drop in ((False, 0.0), (False, 1.0), (True, 1.0), (False, 1.5), (False, 2.0), (False, 3.0)):
                common = {"prompts": prompts, "spread": ratio * margin, "margin": margin, "few": few, "draw": normal}
                floor = floor_looks(gates, drop * margin, run=margin / 9, seed=4, **common)  # type: ignore[arg-type]
                pair = pair_looks(gates, drop * margin, seed=5, **common)  # type: ignore[arg-type]
                for kind, found in (("floor", floor), ("paired", pair)):
                    yield (
                        kind,
                        str(prompts),
                        f"{ratio:g} δ",
                        "none" if not drop else "δ, a few prompts at 1" if few else f"{drop:g} δ",
                        percent(found[0]),
                        percent(found[1], 2),
                        percent(found[2]),
                        percent(found[3]),
                    )

    table(
        "Sequential cells; σ of the floors' comparison is δ/9",
        ("gate", "prompts", "σ_d", "drop", "PASS", "FAIL", "decided early", "mean prompts"),
        rows(),
    )


# What is doubtful


def doubtful(gates: int) -> None:
    def rows() -> Iterator[Sequence[str]]:
        for name, draw in (
            ("normal", normal),
            ("recorded flips", flips),
            ("skewed", skewed),
            ("autocorrelated 0.5", autocorrelated),
        ):
            for prompts, margin, ratio in CELLS:
                common = {"prompts": prompts, "spread": ratio * margin, "margin": margin, "draw": draw}
                floor = [
                    floor_looks(gates, d * margin, run=run * margin, few=False, seed=6, **common)  # type: ignore[arg-type]
                    for d, run in ((0.0, 0.02), (0.0, 1 / 9))
                ]
                pair = [
                    pair_looks(gates, d * margin, few=few, seed=7, **common)  # type: ignore[arg-type]
                    for d, few in ((0.0, False), (1.0, False), (1.0, True))
                ]
                yield (
                    name,
                    str(prompts),
                    percent(floor[0][1], 2),
                    percent(floor[1][1], 2),
                    percent(pair[0][1], 2),
                    percent(pair[1][0]),
                    percent(pair[2][0]),
                )

    table(
        "Sequential cells with other noise over prompts: FAIL unchanged (≤ 2.5 %), PASS at the limit (≤ 5 %)",
        (
            "noise",
            "prompts",
            "FAIL: floor, σ δ/50",
            "FAIL: floor, σ δ/9",
            "FAIL: paired",
            "PASS: paired",
            "PASS: paired, a few prompts at 1",
        ),
        rows(),
    )
    table(
        "Floors on percentiles of latency (log-normal over requests, and 1 % between starts), δ 15 %, "
        "6 starts × 2 repeats",
        (
            "percentile",
            "σ of ln over requests",
            "requests",
            "PASS at the limit (≤ 5 %)",
            "FAIL at the reference (≤ 2.5 %)",
            "PASS at the reference",
            "unreachable",
        ),
        _percentiles(gates),
    )


def _percentiles(gates: int) -> Iterator[Sequence[str]]:
    for share, spread in itertools.product((0.5, 0.95, 0.99), (0.1, 0.3)):
        for requests in (80, 512):
            random = np.random.default_rng(8)
            calibration = _latencies(random, (gates, 6, 2), requests, share, spread)
            measured = _latencies(random, (gates, 1, 1), requests, share, spread)[:, 0, 0]
            means = calibration.mean(axis=2)
            squares = (2 * means.var(axis=1, ddof=1), calibration.var(axis=2, ddof=1).mean(axis=1))
            sigma, df = band(squares, (6, 2), (1, 1))
            reference, distance = means.mean(axis=1), math.log1p(0.15)
            sound = sigma <= distance / UNREACHABLE
            worse = measured + distance
            ok = [sound & (value + quantiles(BETA, df) * sigma <= reference + distance) for value in (measured, worse)]
            bad = sound & (measured > reference + distance) & (measured - quantiles(ALPHA, df) * sigma > reference)
            yield (
                f"p{100 * share:.0f}",
                f"{spread:g}",
                str(requests),
                percent(ok[1].mean()),
                percent(bad.mean(), 2),
                percent(ok[0].mean()),
                percent((~sound).mean()),
            )


def _latencies(
    random: np.random.Generator, shape: tuple[int, int, int], requests: int, share: float, spread: float
) -> Array:
    """The logarithm of a percentile over ``requests`` requests, for gates × starts × repeats."""
    gates, starts, repeats = shape
    found = np.empty(shape)
    for i in range(starts):
        start = 0.01 * random.standard_normal(gates)
        for j in range(repeats):
            for part in range(0, gates, 2000):
                logs = spread * random.standard_normal((min(2000, gates - part), requests))
                found[part : part + 2000, i, j] = np.quantile(logs, share, axis=1)
            found[:, i, j] += start
    return found


def draw_figure(path: Path, gates: int) -> None:
    """Mean share of prompts against their spread, for sequential cells; and the power of floors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    ratios = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
    for prompts, margin, _ in CELLS:
        for drop, style in ((2.0, "-"), (1.5, "--")):
            common = {"prompts": prompts, "margin": margin, "few": False, "draw": normal}
            used = [
                floor_looks(gates, drop * margin, spread=r * margin, run=margin / 9, seed=9, **common)[3]  # type: ignore[arg-type]
                for r in ratios
            ]
            axes[0].plot(ratios, used, style, marker=".", label=f"{prompts} prompts, drop {drop:g} δ")
        for drop, style in ((0.0, "-"), (2.0, "--")):
            common = {"prompts": prompts, "margin": margin, "few": False, "draw": normal}
            used = [pair_looks(gates, drop * margin, spread=r * margin, seed=9, **common)[3] for r in ratios]  # type: ignore[arg-type]
            axes[1].plot(ratios, used, style, marker=".", label=f"{prompts} prompts, drop {drop:g} δ")
    for axis, title in zip(axes, ("floors: early FAIL", "paired gates: early PASS and FAIL"), strict=False):
        axis.set(xlabel="σ_d over prompts / δ", ylabel="mean share of prompts", title=title, ylim=(0, 1.02))
        axis.axhline(1 / 3, color="grey", linewidth=0.8)
        axis.legend(fontsize=8)
    drops = np.linspace(0, 2.5, 21)
    for noise, color in ((9, "C0"), (6, "C1")):
        sd = 0.04 / noise / math.sqrt(7 / 6)
        found = [
            floor_gates(gates, d * 0.04, starts=6, sd=(sd, 1e-9), margin=0.04, rerun="start", alpha=ALPHA, seed=10)
            for d in drops
        ]
        axes[2].plot(drops, [f["pass"] for f in found], color=color, label=f"PASS, σ = δ/{noise}")
        axes[2].plot(drops, [f["fail"] for f in found], color=color, linestyle="--", label=f"FAIL, σ = δ/{noise}")
    axes[2].set(xlabel="true drop / δ", ylabel="share of gates", title="floors, 6 starts, one rerun")
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=110)


PLANS = ((1, 1, 80, 0.04), (1, 1, 256, 0.02), (2, 1, 80, 0.04), (2, 5, 256, 0.02), (3, 2, 80, 0.04))
"""Starts and repeats per arm, prompts, margin."""

TABLES: dict[str, Callable[[int], None]] = {
    "floors": floors,
    "pairs": pairs,
    "rates": rates,
    "sequential": sequential,
    "doubtful": doubtful,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--gates", type=int, default=20_000)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pytest-speedbench"))
    print(
        f"{options.gates} gates a line, α {ALPHA:.1%}, β {BETA:.0%} · {dt.date.today()} · Python "
        f"{platform.python_version()}, {versions} · {os.cpu_count()} CPUs"
    )
    for name in options.tables or TABLES:
        TABLES[name](options.gates)
    if options.figure:
        draw_figure(options.figure, max(1000, options.gates // 5))


if __name__ == "__main__":
    main()
