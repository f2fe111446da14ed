"""Reading Prometheus text exposition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """(name, labels, value) of every series. Raises ValueError for anything that is not the format."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def totals(text: str, **labels: str) -> dict[str, float]:
    """Sum of the series by metric name, other labels folded.

    ``labels``: only series that have this value, or have no such label.
    """
    sums: dict[str, float] = {}
    for name, own, value in samples(text):
        if all(own.get(label, wanted) == wanted for label, wanted in labels.items()):
            sums[name] = sums.get(name, 0.0) + value
    return sums
