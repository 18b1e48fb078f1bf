"""Databases for tests of what people do: SQLite always, PostgreSQL where a server is named."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

SERVER = "SA_ENGINE_TEST_POSTGRES"
"""Environment variable: URL of a PostgreSQL server on which schemas may be made and dropped."""
NO_SERVER = f"no PostgreSQL in {SERVER}: run the tests as `.ci/with-postgres make test`"


@contextmanager
def postgres_schema() -> Iterator[str]:
    """URL of an empty database, or nearly: a schema of its own on the server."""
    server = sa.create_engine(os.environ[SERVER], isolation_level="AUTOCOMMIT")
    name = f"test_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.execute(sa.schema.CreateSchema(name))
        url = server.url.update_query_dict({"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
        connection.execute(sa.schema.DropSchema(name, cascade=True))
    server.dispose()
