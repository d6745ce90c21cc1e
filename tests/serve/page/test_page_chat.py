"""The chat view in a browser."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ANSWERED = ".answer:not(.streaming)"


def ask(page: "Page", text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def test_an_answer_streams_and_says_what_it_took(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    text = " ".join(["one", "two", "three", "four"] * 25)
    ask(page, f"echo {text}")
    page.wait_for_selector(".answer.streaming .text:has-text('one')")
    page.wait_for_selector(ANSWERED)
    assert page.inner_text(".answer .text") == text
    facts = page.inner_text(".answer .facts")
    assert "100 tokens" in facts.replace("\n", " ")
    assert "to the first" in facts
    assert "tokens/s" in facts
    assert "12 ms queued" in facts
    assert "preempted 1 time" in facts
    assert "3 late tokens (prefill, host)" in facts
    assert page.text_content("#announcer") == f"The model says: {text}"


def test_the_request_has_what_was_set_and_the_conversation_goes_on(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("System prompt").fill("Be short.")
    ask(page, "echo first")
    page.wait_for_selector(ANSWERED)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "echo second")
    body = sent.value.post_data_json
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "echo first"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "echo second"},
    ]
    assert (body["temperature"], body["seed"], body["top_logprobs"]) == (0.5, 7, 5)
    assert body["stream_options"] == {"include_usage": True}
    assert "max_tokens" not in body
    page.reload()
    assert page.get_by_label("Seed").input_value() == "7"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_answer_can_be_stopped(mock: Any, open_page: Callable, how: str) -> None:
    page = open_page(mock.url)
    mock.play("slow")
    ask(page, "echo " + "word " * 390)
    page.wait_for_selector(".answer .text:has-text('word word')")
    assert mock.requests() == 1
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    page.wait_for_selector(".answer .facts:has-text('stopped')")
    assert page.is_visible("#send")
    mock.wait_until_left()


def test_text_stays_text_and_markdown_loads_nothing(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    ask(
        page,
        "echo <img src=x onerror=alert(1)> **bold** `a<b` [x](javascript:alert(1)) ![i](http://example.com/a.png) <b>raw</b>",
    )
    page.wait_for_selector(ANSWERED)
    assert page.locator(".answer img, .answer a, .answer b:not(.facts b)").count() == 0
    assert page.inner_text(".answer .text strong") == "bold"
    assert page.inner_text(".answer .text code") == "a<b"
    assert "<img src=x onerror=alert(1)>" in page.inner_text(".answer .text")
    page.get_by_label("Format Markdown").uncheck()
    assert "**bold**" in page.inner_text(".answer .text")


def test_the_token_that_ends_an_answer_stands_back(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    page.get_by_label("Colour tokens").check()
    ask(page, "echo red green")
    page.wait_for_selector(ANSWERED)
    assert page.locator(".token.outside").all_inner_texts() == ["<|end|>"]
    assert page.inner_text("#announcer") == "The model says: red green"


def test_tokens_have_colours_and_a_card(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    page.get_by_label("Colour tokens").check()
    ask(page, "echo red green blue")
    page.wait_for_selector(ANSWERED)
    tokens = page.locator(".token:not(.outside)")
    assert [text.strip() for text in tokens.all_inner_texts()] == ["red", "green", "blue"]
    tokens.nth(1).hover()
    card = page.locator("#token-card")
    assert "␣green" in card.inner_text()
    assert "after the token before" in card.inner_text()
    assert card.locator("li").count() == 5
    assert card.locator("li.taken").count() == 1
    page.mouse.move(0, 0)
    assert not card.is_visible()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "␣blue" in card.inner_text()
    assert page.locator(".token[tabindex='0']").all_inner_texts() == [" blue"]  # one stop for Tab, where one was last


def test_an_error_is_shown_as_the_server_words_it(mock: Any, open_page: Callable, watched: Any) -> None:
    watched.allowed.append("status of 400")
    page = open_page(mock.url)
    ask(page, "this is too long")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "The prompt has 4,096 tokens and the model takes 2,048: send a shorter one." in alert.inner_text()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "echo better")
    page.wait_for_selector(ANSWERED + ":has-text('better')")
    # What was never answered is not sent again: roles take turns.
    assert [message["content"] for message in sent.value.post_data_json["messages"]] == ["echo better"]


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(start_mock: Callable, open_page: Callable, watched: Any) -> None:
    watched.allowed.append("status of 401")
    page = open_page(start_mock("--api-key", "secret").url)
    dialog = page.get_by_role("dialog")
    for key in ("wrong", "secret"):
        dialog.get_by_label("API key").fill(key)
        dialog.get_by_label("API key").press("Enter")
        page.wait_for_timeout(300)
    assert not dialog.is_visible()
    assert page.inner_text("#model") == "demo"
    ask(page, "echo hello")
    page.wait_for_selector(ANSWERED + ":has-text('hello')")
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
    assert page.evaluate("sessionStorage.getItem('sarathi-api-key')") == "secret"
    page.click("#tab-schedule")
    page.wait_for_selector("#state[data-state=ready]")


def test_a_server_that_is_gone_is_said_to_be(start_mock: Callable, open_page: Callable, watched: Any) -> None:
    watched.allowed.append("net::ERR")
    mock = start_mock()
    page = open_page(mock.url)
    ask(page, "echo " + "word " * 300)
    page.wait_for_selector(".answer .text:has-text('word word')")
    mock.process.kill()
    page.get_by_role("alert").wait_for()
    assert "broke off" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector('[role=alert]:has-text("can\'t be reached")')


def test_a_new_conversation_begins_with_nothing(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    ask(page, "echo hello")
    page.wait_for_selector(ANSWERED)
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="12+30=").click()
    assert len(sent.value.post_data_json["messages"]) == 1


def test_it_can_be_used_with_keys_alone(mock: Any, open_page: Callable) -> None:
    page = open_page(mock.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-chat"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("echo from the keys")
    page.keyboard.press("Enter")
    page.wait_for_selector(ANSWERED + ":has-text('from the keys')")
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#view-schedule")
    assert page.evaluate("location.hash") == "#schedule"
    assert page.evaluate("document.activeElement.id") == "tab-schedule"
