"""Reading Prometheus text exposition."""

from __future__ import annotations


def totals(text: str) -> dict[str, float]:
    """Sum of every series by metric name, labels folded."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        # A time stamp may follow the value; label values may hold spaces.
        name, brace, rest = line.partition("{")
        fields = rest.rpartition("}")[2].split() if brace else line.split()[1:]
        key = name if brace else line.split()[0]
        sums[key] = sums.get(key, 0.0) + float(fields[0])
    return sums
