"""Start the annotation server of a run."""

import time

import uvicorn
from fastapi import FastAPI

from engine.config import frozen_config
from engine.errors import ConfigError
from engine.run import tasks_url
from engine.store import Store
from web.accounts import Accounts
from web.app import STATIC, create_app
from web.desk import Desk


def accounts_of(store: Store) -> Accounts:
    return Accounts(tasks_url(store, frozen_config(store)), clock=time.time)


def app_of(store: Store) -> FastAPI:
    """
    Raises:
        ConfigError: nobody could sign in.
        EngineError: no round waits for people.
    """
    accounts, desk = accounts_of(store), Desk(store)
    if not accounts.all():
        raise ConfigError(
            f"nobody may annotate {store.uri} yet: add somebody with `sa-engine annotators add "
            f"{store.uri} NAME`, which prints a token"
        )
    _ = desk.round, desk.decoder_onnx  # what cannot be served is said now
    return create_app(desk, accounts)


def serve(store: Store, *, host: str, port: int) -> None:
    """Answer until stopped. ConfigError when the page was never built."""
    app = app_of(store)
    if not (STATIC / "index.html").is_file():
        raise ConfigError("the page is not built: run `make ui`, which needs Node")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
