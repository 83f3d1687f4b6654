"""The tests that prove a store: what `mailstrom_async.storage.base.Storage` promises, promise by promise."""

from mailstrom_async.testing._contract.accepting import Accepting
from mailstrom_async.testing._contract.asking import Asking
from mailstrom_async.testing._contract.at_once import AtOnce
from mailstrom_async.testing._contract.claiming import Claiming
from mailstrom_async.testing._contract.counting import CountedOrNot, Counting
from mailstrom_async.testing._contract.recording import Recording
from mailstrom_async.testing._contract.reopening import Reopening
from mailstrom_async.testing._contract.setback import Setback


class StorageContract(Accepting, Claiming, AtOnce, Recording, Asking, Reopening, CountedOrNot, Setback):
    """Proves a `Storage` of your own (`RosterContract` proves one that is a `Roster`, too). Inherit from it in a test
    module, and say how your store is made:

        from mailstrom_async.testing import StorageContract

        class TestMyStorage(StorageContract):
            @pytest.fixture(autouse=True)
            def place(self, tmp_path):
                self.path = tmp_path / "queue"

            def make_storage(self):
                return MyStorage(self.path)

    `make_storage` is called without arguments, once or several times in a test. Each time it returns a store that is
    not yet open. The first is empty; the later ones are over the same data, as after a restart of the program (a store
    that lives in memory returns the same object again). The tests close what they open, and never have two of them
    open at once.

    The tests are coroutines: pytest runs them with anyio's plugin (`anyio_mode = "auto"` in its settings, or
    `pytestmark = pytest.mark.anyio` in the class) or with pytest-asyncio. They need no network and no clock, and take
    some seconds. `pytest.register_assert_rewrite("mailstrom_async.testing")` in a `conftest.py`, before anything of it
    is imported, makes their failures tell more.

    Attributes:
        several_processes: Set it to True if other processes may have the store open at the same time: then `open` must
            leave the claims of others alone until their leases end. `upcoming` must name them from then on.
    """


class RosterContract(StorageContract, Counting):
    """Proves a `Storage` of your own that is a `Roster`: one from which several mailers deliver at the same time."""
