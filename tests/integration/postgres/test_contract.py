"""PostgresStorage keeps what `Storage` promises."""

import pytest
from _server import on_one_server

from mailstrom_async.storage import Storage
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import RosterContract


class TestPostgresStorage(RosterContract):
    """A new object over the same schema is a restart."""

    several_processes = True

    @pytest.fixture(autouse=True)
    def place(self, dsn: str, schema: str) -> None:
        self.dsn = dsn
        self.schema = schema

    def make_storage(self) -> Storage:
        return PostgresStorage(self.dsn, schema=self.schema)


@on_one_server
class TestThroughPgBouncer(TestPostgresStorage):
    """Nothing prepared on the server, nothing outside a transaction: what a PgBouncer in transaction mode demands."""

    def make_storage(self) -> Storage:
        return PostgresStorage(self.dsn, schema=self.schema, statement_cache_size=0)
