"""What was measured, and what it means beside its peer and its goal. Pure: figures in, results and tables out."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

Figures = Mapping[str, float]
"""What one run of a program tells, by name: "rate", "cpu_us", ..."""
Runs = Mapping[str, Sequence[Figures]]
"""All the runs of each program, oldest first."""


class Figure(NamedTuple):
    """One of the figures that a program tells."""

    program: str
    name: str = "rate"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        ours: What is looked at.
        peer: What it is divided by, run by run.
        must: What the ratio has to be, or without a peer the figure itself; None: there is no goal.
        aim: The same, as we would like it.
        unit: Of the figure, not of the ratio. More of a rate, "/s", is better, and less of anything else.
    """

    name: str
    ours: Figure
    peer: Figure | None = None
    must: float | None = None
    aim: float | None = None
    unit: str = "/s"

    @property
    def programs(self) -> list[str]:
        return [figure.program for figure in (self.peer, self.ours) if figure is not None]


class Result(TypedDict):
    """A row with its figures.

    `value` is what the goal is about, the ratio or the figure itself: the median of the runs; `spread` is the least and
    the greatest. `ours` and `peer` are medians, too. What could not be measured is None, and `note` says why.
    """

    row: str
    unit: str
    ours: float | None
    peer: float | None
    value: float | None
    spread: tuple[float, float] | None
    cpu_us: float | None
    runs: int
    must: float | None
    aim: float | None
    compared: bool
    note: str


def result(row: Row, runs: Runs, note: str = "") -> Result:
    """What the runs say about a row. Runs of two programs that happened in the same round belong together."""
    ours = series(row.ours, runs)
    peer = series(row.peer, runs) if row.peer is not None else []
    values = [mine / theirs for mine, theirs in zip(ours, peer, strict=False)] if row.peer is not None else ours
    cpu = series(Figure(row.ours.program, "cpu_us"), runs)
    return Result(
        row=row.name,
        unit=row.unit,
        ours=_median(ours),
        peer=_median(peer),
        value=_median(values),
        spread=(min(values), max(values)) if values else None,
        cpu_us=_median(cpu),
        runs=len(values),
        must=row.must,
        aim=row.aim,
        compared=row.peer is not None,
        note=note,
    )


def series(figure: Figure, runs: Runs) -> list[float]:
    """One figure, run by run; runs that do not tell it are left out."""
    return [run[figure.name] for run in runs.get(figure.program, ()) if figure.name in run]


def verdict(found: Result) -> str:
    """ "aim", "must" or "short": what was reached; "" where there is no goal, or nothing was measured.

    By two digits, which is all that such figures are worth.
    """
    if found["value"] is None:
        return ""
    value = float(f"{found['value']:.2g}")
    for name, goal in (("aim", found["aim"]), ("must", found["must"])):
        if goal is not None and factor(found, value, goal) >= 1:
            return name
    return "short" if found["must"] is not None else ""


def factor(found: Result, value: float, goal: float) -> float:
    """How many times better the value is than the goal."""
    return value / goal if found["unit"] == "/s" else goal / max(value, 1e-9)


# As text.

HEAD = ("what", "ours", "peer", "ratio", "spread", "must", "aim", "reached", "CPU us")


def head() -> list[str]:
    return [_line(HEAD), _line(["---"] * len(HEAD))]


def line(found: Result) -> str:
    """A row of a Markdown table."""
    unit = found["unit"]
    goal_unit = "x" if found["compared"] else unit
    ratio = number(found["value"], "x") if found["compared"] else ""
    spread = found["spread"]
    return _line(
        [
            found["row"],
            number(found["ours"], unit) or found["note"] or "not measured",
            number(found["peer"], unit) or (found["note"] if found["ours"] is not None else ""),
            ratio,
            f"{number(spread[0])} - {number(spread[1], goal_unit)}" if spread and found["runs"] > 1 else "",
            number(found["must"], goal_unit),
            number(found["aim"], goal_unit),
            verdict(found),
            number(found["cpu_us"]) if unit == "/s" else "",
        ]
    )


def table(results: Iterable[Result]) -> str:
    return "\n".join([*head(), *map(line, results)])


def as_text(found: Mapping[str, object]) -> str:
    """What was run when and where, in one line, for below the table."""
    machine = found["machine"]
    quick = " Quick runs: they show that everything works, and no more." if found["quick"] else ""
    return f"{found['date']}, {machine}, median of {found['rounds']} runs.{quick}"


def replace_section(document: str, section: str, begin: str, end: str) -> str:
    """The document with what stands between two marks replaced.

    Raises:
        ValueError: The marks are not there, once each and in this order.
    """
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after or end in after:
        raise ValueError(f"the document needs {begin} and {end} once each")
    return f"{before}{begin}\n{section}\n{end}{after}"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def number(value: float | None, unit: str = "") -> str:
    """With three digits that mean something."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    if digits:
        text = text.rstrip("0").rstrip(".")
    return f"{text}{unit if unit in ('x', '/s', '') else f' {unit}'}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
