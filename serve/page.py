"""The page at `/`: its files, read once at start, with the headers that keep a browser from loading anything from elsewhere."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

STATIC = Path(__file__).parent / "static"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
HEADERS = {
    # Nothing inline, nothing from another host, no text that becomes HTML, no frame around the page.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by the browser and asked for again each time, so that a new version of the server has its own page at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page. etag: quoted, of its content."""

    content: bytes
    content_type: str
    etag: str


def read_page_files(folder: Path = STATIC) -> dict[str, PageFile]:
    """The page's files by their path under `/static/`.

    Raises:
      KeyError: a file of a kind that has no content type here.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        files[path.relative_to(folder).as_posix()] = PageFile(content, CONTENT_TYPES[path.suffix], etag)
    return files


def answer(file: PageFile, request: Request) -> Response:
    """The file, or 304 where the browser has it. A HEAD has the same headers and no body: the HTTP server leaves it out."""
    headers = {**HEADERS, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.content_type, headers=headers)


def add_page(app: FastAPI) -> None:
    """Gives the app `/` and `/static/...`: open to all, as there is nothing in them that a key would protect."""
    files = read_page_files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return answer(files["index.html"], request)

    @router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return answer(files[name], request)

    app.include_router(router)
