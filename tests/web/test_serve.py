"""The server of `sa-engine annotate`, as far as it begins."""

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import web.serve
from engine.errors import ConfigError
from offices import Office
from tiny_runs import sa_engine
from web.accounts import Role
from web.serve import serve


class AnnouncedError(Exception):
    """Ends the server under test."""


def announced(address: str) -> None:
    parts = urlsplit(address)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=1):
        raise AnnouncedError(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_address_is_announced_once_it_listens(office: Office, host: str) -> None:
    office.accounts.add("Ada", Role.ANNOTATOR)
    with pytest.raises(AnnouncedError, match=rf"http://{host}:\d+"):
        serve(office.run.store, host=host, port=0, announce=announced)


def test_an_address_that_cannot_be_had_is_never_announced(office: Office) -> None:
    office.accounts.add("Ada", Role.ANNOTATOR)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host, wanted in (("127.0.0.1", port), ("no.invalid", 1)):
            with pytest.raises(ConfigError, match=f"cannot listen on {host}:{wanted}: .*choose"):
                serve(office.run.store, host=host, port=wanted, announce=announced)


def test_without_anybody_who_may_sign_in_nothing_is_served(office: Office) -> None:
    with pytest.raises(ConfigError, match="sa-engine annotators add"):
        serve(office.run.store, host="127.0.0.1", port=0, announce=announced)


def test_without_a_built_page_the_command_says_how_to_get_it(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(web.serve, "STATIC", tmp_path / "static")
    assert sa_engine(monkeypatch, "annotate", str(office.run.out)) == 2
    assert "run `make ui`" in capfd.readouterr().err
