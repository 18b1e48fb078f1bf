"""What every route asks for first: who is there, whose desk it is, and ids that name no file."""

from typing import Annotated
from urllib.parse import unquote

from fastapi import Cookie, Depends, Header, HTTPException, Path, Request

from engine.errors import StaleLeaseError
from engine.tasks import Lease
from web.accounts import Account, Accounts, Role
from web.desk import Desk

COOKIE = "session"

TaskId = Annotated[int, Path(ge=1, lt=2**31)]
ImageId = Annotated[int, Path(ge=0, lt=2**63)]
MaskId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
SessionCookie = Annotated[str, Cookie(alias=COOKIE, max_length=200)]
PageOf = Annotated[str | None, Header(alias="X-SA-Engine-Account", max_length=1000)]
"""Whose page asks, percent-encoded: all tabs of a browser have the cookie of who came last."""


def accounts_of(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


TheAccounts = Annotated[Accounts, Depends(accounts_of)]
TheDesk = Annotated[Desk, Depends(desk_of)]


def signed_in(
    accounts: TheAccounts, session: SessionCookie = "", page_of: PageOf = None
) -> Account:
    account = accounts.of_session(session) if session else None
    if account is None:
        raise HTTPException(401, "sign in with your token")
    if page_of is not None and unquote(page_of) != account.name:
        raise HTTPException(401, f"{account.name} has signed in with this browser; sign in again")
    return account


Somebody = Annotated[Account, Depends(signed_in)]


def held(desk: Desk, task_id: int, token: str, somebody: Account) -> Lease:
    """
    Raises:
        StaleLeaseError: the lease is another task's or another person's.
    """
    lease = desk.lease(task_id, token)
    if lease.owner != somebody.name:
        raise StaleLeaseError(f"task {task_id} is not yours; claim a task")
    return lease


def must_be(somebody: Account, *roles: Role) -> None:
    if somebody.role not in roles:
        raise HTTPException(
            403, f"you are {somebody.role} here; this is for {' and '.join(f'{r}s' for r in roles)}"
        )
