"""The built page, read into memory once: no path of a request ever reaches the disk."""

import mimetypes
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Response

STATIC = Path(__file__).parent / "static"
"""Where `make ui` puts it."""

NAMED_BY_CONTENT = "assets/"
"""Files there have another name once they have another content."""
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


def read_page(folder: Path) -> dict[str, PageFile]:
    """Every file of it by its path within the folder; empty when the page was never built."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _read(path) for path in found}


def page_routes(folder: Path = STATIC) -> APIRouter:
    files, routes = read_page(folder), APIRouter()

    @routes.api_route("/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(
        path: str, if_none_match: Annotated[str, Header(max_length=1000)] = ""
    ) -> Response:
        file = files.get(path or "index.html")
        if file is None:
            raise HTTPException(404, "there is nothing here")
        kept = FOREVER if path.startswith(NAMED_BY_CONTENT) else "no-cache"
        headers = {"ETag": file.etag, "Cache-Control": kept}
        if file.etag in if_none_match:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    return routes


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    kind, _ = mimetypes.guess_type(path.name)
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    return PageFile(content, kind or "application/octet-stream", etag)
