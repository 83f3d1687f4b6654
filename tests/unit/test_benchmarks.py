"""The pure parts of tests/bench/: what figures mean, and the tables. No benchmark is run here."""

import importlib.util
import sys
from pathlib import Path

import pytest

import mailstrom_async

FOLDER = Path(mailstrom_async.__file__).parents[1] / "tests/bench"


def load(name: str):
    """A module of the benchmarks, which are programs and no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


result = load("result")
Figure, Row = result.Figure, result.Row

COMPARED = Row("ours / theirs", Figure("ours"), Figure("theirs"), must=6, aim=10)
ABSOLUTE = Row("late", Figure("ours", "late_ms"), must=5, aim=2, unit="ms")


def runs(ours: list[float], theirs: list[float]) -> dict[str, list[dict[str, float]]]:
    return {
        "ours": [{"rate": rate, "cpu_us": 50.0, "late_ms": rate / 1000} for rate in ours],
        "theirs": [{"rate": rate} for rate in theirs],
    }


def test_a_ratio_is_taken_run_by_run():
    """A busy minute slows both sides of its own turn: the median is of the ratios, not a ratio of medians."""
    found = result.result(COMPARED, runs([7000, 4000, 9000], [1000, 500, 1500]))

    assert found["value"] == 7.0
    assert found["spread"] == (6.0, 8.0)
    assert (found["ours"], found["peer"]) == (7000, 1000)
    assert found["cpu_us"] == 50.0
    assert found["runs"] == 3


def test_without_a_peer_the_figure_itself_counts():
    found = result.result(ABSOLUTE, runs([3000, 1000, 4000], []))

    assert found["value"] == found["ours"] == 3.0
    assert found["peer"] is None
    assert not found["compared"]


def test_a_run_without_its_peer_is_in_no_ratio():
    """A run that is still missing when an interrupt comes."""
    found = result.result(COMPARED, runs([7000, 1], [1000]))

    assert found["value"] == 7.0
    assert found["runs"] == 1


@pytest.mark.parametrize(
    ("ours", "expected"), [(10_000, "aim"), (9_940, "must"), (5_960, "must"), (5_940, "short"), (None, "")]
)
def test_more_of_a_ratio_is_better(ours, expected):
    found = result.result(COMPARED, runs([ours] if ours is not None else [], [1000]))

    assert result.verdict(found) == expected


@pytest.mark.parametrize(("late", "expected"), [(2_000, "aim"), (2_100, "must"), (5_000, "must"), (5_100, "short")])
def test_less_of_a_figure_is_better(late, expected):
    assert result.verdict(result.result(ABSOLUTE, runs([late], []))) == expected


@pytest.mark.parametrize(("late", "expected"), [(1_400, "must"), (1_600, "short")])
def test_less_of_a_ratio_of_times_is_better(late, expected):
    """How much slower healthy mail is beside a sick destination."""
    row = Row("with / without", Figure("ours", "late_ms"), Figure("theirs"), must=1.5, unit="ms")

    assert result.verdict(result.result(row, runs([late], [1]))) == expected


def test_what_has_no_goal_is_not_judged():
    found = result.result(Row("only told", Figure("ours")), runs([1.0], []))

    assert result.verdict(found) == ""


def test_a_line_has_a_cell_for_each_column():
    found = [
        result.result(COMPARED, runs([7000, 4000, 9000], [1000, 500, 1500])),
        result.result(ABSOLUTE, runs([2500], [])),
        result.result(COMPARED, {}, note="failed"),
    ]
    head, rule, *lines = result.table(found).splitlines()

    assert all(line.count("|") == head.count("|") for line in [rule, *lines])
    assert lines[0] == "| ours / theirs | 7,000/s | 1,000/s | 7x | 6 - 8x | 6x | 10x | must | 50 |"
    assert lines[1] == "| late | 2.5 ms |  |  |  | 5 ms | 2 ms | must |  |"
    assert lines[2] == "| ours / theirs | failed |  |  |  | 6x | 10x |  |  |"


def test_a_missing_peer_is_named():
    found = result.result(COMPARED, runs([7000], []), note="not installed")

    assert result.line(found).startswith("| ours / theirs | 7,000/s | not installed |")


def test_a_section_is_replaced_and_nothing_else():
    document = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"

    replaced = result.replace_section(document, "new", "<!-- a -->", "<!-- /a -->")

    assert replaced == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    assert result.replace_section(replaced, "new", "<!-- a -->", "<!-- /a -->") == replaced


@pytest.mark.parametrize("document", ["", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a --><!-- /a --><!-- a -->"])
def test_a_document_without_its_marks_is_left_alone(document):
    with pytest.raises(ValueError, match="once each"):
        result.replace_section(document, "new", "<!-- a -->", "<!-- /a -->")


def test_the_readme_has_the_marks():
    """`python tests/bench --readme` writes between them."""
    readme = (FOLDER.parents[1] / "README.md").read_text()

    assert result.replace_section(readme, "new", "<!-- benchmarks -->", "<!-- /benchmarks -->")
