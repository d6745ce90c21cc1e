"""The page's files over HTTP, and what may not be in them."""

import gzip
import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

import pytest

from sarathi_jax.serve.page import STATIC, read_page_files

OWN = sorted(
    path for path in STATIC.rglob("*") if path.suffix in {".js", ".css", ".html"} and path.parent.name != "vendor"
)


@pytest.fixture(scope="module")
def get(start_mock: Callable) -> Callable[..., HTTPResponse]:
    url = start_mock().url

    def send(path: str, method: str = "GET", **headers: str) -> HTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return urllib.request.urlopen(urllib.request.Request(url.rstrip("/") + path, method=method, headers=named))

    return send


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/app.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
        ("/static/vendor/marked.LICENSE.txt", "text/plain; charset=utf-8"),
    ],
)
def test_a_file_comes_whole_and_guarded(get: Callable, path: str, kind: str) -> None:
    name = path.removeprefix("/static/") if path != "/" else "index.html"
    with get(path) as response:
        assert response.read() == (STATIC / name).read_bytes()
        assert response.headers["content-type"] == kind
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_head_has_the_headers_and_no_body(get: Callable) -> None:
    with get("/") as whole, get("/", method="HEAD") as head:
        assert head.read() == b""
        for name in ("content-length", "content-type", "etag", "content-security-policy"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", {}', "*"])
def test_what_the_browser_has_is_not_sent_again(get: Callable, tags: str) -> None:
    with get("/static/app.js") as response:
        etag = response.headers["etag"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        get("/static/app.js", if_none_match=tags.format(etag))
    with refused.value as answer:
        assert (answer.status, answer.read(), answer.headers["etag"]) == (304, b"", etag)


def test_another_version_is_sent(get: Callable) -> None:
    with get("/static/app.js", if_none_match='"other"') as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/", "/static/../page.py", "/static/%2e%2e/page.py", "/static//etc/passwd"]
)
def test_nothing_else_can_be_had(get: Callable, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(path)
    with refused.value as answer:
        assert answer.status == 404


def test_the_page_is_small() -> None:
    assert sum(len(gzip.compress(file.content)) for file in read_page_files().values()) < 70_000


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_file_is_short_and_loads_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 300
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\w", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []


def test_nothing_is_inline() -> None:
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text) == []


def test_vendored_files_are_those_that_their_authors_published() -> None:
    lines = (STATIC / "vendor" / "SHA256SUMS.txt").read_text().splitlines()
    sums = {name: expected for expected, name in (line.split() for line in lines)}
    files = {path.name for path in (STATIC / "vendor").iterdir()} - {"SHA256SUMS.txt"}
    assert set(sums) == files
    for name, expected in sums.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == expected


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2. colour: #rrggbb."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    """4.5 for text and 3 for what is drawn are WCAG 2's levels AA."""
    blocks = re.findall(r"^:root.*?\{(.*?)^\}", (STATIC / "app.css").read_text(), re.DOTALL | re.MULTILINE)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    for name in ("ink", "ink-2", "ink-3", "alarm"):
        assert min(contrast(colours[name], colours[ground]) for ground in ("paper", "card")) >= 4.5, name
    for name in ("decode", "prefill", "pages", "alarm"):
        assert contrast(colours[name], colours["card"]) >= 3, name
    assert contrast(colours["prefill-ink"], colours["prefill"]) >= 4.5
