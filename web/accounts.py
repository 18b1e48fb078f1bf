"""Who may annotate: accounts with a token each, and the sessions that tokens open.

Neither tokens nor session ids are stored, only their SHA-256; both are 256 random bits, so no
slower hash is needed.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

import sqlalchemy as sa

from engine.database import open_database
from engine.errors import ConfigError

SESSION_SECONDS = 12 * 3600.0
MAX_NAME = 64


class Role(StrEnum):
    ANNOTATOR = "annotator"
    REVIEWER = "reviewer"
    MANAGER = "manager"


REVIEWERS = (Role.REVIEWER, Role.MANAGER)
"""Who may look at the work of others."""


@dataclass(frozen=True)
class Account:
    name: str
    role: Role
    session: str = ""
    """SHA-256 of the session it was reached by: which browser this is."""


_METADATA = sa.MetaData()
_ACCOUNTS = sa.Table(
    "accounts",
    _METADATA,
    sa.Column("name", sa.String(MAX_NAME), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
)
_SESSIONS = sa.Table(
    "sessions",
    _METADATA,
    sa.Column("session_sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)


class Accounts:
    def __init__(self, url: str, *, clock: Callable[[], float], run_id: str | None = None) -> None:
        """
        Args:
            url: of the run's annotation queue; accounts live beside the tasks.
            run_id: see `open_database`.
        """
        self._engine = open_database(url, _METADATA, run_id=run_id)
        self._clock = clock

    def close(self) -> None:
        self._engine.dispose()

    def add(self, name: str, role: Role) -> str:
        """A new account, or a new token for one that exists; its old token and sessions end.

        Returns:
            The token: it is shown once and cannot be had again.
        """
        if not name.isprintable() or not 0 < len(name.strip()) <= MAX_NAME:
            raise ConfigError(f"annotator {name!r}: expected a name of 1 to {MAX_NAME} characters")
        token = secrets.token_urlsafe(32)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_ACCOUNTS).where(_ACCOUNTS.c.name == name))
            connection.execute(sa.delete(_SESSIONS).where(_SESSIONS.c.name == name))
            row = {"name": name, "role": role.value, "token_sha256": _digest(token)}
            connection.execute(sa.insert(_ACCOUNTS).values(row))
        return token

    def remove(self, name: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_SESSIONS).where(_SESSIONS.c.name == name))
            if not connection.execute(
                sa.delete(_ACCOUNTS).where(_ACCOUNTS.c.name == name)
            ).rowcount:
                raise ConfigError(
                    f"no annotator {name!r}; expected one of {self._names(connection)}"
                )

    def all(self) -> list[Account]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_ACCOUNTS).order_by(_ACCOUNTS.c.name)).all()
        return [Account(row.name, Role(row.role)) for row in rows]

    def can_review(self) -> bool:
        """Whether anybody may."""
        return any(account.role in REVIEWERS for account in self.all())

    def open_session(self, token: str) -> str | None:
        """A new session id for the owner of a token; None when nobody owns it."""
        session, now = secrets.token_urlsafe(32), self._clock()
        owner = sa.select(_ACCOUNTS.c.name).where(_ACCOUNTS.c.token_sha256 == _digest(token))
        with self._engine.begin() as connection:
            name = connection.scalar(owner)
            if name is None:
                return None
            connection.execute(sa.delete(_SESSIONS).where(_SESSIONS.c.expires_at <= now))
            row = {
                "session_sha256": _digest(session),
                "name": name,
                "expires_at": now + SESSION_SECONDS,
            }
            connection.execute(sa.insert(_SESSIONS).values(row))
        return session

    def close_session(self, session: str) -> None:
        with self._engine.begin() as connection:
            mine = _SESSIONS.c.session_sha256 == _digest(session)
            connection.execute(sa.delete(_SESSIONS).where(mine))

    def of_session(self, session: str) -> Account | None:
        query = (
            sa.select(_ACCOUNTS)
            .join(_SESSIONS, _SESSIONS.c.name == _ACCOUNTS.c.name)
            .where(
                _SESSIONS.c.session_sha256 == _digest(session),
                _SESSIONS.c.expires_at > self._clock(),
            )
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Account(row.name, Role(row.role), _digest(session))

    @staticmethod
    def _names(connection: sa.Connection) -> str:
        names = connection.scalars(sa.select(_ACCOUNTS.c.name).order_by(_ACCOUNTS.c.name)).all()
        return ", ".join(names) or "none: there are no accounts yet"


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
