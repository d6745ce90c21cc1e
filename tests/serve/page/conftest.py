"""A mock server for the page, and a real browser that looks at it and forgives nothing: no error, no request to anywhere else."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[3]
MOCK = Path(__file__).parent / "mock_server.py"


class Mock:
    """A mock server that runs. url: ends with a slash."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process, self.url = process, url

    def play(self, act: str) -> None:
        """`drop` cuts the feeds of steps, `slow` and `quick` set their pace; any other word becomes the engine's state."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}mock/{act}", method="POST")).close()

    def requests(self) -> int:
        """How many requests the scheduler has, running or waiting."""
        with urllib.request.urlopen(f"{self.url}mock/requests") as response:
            return int(response.read())

    def wait_until_left(self) -> None:
        """Until it has no request any more. Slow answers are longer than this waits, so the page has to have closed them."""
        deadline = time.monotonic() + 30
        while self.requests():
            assert time.monotonic() < deadline, "a request was not closed"
            time.sleep(0.05)
        self.play("quick")


@pytest.fixture(scope="module")
def start_mock() -> Iterator[Callable[..., Mock]]:
    mocks: list[Mock] = []

    def start(*args: str) -> Mock:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, str(MOCK), *args], stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        mocks.append(Mock(process, process.stdout.readline().strip()))
        return mocks[-1]

    yield start
    for mock in mocks:
        mock.process.terminate()
        mock.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def mock(start_mock: Callable[..., Mock]) -> Mock:
    return start_mock()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'sarathi-jax[dev]'")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a chromium on the PATH, or its path in CHROMIUM; Debian and Ubuntu: apt install chromium")
    # Chromium has no sandbox for root, in a container say.
    args = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=args)
        yield launched
        launched.close()


class Watched:
    """What a page must not do. allowed: parts of messages on the console that a test provokes, a refused request say."""

    def __init__(self) -> None:
        self.allowed = ["willReadFrequently"]  # the tests read pixels back, the page does not
        self.problems: list[str] = []

    def watch(self, page: "Page", url: str) -> None:
        page.on(
            "console",
            lambda message: self.problems.append(message.text) if message.type in {"error", "warning"} else None,
        )
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((url, "blob:")) else self.problems.append(request.url),
        )

    def left(self) -> list[str]:
        return [problem for problem in self.problems if not any(part in problem for part in self.allowed)]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watcher = Watched()
    yield watcher
    assert watcher.left() == []


@pytest.fixture
def open_page(browser: "Browser", watched: Watched) -> Iterator[Callable[..., "Page"]]:
    contexts = []

    def open_one(url: str, view: str = "chat", **options: object) -> "Page":
        context = browser.new_context(**options)  # pyright: ignore[reportArgumentType]
        context.set_default_timeout(60_000)  # a machine that runs other tests gives a browser little
        contexts.append(context)
        page = context.new_page()
        watched.watch(page, url)
        page.goto(f"{url}#{view}")
        return page

    yield open_one
    for context in contexts:
        context.close()
