"""The results as a picture: how far each row is beyond its goal, and what a sick destination does to healthy mail."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from result import Result, as_text, factor, number, verdict

COLORS = {"aim": "#2a7f62", "must": "#7fb069", "short": "#c8553d", "": "#999999"}
SICK = "sick: "
"""Programs with this in front tell `latencies_s`."""


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The kind of file is what the name of the file ends with."""
    judged = [row for row in found["rows"] if row["must"] and row["value"]]
    latencies = {
        name.removeprefix(SICK): [each for run in runs for each in run["latencies_s"]]
        for name, runs in found["runs"].items()
        if name.startswith(SICK)
    }
    panels = [panel for panel in (judged, latencies) if panel]
    if not panels:
        raise SystemExit("there is nothing to draw: no row with a goal was measured")
    heights = [0.9 + 0.42 * len(panel) if panel is judged else 4.2 for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(11, sum(heights) + 1), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        if panel is judged:
            draw_goals(axis, judged)
        else:
            draw_latencies(axis, latencies)
    figure.suptitle(as_text(found), fontsize=8, color="#555555")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_goals(axis: Axes, rows: Sequence[Result]) -> None:
    """A bar for each row: how many times better than it must be."""
    places = range(len(rows))
    beyond = [factor(row, row["value"] or 0.0, row["must"] or 1.0) for row in rows]
    axis.barh(places, beyond, color=[COLORS[verdict(row)] for row in rows], height=0.6, left=0)
    for place, row in zip(places, rows, strict=True):
        if row["aim"] and row["must"]:
            axis.plot(factor(row, row["aim"], row["must"]), place, marker="D", markersize=5, color="#333333")
        unit = "x" if row["compared"] else row["unit"]
        axis.annotate(
            number(row["value"], unit), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axis.axvline(1, color="#333333", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlim(min([0.3, *beyond]) * 0.9, max([6.0, *beyond]) * 1.1)
    axis.set_yticks(places, [row["row"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("times better than it must be (line), and as we would like it (diamonds)", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_latencies(axis: Axes, latencies: Mapping[str, Sequence[float]]) -> None:
    """The share of healthy mail that was delivered within a time, for each sickness of the other destination."""
    for name, values in latencies.items():
        ordered = sorted(max(value * 1e3, 0.1) for value in values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axis.step(ordered, shares, where="post", label=name, linewidth=1.4)
    axis.axhline(0.99, color="#999999", linewidth=0.7, linestyle=":")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("milliseconds from send_email to the recorded delivery of mail to healthy destinations", fontsize=8)
    axis.set_ylabel("share delivered", fontsize=8)
    axis.legend(title="nine tenths of the queue are for one that is", fontsize=8, title_fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
