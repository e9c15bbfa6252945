"""What became of every load, for the table that ends a run."""

from __future__ import annotations

from faults.load import Report

_COLUMNS = ("sent", "received", "lost", "repeated", "recovered", "silence", "back", "harm")
_lines: list[str] = []


def note(harm: str, report: Report) -> None:
    """Put the load's figures into the table, and into the test's own output."""
    print(f"{harm}: {report}")
    recovered = "-" if report.recovered_s is None else f"{report.recovered_s:.2f} s"
    values = (
        report.sent,
        report.received,
        report.lost,
        report.repeated,
        recovered,
        f"{report.longest_silence_s:.2f} s",
        report.reconnects,
        harm,
    )
    _lines.append(_line(values))


def take() -> list[str]:
    """The lines noted since the last call."""
    taken = _lines[:]
    _lines.clear()
    return taken


def heading() -> str:
    """What the figures of a line are."""
    return _line(_COLUMNS)


def _line(values: tuple[object, ...]) -> str:
    *figures, harm = values
    return "".join(f"{figure!s:>10}" for figure in figures) + f"  {harm}"
