"""The crash test of tests/bench/crash.py in a short form: some kills in place of a hundred."""

import importlib.util
import sys
from pathlib import Path

import pytest

import mailstrom_async

SCRIPT = Path(mailstrom_async.__file__).parents[1] / "tests/bench/crash.py"


@pytest.mark.rule("C1", expected="nothing lost, no copy without an unknown outcome, no state backwards")
@pytest.mark.timeout(120)
async def test_nothing_is_lost_when_processes_are_killed(survive):
    """Row C1, I1, I3, I4, I6, I10, I11: one, two and all four processes get SIGKILL while mail comes and goes."""
    await survive("--kills", "7")


class TestTheArithmetic:
    """What the crash test finds, if there is something to find."""

    @pytest.fixture(autouse=True)
    def crash(self, monkeypatch):
        spec = importlib.util.spec_from_file_location("crash", SCRIPT)
        self.crash = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "crash", self.crash)
        spec.loader.exec_module(self.crash)

    def test_states_that_go_backwards_are_found(self):
        """A later question must not get an earlier answer."""
        seen = self.crash.Seen

        assert self.crash.went_back([seen(0, 1, rank=2, attempts=1), seen(2, 3, rank=0, attempts=1)])
        assert self.crash.went_back([seen(2, 3, rank=1, attempts=1), seen(0, 1, rank=1, attempts=2)])

    def test_questions_that_overlap_tell_nothing(self):
        """Which of them was answered first is not known."""
        seen = self.crash.Seen

        assert not self.crash.went_back([seen(0, 2, rank=2, attempts=1), seen(1, 3, rank=0, attempts=0)])
        assert not self.crash.went_back([seen(0, 1, rank=0, attempts=0), seen(2, 3, rank=2, attempts=1)])

    def test_what_was_accepted_and_is_not_stored_is_found(self):
        """I1; and what the sink took that nobody sent, I10."""
        found = self.crash.Findings(told={"1@example.org"})
        found.taken["2@example.org"] = 1

        lost, strange = self.crash.violations(found)

        assert "1@example.org: accepted, and not in the store" in lost
        assert "2@example.org: the sink took it" in strange
