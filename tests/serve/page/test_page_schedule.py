"""The schedule view in a browser."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

COUNT_COLOURS = """([wanted, canvas]) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [1, 3, 5].map((start) => parseInt(wanted.slice(start, start + 2), 16));
  let seen = 0;
  for (let at = 0; at < data.length; at += 4) if (data[at] === r && data[at + 1] === g && data[at + 2] === b) seen += 1;
  return seen;
}"""


@pytest.fixture(scope="module")
def busy(start_mock: Callable) -> Any:
    return start_mock("--load", "6", "--budget", "128")


def wait_for_pixels(page: "Page", name: str, count: int) -> None:
    """Until the picture has that many of a colour: what happened may be out of sight already, and happens again."""
    for _ in range(100):
        if pixels(page, name) > count:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the picture has {pixels(page, name)} pixels of {name}")


def pixels(page: "Page", name: str) -> int:
    """How much of the picture has a colour of the theme."""
    colour = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    return page.evaluate(COUNT_COLOURS, [colour, page.query_selector("#picture canvas")])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_steps_are_drawn_as_they_happen(busy: Any, open_page: Callable, scheme: str) -> None:
    page = open_page(busy.url, "schedule", color_scheme=scheme)
    page.wait_for_selector("#headline:has-text('No stream waited')")
    assert page.get_attribute("html", "data-theme") == scheme
    wait_for_pixels(page, "decode", 500)
    wait_for_pixels(page, "prefill", 500)
    assert page.inner_text("#about div:has-text('token budget') dd") == "128"
    page.wait_for_selector("#tbt td:has-text('ms')")
    assert int(page.inner_text("#running")) > 0
    assert page.get_attribute("#pages", "aria-label").endswith(" free")  # pyright: ignore[reportOptionalMemberAccess]
    first = page.inner_text("#inspector-title")
    page.wait_for_function("first => document.getElementById('inspector-title').textContent !== first", arg=first)


def test_the_button_changes_the_colours(busy: Any, open_page: Callable) -> None:
    page = open_page(busy.url, "schedule", color_scheme="light")
    page.wait_for_selector("#headline:has-text('No stream waited')")
    page.get_by_role("button", name="Use dark colours").click()
    assert page.get_attribute("html", "data-theme") == "dark"
    wait_for_pixels(page, "decode", 500)
    page.reload()
    assert page.get_attribute("html", "data-theme") == "dark"


def test_a_step_can_be_looked_into_with_keys_alone(busy: Any, open_page: Callable) -> None:
    page = open_page(busy.url, "schedule")
    page.wait_for_selector("#headline:has-text('No stream waited')")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#inspector-title:has-text('Step')")
    chosen = int(page.inner_text("#headline").removeprefix("Step ").replace(",", ""))
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"#headline:text-is('Step {chosen - 1:,}')")
    said = slider.get_attribute("aria-valuetext")
    assert said is not None
    assert said.startswith(f"step {chosen - 1}: ")
    rows = page.locator("#rows tr").count()
    facts = page.inner_text("#inspector-facts")
    decodes = page.locator("#rows .key.decode").count()
    assert rows >= 1
    assert facts.startswith(f"{decodes} decode + ")
    page.keyboard.press(" ")
    page.wait_for_selector("#pause:text-is('Pause')")
    page.wait_for_selector("#headline:has-text('stream')")


def test_a_click_chooses_the_step_under_it(busy: Any, open_page: Callable) -> None:
    page = open_page(busy.url, "schedule")
    page.wait_for_selector("#headline:has-text('No stream waited')")
    page.get_by_role("slider").press("End")
    page.wait_for_selector("#headline:has-text('Step')")
    newest = int(page.inner_text("#headline").removeprefix("Step ").replace(",", ""))
    box = page.locator("#picture").bounding_box()
    assert box is not None
    for columns in (3, 0):  # from the right edge, 14 pixels in; a column has 12
        page.mouse.click(box["x"] + box["width"] - 14 - 12 * (columns + 0.5), box["y"] + 100)
        page.wait_for_selector(f"#headline:text-is('Step {newest - columns:,}')")
    assert page.evaluate("document.activeElement.id") == "picture"
    page.keyboard.press("Escape")
    page.wait_for_selector("#pause:text-is('Pause')")


def test_the_sample_load_is_sent_and_can_be_stopped(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url, "schedule")
    page.wait_for_selector("#state[data-state=ready]")
    assert page.inner_text("#headline") == "Waiting for the first step"
    page.get_by_role("button", name="Send sample load").click()
    page.wait_for_selector("#headline:has-text('No stream waited while')")
    assert "6 chat requests" in page.inner_text("#load-notice")
    mock.play("slow")
    page.get_by_role("button", name="Stop sample load").click()
    page.get_by_role("button", name="Send sample load").wait_for()
    mock.wait_until_left()


def test_streams_that_are_left_out_are_counted(start_mock: Callable, open_page: Callable) -> None:
    page = open_page(
        start_mock("--policy", "vllm", "--load", "4", "--budget", "2048", "--max-num-seqs", "40").url, "schedule"
    )
    page.wait_for_selector("#headline:has-text('left out')")
    wait_for_pixels(page, "alarm", 0)


def test_a_lost_feed_comes_back_and_states_are_told(start_mock: Callable, open_page: Callable) -> None:
    mock = start_mock("--load", "6", "--budget", "128")
    page = open_page(mock.url, "schedule")
    page.wait_for_selector("#headline:has-text('No stream waited')")
    mock.play("drop")
    page.wait_for_selector("#state[data-state=lost]")
    assert "next try" in page.inner_text("#feed-notice")
    page.wait_for_selector("#state[data-state=ready]")
    mock.play("restarting")
    page.wait_for_selector("#feed-notice:has-text('restarting')")
    mock.play("ready")
    page.wait_for_selector("#feed-notice", state="hidden")
    page.wait_for_timeout(600)
    assert "left out" not in page.inner_text("#headline")  # what was not seen is no stall


def test_the_trace_holds_each_step_once(busy: Any, open_page: Callable, tmp_path: Path) -> None:
    page = open_page(busy.url, "schedule")
    page.wait_for_selector("#headline:has-text('No stream waited')")
    page.click("#pause")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export trace").click()
    download.value.save_as(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    steps = [event["args"]["step"] for event in slices if event["pid"] == 1]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert sum(event["args"]["decode_tokens"] for event in slices if event["pid"] == 1) == sum(
        event["pid"] == 2 and event["name"] == "decode" for event in slices
    )
    for line in {(event["pid"], event["tid"]) for event in slices}:  # slices of a line may not overlap
        on_line = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if (e["pid"], e["tid"]) == line)
        assert all(before[1] <= after[0] for before, after in pairwise(on_line))


@pytest.mark.parametrize("view", ["chat", "schedule"])
def test_a_narrow_window_never_scrolls_sideways(busy: Any, open_page: Callable, view: str) -> None:
    page = open_page(busy.url, view, viewport={"width": 360, "height": 740})
    if view == "schedule":
        page.wait_for_selector("#headline:has-text('No stream waited')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


PHASES = """async (canvas) => {
  const ratio = canvas.width / canvas.clientWidth, seen = new Set();
  for (let frame = 0; frame < 40; frame += 1) {
    await new Promise(requestAnimationFrame);
    const row = canvas.getContext("2d").getImageData(0, Math.round(190 * ratio), canvas.width, 1).data;
    let x = canvas.width - Math.round(15 * ratio);
    while (x > 0 && row[4 * x + 3] !== 0) x -= 1;
    seen.add(x);
  }
  return seen.size;
}"""


@pytest.mark.parametrize(("motion", "glides"), [("reduce", False), ("no-preference", True)])
def test_the_picture_glides_unless_less_motion_is_wanted(
    busy: Any, open_page: Callable, motion: str, glides: bool
) -> None:
    page = open_page(busy.url, "schedule", reduced_motion=motion)
    page.wait_for_selector("#headline:has-text('No stream waited')")
    # Where the newest column begins, over 40 frames: one place, or many on the way.
    places = page.evaluate(PHASES, page.query_selector("#picture canvas"))
    assert (places > 3) == glides
