"""Takes the pictures of the page in docs/images, of the mock server: `python tests/serve/page/take_pictures.py`. Needs playwright and a chromium."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
IMAGES = HERE.parents[2] / "docs" / "images"
QUESTION = "Why are prompts split into chunks?"


def chat(page: Page) -> None:
    page.get_by_label("Colour tokens").check()
    page.fill("#prompt", QUESTION)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".answer:not(.streaming)", timeout=30000)
    page.locator(".token:has-text('chunk')").last.hover()


def formatted_chat(page: Page) -> None:
    page.fill("#prompt", QUESTION)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".answer:not(.streaming)", timeout=30000)


def schedule(page: Page) -> None:
    """Waits for prompts among decodes, and stops."""
    page.wait_for_timeout(6000)
    page.wait_for_function(
        "() => document.querySelectorAll('#rows .key.prefill').length > 0 && document.querySelectorAll('#rows .key.decode').length > 5"
    )
    page.wait_for_timeout(700)


def take(
    browser: Browser,
    name: str,
    view: str,
    scheme: str,
    act: Callable[[Page], None],
    load: tuple[str, ...],
    size: tuple[int, int] = (1280, 860),
) -> None:
    server = subprocess.Popen([sys.executable, str(HERE / "mock_server.py"), *load], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})  # pyright: ignore[reportArgumentType]
    page = context.new_page()
    page.goto(f"{server.stdout.readline().strip()}#{view}")
    act(page)
    page.screenshot(path=IMAGES / f"page-{name}.png")
    context.close()
    server.terminate()
    server.wait()


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    args = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    busy = ("--load", "4", "--budget", "128", "--num-pages", "420")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=args)
        take(browser, "chat-light", "chat", "light", chat, ("--load", "1"))
        take(browser, "chat-dark", "chat", "dark", formatted_chat, ("--load", "1"))
        take(browser, "schedule-light", "schedule", "light", schedule, busy, (1280, 930))
        take(browser, "schedule-dark", "schedule", "dark", schedule, busy, (1280, 930))
        stalls = ("--policy", "vllm", "--load", "3", "--budget", "2048")
        take(
            browser,
            "schedule-stalls",
            "schedule",
            "light",
            lambda page: page.wait_for_timeout(9000),
            stalls,
            (1280, 760),
        )
        take(browser, "narrow", "schedule", "dark", schedule, busy, (390, 844))


if __name__ == "__main__":
    main()
