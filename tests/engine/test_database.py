import os
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from databases import NO_SERVER, SERVER
from engine.database import open_database, public_url, sqlite_url
from engine.errors import ConfigError, EngineError, StorageError

SECRET = "hunter2"
TABLES = sa.MetaData()
sa.Table("things", TABLES, sa.Column("name", sa.String(8), primary_key=True))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:1/tasks",
        f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:none/tasks",
        f"postgresql+nodriver://ann:{SECRET}@127.0.0.1/tasks",
        f"nobase://ann:{SECRET}@127.0.0.1/tasks",
        f"ann:{SECRET}@127.0.0.1/tasks",
    ],
)
def test_a_database_that_cannot_be_opened_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(EngineError) as refused:
        open_database(url, TABLES)
    cause: BaseException | None = refused.value
    assert SECRET not in str(cause)
    assert "annotation queue refused" in str(cause) or "tasks_url" in str(cause)


@pytest.mark.skipif(SERVER not in os.environ, reason=NO_SERVER)
def test_a_wrong_password_is_an_error_without_it() -> None:
    url = sa.make_url(os.environ[SERVER]).set(password=SECRET)
    with pytest.raises(StorageError, match="password authentication failed") as refused:
        open_database(url.render_as_string(hide_password=False), TABLES)
    assert SECRET not in str(refused.value)


def test_a_url_is_printed_without_any_password() -> None:
    for url in (
        "postgresql+psycopg://me:secr/et@db/tasks",
        "postgresql://me:secret@db/tasks",
        "postgresql://db/tasks?user=me&password=secret",
    ):
        printed = public_url(url)
        assert "secr" not in printed
        assert printed.endswith("db/tasks")
    assert public_url("sqlite:////runs/tasks.sqlite") == "sqlite:////runs/tasks.sqlite"


def test_a_table_of_an_earlier_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.sqlite") as old:
        old.execute("CREATE TABLE things (other TEXT)")
    old.close()
    with pytest.raises(StorageError, match="table things has no name"):
        open_database(sqlite_url(tmp_path / "old.sqlite"), TABLES)


@pytest.mark.skipif(SERVER not in os.environ, reason=NO_SERVER)
def test_a_connection_that_died_in_the_pool_is_opened_anew() -> None:
    url = os.environ[SERVER]
    engine, other = open_database(url, sa.MetaData()), open_database(url, sa.MetaData())
    with engine.connect() as connection:
        ours = connection.scalar(sa.select(sa.func.pg_backend_pid()))
    with other.connect() as connection:
        connection.scalar(sa.select(sa.func.pg_terminate_backend(ours)))
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.pg_backend_pid())) != ours
    engine.dispose()
    other.dispose()


def test_the_driver_that_a_url_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"sa-engine\[postgres\]"):
        open_database("postgresql+psycopg://ann@127.0.0.1/tasks", TABLES)


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tasks.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StorageError, match="file is not a database"):
        open_database(sqlite_url(tmp_path / "tasks.sqlite"), sa.MetaData())
