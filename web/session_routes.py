"""Signing in and out, and who is signed in."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import Field

from engine.run import run_id
from engine.task_tables import TaskKind
from stages.records import Record, StageName
from web.accounts import SESSION_SECONDS
from web.dependencies import COOKIE, SessionCookie, Somebody, TheAccounts, TheDesk

routes = APIRouter(prefix="/api")


class SignIn(Record):
    token: Annotated[str, Field(max_length=200)]


class Me(Record):
    name: str
    role: str
    run: str
    run_id: str
    """Whatever is kept in a browser is kept under it: other runs may have the same name."""
    round: int
    stage: StageName
    kinds: tuple[TaskKind, ...]
    """Of the tasks that this round has; who may do which is for the role to say."""
    checkpoint: str


@routes.post("/login", status_code=204)
def login(body: SignIn, accounts: TheAccounts, request: Request, response: Response) -> None:
    session = accounts.open_session(body.token)
    if session is None:
        raise HTTPException(401, "no such token; ask whoever runs this round for a new one")
    response.set_cookie(
        COOKIE,
        session,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=request.app.state.secure_cookies,
    )


@routes.post("/logout", status_code=204)
def logout(
    accounts: TheAccounts, request: Request, response: Response, session: SessionCookie = ""
) -> None:
    accounts.close_session(session)
    secure = request.app.state.secure_cookies
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=secure)


@routes.get("/me")
def me(somebody: Somebody, desk: TheDesk) -> Me:
    current = desk.rounds.current()
    header = current.header
    return Me(
        name=somebody.name,
        role=somebody.role,
        run=desk.config.name,
        run_id=run_id(desk.store) or "",
        round=header.round,
        stage=header.stage,
        kinds=current.kinds,
        checkpoint=header.checkpoint,
    )
