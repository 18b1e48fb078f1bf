"""The database of annotation, opened: the same for the task queue and for accounts.

SQLite on one machine, PostgreSQL anywhere. Passwords within URLs appear in no message.
"""

import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from engine.errors import ConfigError, StorageError

_CREATING = 0x5A_E4_61_4E
"""Key of PostgreSQL's advisory lock under which tables are created."""
_BUSY_SECONDS = 10
"""SQLite waits so long for somebody else's transaction."""
_OWNER = sa.Table(
    "owner",
    sa.MetaData(),
    sa.Column("owner_id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(32), nullable=False),
)
"""One row: the run whose database this is."""


def open_database(url: str, tables: sa.MetaData, *, run_id: str | None = None) -> sa.Engine:
    """
    Args:
        url: any that SQLAlchemy understands; see `sqlite_url`.
        tables: created where they do not exist, whoever else does so at the same time.
        run_id: whose database it is to be, from its first opening on; None asks nothing.

    Raises:
        ConfigError: nothing can be made of the URL, or another run has the database.
        StorageError: there is no such database, or it refuses; also from whatever is asked of the
            engine later.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _tune_sqlite)
    sa.event.listen(engine, "handle_error", _refuse)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # whose IF NOT EXISTS two at once can both pass
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
        for table in (*tables.sorted_tables, _OWNER):
            _create(connection, table)
    if run_id is not None and _owned_by(engine, run_id) != run_id:
        engine.dispose()
        raise ConfigError(
            "execution.tasks_url names the database of another run, with its tasks, masks and "
            "accounts; give every run a database of its own"
        )
    return engine


def sqlite_url(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def require_file(url: str) -> None:
    """StorageError where a SQLite database has no file here, which opening it would create."""
    database = _engine(url).url
    if database.get_backend_name() == "sqlite" and database.database:
        try:
            Path(database.database).stat()
        except OSError as error:
            raise StorageError(f"{database.database}: {error.strerror}") from error


def public_url(url: str) -> str:
    """A database's URL as it may be printed: without its password, and without the query, which
    may hold another."""
    return sa.make_url(url).set(query={}).render_as_string()


def _engine(url: str) -> sa.Engine:
    try:
        # A connection that died in the pool, with the server that it led to, is opened anew.
        return sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"execution.tasks_url needs the package {error.name}; for PostgreSQL install the extra "
            '`postgres`: pip install "sa-engine[postgres]"'
        ) from error
    except (sa.exc.ArgumentError, ValueError) as error:  # its message may hold the whole URL
        raise ConfigError(
            "execution.tasks_url is no database URL; expected one like "
            "postgresql+psycopg://USER@HOST/DATABASE or sqlite:////mnt/disk/tasks.sqlite"
        ) from error


def _create(connection: sa.Connection, table: sa.Table) -> None:
    """What is missing of a table, and only that: to look for an index with CREATE INDEX, PostgreSQL
    locks the table, and two who lock tables in different orders wait for each other."""
    inspector = sa.inspect(connection)
    if inspector.has_table(table.name):
        _check_columns(inspector, table)
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
    else:
        connection.execute(CreateTable(table, if_not_exists=True))
        indexes = set()
    for index in table.indexes:
        if index.name not in indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


def _owned_by(engine: sa.Engine, run_id: str) -> str | None:
    """The run that has this database; one that nobody has becomes `run_id`'s."""
    owner = sa.select(_OWNER.c.run_id)
    with engine.connect() as connection:
        known: str | None = connection.scalar(owner)
    if known is not None:
        return known
    with suppress(sa.exc.IntegrityError), engine.begin() as connection:  # or somebody was first
        connection.execute(sa.insert(_OWNER).values(owner_id=1, run_id=run_id))
    with engine.connect() as connection:
        return connection.scalar(owner)


def _check_columns(inspector: sa.Inspector, table: sa.Table) -> None:
    """A database of an earlier version lacks some, and would fail at a later statement."""
    known = {column["name"] for column in inspector.get_columns(table.name)}
    if missing := [column.name for column in table.columns if column.name not in known]:
        raise StorageError(
            f"the annotation queue was made by an earlier version: table {table.name} has no "
            f"{', '.join(missing)}; finish the run with that version, or start a new one"
        )


def _tune_sqlite(connection: Any, _record: Any) -> None:
    try:
        connection.execute(f"PRAGMA busy_timeout={1000 * _BUSY_SECONDS}")
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.DatabaseError as error:  # also that the file is none
        raise _refusal(error) from error


def _write_ahead(connection: sqlite3.Connection) -> None:
    """While somebody else writes to a new file, SQLite refuses this one statement without waiting
    its timeout out."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _refuse(context: sa.engine.ExceptionContext) -> None:
    """A full disk, a file that cannot be opened, a database out of reach."""
    refused = isinstance(context.sqlalchemy_exception, sa.exc.OperationalError)
    if refused and not context.is_pre_ping:  # whose failure is what opens a new connection
        raise _refusal(context.original_exception) from context.original_exception


def _refusal(error: BaseException) -> StorageError:
    return StorageError(
        f"the annotation queue refused: {error}; mend its storage and run the same command again"
    )
