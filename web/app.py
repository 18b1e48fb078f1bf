"""The annotation server: an HTTP interface to the desk, and the page that uses it.

Nothing but the sign-in answers without a session. The session id is a cookie that scripts cannot
read and other sites cannot send; what changes something also needs a header that only the page's
own scripts can set. Ids in a path are numbers or hex digits, checked before anything looks at them,
and the page's own files are in memory: no path of a request reaches the disk. Whatever is refused
is logged.
"""

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.errors import (
    EngineError,
    ImageError,
    StaleLeaseError,
    StorageError,
    TooLargeError,
)
from web import dashboard_routes, image_routes, review_routes, session_routes, task_routes
from web.accounts import Accounts
from web.dashboard import DashboardFigures
from web.desk import Desk
from web.masks import InvalidMaskError
from web.page import page_routes
from web.pictures import MaskPictures

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * 2**20
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


def create_app(desk: Desk, accounts: Accounts, *, secure_cookies: bool = False) -> FastAPI:
    """
    Args:
        secure_cookies: send the session over HTTPS only; for a server behind a TLS proxy.
    """
    app = FastAPI(title="SA Engine", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk, app.state.accounts = desk, accounts
    app.state.secure_cookies = secure_cookies
    app.state.figures = DashboardFigures(desk.store, desk.config, desk.queue)
    app.state.pictures = MaskPictures(desk.store, desk.config, desk.queue)
    app.middleware("http")(_guard)
    _answer_errors(app)
    for part in (session_routes, task_routes, review_routes, image_routes, dashboard_routes):
        app.include_router(part.routes)
    app.include_router(page_routes())
    return app


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what other sites may have sent and what is too large; say what a browser may do."""
    if request.method in ("GET", "HEAD"):
        response = await call_next(request)
    elif request.headers.get("X-SA-Engine") != "1":
        response = _refused(request, 403, "no header X-SA-Engine: this is no request of the page")
    elif (length := _content_length(request)) is None:
        response = _refused(request, 411, "expected a Content-Length")
    elif length > MAX_BODY_BYTES:
        response = _refused(request, 413, f"more than {MAX_BODY_BYTES // 2**20} MiB")
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
        TooLargeError: 413,
        ImageError: 410,  # the page tries a 503 again and again, and the annotator could not go on
        StorageError: 503,
        EngineError: 503,
    }
    for error_type, status in statuses.items():

        def answer(request: Request, error: Exception, status: int = status) -> Response:
            return _refused(request, status, str(error))

        app.add_exception_handler(error_type, answer)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code < 400:  # an answer without a body
            return Response(status_code=error.status_code, headers=error.headers)
        response = _refused(request, error.status_code, error.detail)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(HTTPException, refused)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _refused(request, 422, f"{where}: {first['msg']}")

    app.add_exception_handler(RequestValidationError, invalid)


def _refused(request: Request, status: int, detail: str) -> Response:
    # As Python writes it: a line break in a path makes no line of its own.
    log.warning("%s %r: %d, %r", request.method, request.url.path, status, detail)
    return JSONResponse({"detail": detail}, status_code=status)
