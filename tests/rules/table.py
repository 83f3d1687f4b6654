"""The table of the delivery rules: for each row what is expected, what was seen, and the test that saw it."""

import ast
import os
import re
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent.parent
TABLE = TESTS / "RULES.md"
SWITCH = "RULES_TABLE"
HEAD = f"""# The delivery rules, and the tests that prove them

Brought up to date by `{SWITCH}=1 python -m pytest tests/rules`, or any other tests. "seen" is what became of the
recipients, in the order of events (D: deferred, V: delivered, F: failed, with the cause or the reply, the RFC 3463
status, and the number of attempts if it is not one), or how many variants passed. Rows A are about SMTP servers, B
about DNS, C about the process, the store and the clock, D about hostile input, E about load.

| row | expected | seen | test |
| --- | --- | --- | --- |
"""


class Proof(NamedTuple):
    """A test, and the row that it proves."""

    row: str
    expected: str
    test: str

    @property
    def rank(self) -> tuple[str, int, str]:
        """Where it stands in the table."""
        return self.row[0], int(self.row[1:]), self.test


_seen: dict[Proof, list[str]] = defaultdict(list)
_unproved: set[Proof] = set()


def remember(item: pytest.Item) -> None:
    """Have the report of a test name the rows that it proves."""
    for mark in item.iter_markers("rule"):
        row, expected = _row_and_expected(*mark.args, **mark.kwargs)
        name = f"{item.path.relative_to(TESTS)}::{getattr(item, 'originalname', item.name)}"
        item.user_properties.append(("rule", (row, _cell(expected), name)))


def record(report: pytest.TestReport) -> None:
    """Keep what a test saw."""
    proofs = [Proof(*proof) for name, proof in report.user_properties if name == "rule"]
    if not report.passed:
        _unproved.update(proofs)
    elif report.when == "call":
        runs = groupby(text for name, text in report.user_properties if name == "seen")
        lengths = [(text, len(list(run))) for text, run in runs]
        seen = "; ".join(text if length == 1 else f"{length} x {text}" for text, length in lengths)
        for proof in proofs:
            _seen[proof].append(seen)


def write(session: pytest.Session) -> None:
    """Write the table, if that was asked for and all rows were proved."""
    if not os.environ.get(SWITCH):
        return
    if _unproved:
        rows = ", ".join(sorted(proof.row for proof in _unproved))
        session.config.get_terminal_writer().line(f"\n{TABLE.name} was not written: see {rows}", red=True)
        return
    # What did not run this time keeps what was seen before.
    current = in_tests()
    rows = {proof: seen for proof, seen in in_table().items() if proof in current}
    rows |= {proof: _cell(_sum_up(seen)) for proof, seen in _seen.items()}
    lines = [
        f"| {proof.row} | {proof.expected} | {rows[proof]} | {proof.test} |\n"
        for proof in sorted(rows, key=lambda proof: proof.rank)
    ]
    TABLE.write_text(HEAD + "".join(lines), encoding="utf-8")


def _sum_up(seen: list[str]) -> str:
    # Variants of a test that saw the same are one; both event loops always are.
    different = sorted(filter(None, set(seen)))
    return " / ".join(different) if different else f"passed ({len(seen)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row_and_expected(row: str, expected: str) -> tuple[str, str]:
    return row, expected


def in_table() -> dict[Proof, str]:
    """What the committed table holds, and what was seen."""
    if not TABLE.exists():
        return {}
    seen: dict[Proof, str] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and re.fullmatch(r"[A-E]\d+", cells[0]):
            seen[Proof(cells[0], cells[1], cells[3])] = cells[2]
    return seen


def in_tests() -> set[Proof]:
    """What all tests prove, read from their source."""
    proofs = set[Proof]()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                        named = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in mark.keywords}
                        row, expected = _row_and_expected(*map(ast.literal_eval, mark.args), **named)
                        proofs.add(Proof(row, _cell(expected), f"{path.relative_to(TESTS)}::{node.name}"))
    return proofs
