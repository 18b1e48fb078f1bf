"""Start the annotation server of a run."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn
from fastapi import FastAPI

from engine.config import frozen_config
from engine.errors import ConfigError
from engine.run import run_id, tasks_url
from engine.store import Store
from web.accounts import Accounts
from web.app import create_app
from web.desk import Desk
from web.encoding import Embed
from web.page import STATIC


def accounts_of(store: Store) -> Accounts:
    url = tasks_url(store, frozen_config(store))
    return Accounts(url, clock=time.time, run_id=run_id(store))


@contextmanager
def open_app(
    store: Store, *, embed: Embed | None = None, secure_cookies: bool = False
) -> Iterator[FastAPI]:
    """The app of a run, with its database closed in the end.

    Args:
        embed: see `Desk`.
        secure_cookies: see `create_app`.

    Raises:
        ConfigError: nobody could sign in.
        EngineError: no round waits for people.
    """
    with closing(accounts_of(store)) as accounts, closing(Desk(store, embed)) as desk:
        if not accounts.all():
            raise ConfigError(
                f"nobody may annotate {store.uri} yet: add somebody with `sa-engine annotators add "
                f"{store.uri} NAME`, which prints a token"
            )
        _ = desk.rounds.known.decoder  # what cannot be served is said now
        yield create_app(desk, accounts, secure_cookies=secure_cookies)


def require_page() -> None:
    """ConfigError when the page was never built: there would be nothing to look at."""
    if not (STATIC / "index.html").is_file():
        raise ConfigError("the page is not built: run `make ui`, which needs Node")


def serve(store: Store, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Answer until stopped.

    Args:
        port: 0: any that is free.
        announce: called with the address, once requests to it are answered.

    Raises:
        ConfigError: the address cannot be had; and as `open_app`.
    """
    with open_app(store) as app, _listen(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """From here on connections wait to be answered instead of being refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server((address[0], port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another"
        ) from error
