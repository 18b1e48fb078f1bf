"""The annotation server: an HTTP interface to the desk, and the page that uses it.

Nothing but the sign-in answers without a session. The session id is a cookie that scripts cannot
read and other sites cannot send; what changes something also needs a header that only the page's
own scripts can set. Ids in a path are numbers or hex digits, checked before anything looks at them,
so no request names a file.
"""

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from engine.errors import EngineError, StaleLeaseError, StorageError, UnreadableImageError
from engine.tasks import Lease
from stages.records import Record, StageName
from web.accounts import SESSION_SECONDS, Account, Accounts
from web.desk import Desk, DraftMask, InvalidMaskError, Progress, Task

log = logging.getLogger(__name__)

COOKIE = "session"
MAX_BODY_BYTES = 8 * 2**20
MAX_POINTS = 256
STATIC = Path(__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
        "img-src 'self' blob: data:; connect-src 'self'; worker-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    # Threads in the page's decoder need both.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Point = tuple[FiniteFloat, FiniteFloat]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=24 * 3600)]
TaskId = Annotated[int, InPath(ge=1, lt=2**31)]
ImageId = Annotated[int, InPath(ge=0, lt=2**63)]
MaskId = Annotated[str, InPath(pattern=r"^[0-9a-f]{32}$")]


class SignIn(Record):
    token: Annotated[str, Field(max_length=200)]


class Me(Record):
    name: str
    role: str
    run: str
    round: int
    stage: StageName
    checkpoint: str


class Held(Record):
    """Whatever is done to a task names the lease it is done under."""

    lease: Annotated[str, Field(min_length=1, max_length=32)]


class SaveMask(Held):
    mask: DraftMask


class Flag(Held):
    flagged: bool


class Submit(Held):
    seconds: Seconds


class Skip(Submit):
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Renewed(Record):
    expires_in: float


class DecodeRequest(Record):
    image_id: Annotated[int, Field(ge=0, lt=2**63)]
    point_coords: Annotated[
        tuple[tuple[FiniteFloat, FiniteFloat], ...], Field(max_length=MAX_POINTS)
    ]
    """Input frame."""
    point_labels: tuple[Annotated[int, Field(ge=-1, le=3)], ...]
    mask_input: str | None = None
    """Base64 of fp16 logits (s, s)."""


class DecodeAnswer(Record):
    low_res_masks: str
    """Base64 of fp16 logits (4, s, s)."""
    predicted_iou: tuple[float, ...]


def create_app(desk: Desk, accounts: Accounts, *, secure_cookies: bool = False) -> FastAPI:
    """
    Args:
        secure_cookies: send the session over HTTPS only; for a server behind a TLS proxy.
    """
    app = FastAPI(title="SA Engine", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard)
    _answer_errors(app)

    def account(session: Annotated[str, Cookie(max_length=200)] = "") -> Account:
        found = accounts.of_session(session) if session else None
        if found is None:
            raise HTTPException(401, "sign in with your token")
        return found

    Somebody = Annotated[Account, Depends(account)]

    def held(task_id: int, token: str, somebody: Account) -> Lease:
        lease = desk.lease(task_id, token)
        if lease.owner != somebody.name:
            raise StaleLeaseError(f"task {task_id} is not yours; claim a task")
        return lease

    def of_this_round(image_id: int) -> int:
        if not desk.has_image(image_id):
            raise HTTPException(404, f"image {image_id} is not one of this round's")
        return image_id

    @app.post("/api/login", status_code=204)
    def login(body: SignIn, response: Response) -> None:
        session = accounts.open_session(body.token)
        if session is None:
            raise HTTPException(401, "no such token; ask whoever runs this round for a new one")
        response.set_cookie(
            COOKIE,
            session,
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=secure_cookies,
        )

    @app.post("/api/logout", status_code=204)
    def logout(response: Response, session: Annotated[str, Cookie(max_length=200)] = "") -> None:
        accounts.close_session(session)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=secure_cookies)

    @app.get("/api/me")
    def me(somebody: Somebody) -> Me:
        header = desk.round.plan.header
        return Me(
            name=somebody.name,
            role=somebody.role,
            run=desk.config.name,
            round=header.round,
            stage=header.stage,
            checkpoint=header.checkpoint,
        )

    @app.post("/api/tasks/claim")
    def claim(somebody: Somebody) -> Task:
        task = desk.claim(somebody.name)
        if task is None:
            raise HTTPException(204)
        return task

    @app.post("/api/tasks/{task_id}/renew")
    def renew(task_id: TaskId, body: Held, somebody: Somebody) -> Renewed:
        return Renewed(expires_in=desk.renew(held(task_id, body.lease, somebody)))

    @app.put("/api/tasks/{task_id}/masks/{mask_id}", status_code=204)
    def save(task_id: TaskId, mask_id: MaskId, body: SaveMask, somebody: Somebody) -> None:
        desk.save(held(task_id, body.lease, somebody), mask_id, body.mask)

    @app.delete("/api/tasks/{task_id}/masks/{mask_id}", status_code=204)
    def delete(task_id: TaskId, mask_id: MaskId, body: Held, somebody: Somebody) -> None:
        desk.delete(held(task_id, body.lease, somebody), mask_id)

    @app.put("/api/tasks/{task_id}/flags/{prefilled_id}", status_code=204)
    def flag(task_id: TaskId, prefilled_id: ImageId, body: Flag, somebody: Somebody) -> None:
        desk.flag(held(task_id, body.lease, somebody), prefilled_id, body.flagged)

    @app.post("/api/tasks/{task_id}/submit", status_code=204)
    def submit(task_id: TaskId, body: Submit, somebody: Somebody) -> None:
        desk.submit(held(task_id, body.lease, somebody), body.seconds)

    @app.post("/api/tasks/{task_id}/skip", status_code=204)
    def skip(task_id: TaskId, body: Skip, somebody: Somebody) -> None:
        desk.skip(held(task_id, body.lease, somebody), body.seconds, body.reason)

    @app.post("/api/tasks/{task_id}/release", status_code=204)
    def release(task_id: TaskId, body: Held, somebody: Somebody) -> None:
        desk.release(held(task_id, body.lease, somebody))

    @app.get("/api/progress")
    def progress(somebody: Somebody) -> Progress:
        return desk.progress()

    @app.get("/api/images/{image_id}")
    def image(image_id: ImageId, somebody: Somebody) -> Response:
        return Response(desk.image_jpeg(of_this_round(image_id)), media_type="image/jpeg")

    @app.get("/api/embeddings/{image_id}")
    def embedding(image_id: ImageId, somebody: Somebody) -> Response:
        values = desk.embedding(of_this_round(image_id))
        return Response(values.astype("<f2").tobytes(), media_type="application/octet-stream")

    @app.get("/api/decoder")
    def decoder(
        somebody: Somebody, if_none_match: Annotated[str, Header(max_length=200)] = ""
    ) -> Response:
        # Kept by the browser, and asked after by the checkpoint's name: 16 MB once a round.
        headers = {"Cache-Control": "private, no-cache", "ETag": f'"{desk.round.checkpoint}"'}
        if if_none_match == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(desk.decoder_onnx, headers=headers, media_type="application/octet-stream")

    @app.post("/api/decode")
    def decode(body: DecodeRequest, somebody: Somebody) -> DecodeAnswer:
        if not body.point_coords or len(body.point_labels) != len(body.point_coords):
            raise HTTPException(422, "point_labels: expected one for each of point_coords")
        masks, predicted_iou = desk.decode(
            of_this_round(body.image_id),
            np.asarray(body.point_coords, np.float32),
            np.asarray(body.point_labels, np.int64),
            None if body.mask_input is None else _logits(body.mask_input, desk.low_res_size),
        )
        return DecodeAnswer(
            low_res_masks=base64.b64encode(masks.astype("<f2").tobytes()).decode(),
            predicted_iou=tuple(predicted_iou.tolist()),
        )

    if STATIC.is_dir():
        app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what other sites may have sent and what is too large; say what a browser may do."""
    if request.method in ("GET", "HEAD"):
        response = await call_next(request)
    elif request.headers.get("X-SA-Engine") != "1":
        response = _refusal(403, "no header X-SA-Engine: this is no request of the page")
    elif _content_length(request) is None:
        response = _refusal(411, "expected a Content-Length")
    elif (_content_length(request) or 0) > MAX_BODY_BYTES:
        response = _refusal(413, f"more than {MAX_BODY_BYTES // 2**20} MiB")
    else:
        response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.url.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "private, no-store")
    return response


def _content_length(request: Request) -> int | None:
    """None where the length is not said: a body without one could be of any."""
    if "transfer-encoding" in request.headers:
        return None
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else None


def _answer_errors(app: FastAPI) -> None:
    statuses: dict[type[EngineError], int] = {
        StaleLeaseError: 409,
        InvalidMaskError: 422,
        UnreadableImageError: 410,
        StorageError: 503,
        EngineError: 503,
    }
    for error_type, status in statuses.items():

        def answer(request: Request, error: Exception, status: int = status) -> Response:
            return _refused(request, status, str(error))

        app.add_exception_handler(error_type, answer)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _refused(request, 422, f"{where}: {first['msg']}")

    app.add_exception_handler(RequestValidationError, invalid)


def _refused(request: Request, status: int, detail: str) -> Response:
    log.warning("%s %s: %d, %s", request.method, request.url.path, status, detail)
    return _refusal(status, detail)


def _refusal(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status_code=status)


def _logits(encoded: str, side: int) -> NDArray[Any]:
    try:
        values = np.frombuffer(base64.b64decode(encoded, validate=True), "<f2")
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "mask_input: expected base64 of fp16 values") from error
    if values.size != side * side or not np.isfinite(values).all():
        raise HTTPException(422, f"mask_input: expected {side} x {side} finite fp16 values")
    return values.reshape(side, side).astype(np.float32)
