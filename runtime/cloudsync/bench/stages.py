"""Latencies by stage, and their percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

STAGES: Final = ("detection", "processing", "delivery", "receipt", "end_to_end")
MEANINGS: Final = {
    "detection": "commit → feed",
    "processing": "feed → gateway's stream",
    "delivery": "gateway's stream → frame written",
    "receipt": "frame written → received",
    "end_to_end": "commit → received",
}
PERCENTILES: Final = (50, 95, 99)
_STEP_US: Final = 10


class Latencies:
    """How often each latency was seen, per stage, to 10 µs."""

    def __init__(self, seen: Mapping[str, Iterable[tuple[int, int]]] | None = None) -> None:
        self._seen: dict[str, Counter[int]] = {stage: Counter() for stage in STAGES}
        for stage, pairs in (seen or {}).items():
            self._seen[stage].update(dict(pairs))

    def add(self, stage: str, latency_us: int, count: int = 1) -> None:
        self._seen[stage][latency_us // _STEP_US] += count

    def merge(self, other: Latencies) -> None:
        for stage, seen in other._seen.items():
            self._seen[stage].update(seen)

    def count(self, stage: str = "end_to_end") -> int:
        return self._seen[stage].total()

    def percentile_ms(self, stage: str, percent: float) -> float | None:
        """The latency that so many percent did not exceed; None if nothing was seen."""
        seen = self._seen[stage]
        if not seen:
            return None
        rank = seen.total() * percent / 100
        passed = 0
        for step in sorted(seen):
            passed += seen[step]
            if passed >= rank:
                break
        return step * _STEP_US / 1000

    def metrics(self) -> dict[str, float]:
        """`STAGE_pNN_ms` of every stage that was seen."""
        found: dict[str, float] = {}
        for stage in STAGES:
            for percent in PERCENTILES:
                value = self.percentile_ms(stage, percent)
                if value is not None:
                    found[f"{stage}_p{percent}_ms"] = round(value, 2)
        return found

    def encoded(self) -> dict[str, list[tuple[int, int]]]:
        """As the constructor takes it."""
        return {stage: list(seen.items()) for stage, seen in self._seen.items()}
