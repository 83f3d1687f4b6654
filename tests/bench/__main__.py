"""All the benchmarks in one table, beside their peers.

    python tests/bench                                      # the table: about a quarter of an hour
    python tests/bench --quick                              # a tenth of everything, once: does it work?
    python tests/bench --rows import "2 KiB"                # rows or groups whose name has one of these in it
    python tests/bench --json results.json --plot results.svg --readme
    python tests/bench --show results.json --readme         # measure nothing, and tell what was measured before

Each run is a process of its own. What has a peer takes turns with it, and the ratio is that of runs in the same turn:
machines have quiet and busy minutes. Each figure is the median of the runs. Postfix takes part where Debian's postfix
is installed and we are root; its smtp-sink is the other end wherever it is installed. Results are written run by run,
so an interrupt loses nothing. --list tells what there is.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import machine
import postfix
from result import Result, Row, as_text, head, line, replace_section, result, table
from rows import GROUPS, PROGRAMS, Group

PROJECT = Path(__file__).parents[2]
ROUNDS = 3
QUICK = 0.1
PATIENCE = 900
"""Seconds for one run; that of ten minutes takes the longest."""
CLEANING = 40
"""Seconds that an interrupted run gets to stop what it started."""
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


class RunFailed(Exception):
    """A program gave no figures; the message says why."""


def main() -> int:
    options = arguments()
    if options.one is not None:
        print(json.dumps(PROGRAMS[options.one](options.share)))
        return 0
    if options.list:
        for group in GROUPS:
            print(f"{group.name}{'' if group.by_default else ' (only when asked for)'}")
            print(*(f"  {row.name}" for row in group.rows), sep="\n")
        return 0
    failed = False
    if options.show is not None:
        found = json.loads(options.show.read_text())
        print(table(found["rows"]), as_text(found), sep="\n\n")
    else:
        found = machine.describe() | {"quick": options.quick, "rounds": options.runs, "rows": [], "runs": {}}
        print(f"{found['machine']}; load {found['load']}; results in {options.json}", file=sys.stderr)
        try:
            failed = measure(chosen(options.rows), found, options)
        except KeyboardInterrupt:
            print(f"interrupted; what was measured until then is in {options.json}", file=sys.stderr)
            return 130
    if options.plot is not None:
        import picture

        picture.draw(found, options.plot)
    if options.readme:
        readme = PROJECT / "README.md"
        section = f"{table(found['rows'])}\n\n{as_text(found)}"
        readme.write_text(replace_section(readme.read_text(), section, BEGIN, END))
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, once")
    parser.add_argument("--rows", nargs="+", metavar="TEXT", help="rows or groups whose name has this in it")
    parser.add_argument("--runs", type=int, metavar="N", help=f"of each program; {ROUNDS} unless --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .svg, .png (needs the extra `plot`)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, take these results")
    parser.add_argument("--list", action="store_true", help="tell what there is")
    parser.add_argument("--one", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else ROUNDS)
    options.json = options.json or Path(tempfile.gettempdir(), "mailstrom-bench.json")
    return options


def chosen(texts: Sequence[str] | None) -> list[Group]:
    """The groups, each with the rows that were asked for."""
    if texts is None:
        return [group for group in GROUPS if group.by_default]
    names = {group.name for group in GROUPS}

    def wanted(group: Group, row: Row) -> bool:
        return any(text == group.name if text in names else text in row.name for text in texts)

    groups = [Group(group.name, [row for row in group.rows if wanted(group, row)]) for group in GROUPS]
    return [group for group in groups if group.rows]


def measure(groups: Sequence[Group], found: dict[str, object], options: argparse.Namespace) -> bool:
    """Run them, print each row as soon as it is known, and write down everything; whether something failed."""
    runs: dict[str, list[dict[str, float]]] = {}
    rows: list[Result] = []
    notes: dict[str, str] = {}
    found |= {"runs": runs, "rows": rows}
    failed = False
    print(*head(), sep="\n", flush=True)
    for group in groups:
        for turn in range(options.runs):
            for program in group.programs:
                if program in notes:
                    continue
                if program.startswith("Postfix") and not postfix.available():
                    notes[program] = "not installed"
                    continue
                try:
                    figures = run(program, QUICK if options.quick else 1.0)
                except RunFailed as error:
                    notes[program], failed = "failed", True
                    print(f"{program}: {error}", file=sys.stderr)
                    continue
                runs.setdefault(program, []).append(figures)
                write(options.json, found)
                print(f"  {turn + 1}: {program}: {brief(figures)}", file=sys.stderr, flush=True)
        for row in group.rows:
            note = ", ".join({notes[program]: None for program in row.programs if program in notes})
            rows.append(result(row, runs, note))
            write(options.json, found)
            print(line(rows[-1]), flush=True)
    return failed


def run(program: str, share: float) -> dict[str, float]:
    """One run, in a process of its own.

    Raises:
        RunFailed: It ended with an error, or not at all.
    """
    command = [sys.executable, str(Path(__file__).parent), "--one", program, "--share", str(share)]
    with child(command) as process:
        try:
            told, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"not finished after {PATIENCE} s") from None
    if process.returncode:
        raise RunFailed(f"exit status {process.returncode}\n{errors[-2000:]}")
    figures: dict[str, float] = json.loads(told.splitlines()[-1])
    return figures


@contextlib.contextmanager
def child(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that is gone in the end with all that it started, however we leave."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},  # what it starts finds us, too
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it stops its servers, and removes their files
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=CLEANING)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def write(path: Path, found: object) -> None:
    """Whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(path)


def brief(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items() if isinstance(value, int | float))


if __name__ == "__main__":
    sys.exit(main())
