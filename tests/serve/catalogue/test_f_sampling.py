"""Group F of the catalogue: sampling parameters.

B-F01: a request may have 64 samples in all (--max-samples), and a body may never ask for more than 128.
B-F09: at most 300 entries. B-F17: there is no such field.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = [COMPLETIONS, CHAT]
pytestmark = pytest.mark.usefixtures("unharmed")

BELOW, ABOVE = "400 integer_below_min_value", "400 integer_above_max_value"
LOW, HIGH = "400 decimal_below_min_value", "400 decimal_above_max_value"
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("B-F01", {"n": 0}, f"{BELOW} n"),
    ("B-F01", {"n": -1}, f"{BELOW} n"),
    ("B-F01", {"n": 64}, "200"),
    ("B-F01", {"n": 65}, f"{ABOVE} n"),
    ("B-F01", {"n": 129}, f"{ABOVE} n"),
    ("B-F01", {"n": 10**18}, f"{ABOVE} n"),
    ("B-F01", {"n": 10**400}, f"{ABOVE} n"),
    ("B-F01", {"n": 1.5}, "400 invalid_type n"),
    ("B-F02", {"max_tokens": 0}, f"{BELOW} max_tokens"),
    ("B-F02", {"max_tokens": -1}, f"{BELOW} max_tokens"),
    ("B-F02", {"max_tokens": 2**63}, f"{ABOVE} max_tokens"),
    ("B-F02", {"max_tokens": 10**400}, f"{ABOVE} max_tokens"),
    ("B-F03", {"max_tokens": 2**63 - 1}, "400 context_length_exceeded max_tokens"),
    ("B-F03", {"max_tokens": 2048}, "400 context_length_exceeded max_tokens"),
    ("B-F04", {"temperature": -0.1}, f"{LOW} temperature"),
    ("B-F04", {"temperature": -1}, f"{LOW} temperature"),
    ("B-F04", {"temperature": 2.1}, f"{HIGH} temperature"),
    ("B-F04", {"temperature": float("nan")}, "400 invalid_json -"),
    ("B-F04", {"temperature": float("inf")}, "400 invalid_json -"),
    ("B-F04", {"temperature": 1e-320}, "200"),
    ("B-F04", {"temperature": 1e-8}, "200"),
    ("B-F04", {"temperature": 2}, "200"),
    ("B-F05", {"top_p": 0}, f"{LOW} top_p"),
    ("B-F05", {"top_p": -1}, f"{LOW} top_p"),
    ("B-F05", {"top_p": 1.0001}, f"{HIGH} top_p"),
    ("B-F05", {"top_p": 1e-300}, "200"),
    ("B-F05", {"min_p": -0.1}, f"{LOW} min_p"),
    ("B-F05", {"min_p": 1.1}, f"{HIGH} min_p"),
    ("B-F06", {"top_k": -2}, f"{BELOW} top_k"),
    ("B-F06", {"top_k": -1}, "200"),
    ("B-F06", {"top_k": 0}, "200"),
    ("B-F06", {"top_k": 513}, "200"),
    ("B-F06", {"top_k": 2**40}, "200"),
    ("B-F06", {"top_k": 2**63}, f"{ABOVE} top_k"),
    ("B-F07", {"presence_penalty": 2.0001}, f"{HIGH} presence_penalty"),
    ("B-F07", {"presence_penalty": -2.0001}, f"{LOW} presence_penalty"),
    ("B-F07", {"frequency_penalty": 2.0001}, f"{HIGH} frequency_penalty"),
    ("B-F07", {"frequency_penalty": -2.0001}, f"{LOW} frequency_penalty"),
    ("B-F07", {"repetition_penalty": 0}, f"{LOW} repetition_penalty"),
    ("B-F08", {"seed": -1}, "200"),
    ("B-F08", {"seed": -(2**63)}, "200"),
    ("B-F08", {"seed": 2**63 - 1}, "200"),
    ("B-F08", {"seed": 2**63}, f"{ABOVE} seed"),
    ("B-F08", {"seed": 2**64}, f"{ABOVE} seed"),
    ("B-F08", {"seed": -(2**63) - 1}, f"{BELOW} seed"),
    ("B-F08", {"seed": 1.5}, "400 invalid_type seed"),
    *(
        ("B-F09", {"logit_bias": {key: 1.0}}, "400 invalid_value logit_bias")
        for key in ("abc", "", " 7_0 ", "7_0", "１２", "-1", "512", "1e2", "99999999999999999999")
    ),
    ("B-F09", {"logit_bias": {"7": 100.5}}, f"{HIGH} logit_bias.7"),
    ("B-F09", {"logit_bias": {"7": "1"}}, "400 invalid_type logit_bias.7"),
    ("B-F09", {"logit_bias": [7]}, "400 invalid_type logit_bias"),
    ("B-F09", {"logit_bias": {str(token_id): 1.0 for token_id in range(301)}}, "400 array_above_max_length logit_bias"),
    ("B-F09", {"logit_bias": {str(token_id): 1.0 for token_id in range(20_000)}}, "400 invalid_json -"),
    ("B-F11", {"stop": ""}, "400 invalid_value stop"),
    ("B-F11", {"stop": [""]}, "400 invalid_value stop[0]"),
    ("B-F11", {"stop": ["a", "b", "c", "d", "e"]}, "400 array_above_max_length stop"),
    ("B-F11", {"stop": "x" * 10**5}, "400 string_above_max_length stop"),
    ("B-F11", {"stop": ["x" * 1025]}, "400 string_above_max_length stop[0]"),
    ("B-F11", {"stop": [5]}, "400 invalid_type stop[0]"),
    ("B-F11", {"stop": "never to be seen"}, "200"),
    ("B-F11", {"stop": "\ud800"}, "400 invalid_json -"),
    ("B-F11", {"stop_token_ids": list(range(33))}, "400 array_above_max_length stop_token_ids"),
    ("B-F11", {"stop_token_ids": [512]}, "400 invalid_value stop_token_ids"),
    ("B-F11", {"stop_token_ids": [-1]}, f"{BELOW} stop_token_ids[0]"),
    ("B-F13", {"min_tokens": 5, "max_tokens": 4}, "400 invalid_value min_tokens"),
    ("B-F13", {"min_tokens": -1}, f"{BELOW} min_tokens"),
    *(
        ("B-F16", {"cache_salt": salt}, "400 invalid_value cache_salt")
        for salt in ("", "x" * 65, "x" * 10_000, "../", "a b", "é", "a\n")
    ),
    ("B-F16", {"cache_salt": "a-Z.0_9"}, "200"),
    ("B-F03", {"priority": 2**63}, f"{ABOVE} priority"),
    ("B-F03", {"priority": 2**70}, f"{ABOVE} priority"),
    ("B-F03", {"priority": -(2**63) - 1}, f"{BELOW} priority"),
    ("B-F03", {"priority": 1.5}, "400 invalid_type priority"),
    ("B-F03", {"priority": 1.0}, "400 invalid_type priority"),
    ("B-F03", {"priority": "high"}, "400 invalid_type priority"),
    ("B-F03", {"priority": True}, "400 invalid_type priority"),
    ("B-F03", {"priority": -(2**63)}, "200"),
    ("B-F03", {"priority": 2**63 - 1}, "200"),
    ("B-F03", {"priority": None}, "200"),
    ("B-F17", {"thinking_token_budget": -5}, "400 unknown_parameter thinking_token_budget"),
    ("B-F17", {"thinking_token_budget": 5}, "400 unknown_parameter thinking_token_budget"),
    ("B-C08", {"\ud800": 5}, "400 invalid_json -"),
]
OF_CHATS: list[tuple[str, dict[str, Any], str]] = [
    ("B-F02", {"max_tokens": ..., "max_completion_tokens": 0}, f"{BELOW} max_completion_tokens"),
    ("B-F02", {"max_tokens": 4, "max_completion_tokens": 4}, "200"),
    ("B-F02", {"max_tokens": 4, "max_completion_tokens": 5}, "400 invalid_value -"),
    ("B-F12", {"logprobs": True, "top_logprobs": 20}, "200"),
    ("B-F12", {"logprobs": True, "top_logprobs": 21}, f"{ABOVE} top_logprobs"),
    ("B-F12", {"logprobs": True, "top_logprobs": -1}, f"{BELOW} top_logprobs"),
    ("B-F12", {"top_logprobs": 1}, "400 invalid_value -"),
    ("B-F12", {"logprobs": 3}, "400 invalid_type logprobs"),
]
OF_COMPLETIONS: list[tuple[str, dict[str, Any], str]] = [
    ("B-F12", {"logprobs": 5}, "200"),
    ("B-F12", {"logprobs": 6}, f"{ABOVE} logprobs"),
    ("B-F12", {"logprobs": 10**9}, f"{ABOVE} logprobs"),
    ("B-F12", {"logprobs": -1}, f"{BELOW} logprobs"),
    ("B-F12", {"logprobs": True}, "400 invalid_type logprobs"),
    ("B-F01", {"prompt": ["a", "b"], "n": 33}, f"{ABOVE} n"),
    ("B-F01", {"best_of": 2}, "400 invalid_value -"),
]
ALL = [
    *((CHAT, case) for case in (*CASES, *OF_CHATS)),
    *((COMPLETIONS, case) for case in (*CASES, *OF_COMPLETIONS)),
]


@pytest.mark.parametrize(("path", "case"), ALL)
def test_a_parameter(server: Any, ask: Any, judge: Any, path: str, case: Any) -> None:
    judge(ask(server, path, case[1]), case[2])


def test_others_do_not_notice(server: Any, ask: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for path, (_, changes, expected) in ALL:
            if changes.get("n") != 64:
                judge(ask(server, path, {**changes, "stream": None}), expected)


def test_no_tokens_at_all_means_all_there_is_room_for(server: Any) -> None:
    """B-F02, B-F14: `null` is no number; without an end it goes on to the model's length."""
    answer = server.complete([7] * 2000, max_tokens=None, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 48
    assert answer["choices"][0]["finish_reason"] == "length"


def test_an_endless_output_ends_at_its_deadline(server: Any, ask: Any, judge: Any) -> None:
    """B-F14"""
    changes = {"max_tokens": None, "ignore_eos": True, "deadline_ms": 300}
    judge(ask(server, COMPLETIONS, changes), "504 deadline_exceeded -")


def test_the_same_seed_says_the_same(server: Any) -> None:
    """B-F08: also a negative one."""
    fields = {"max_tokens": 16, "temperature": 1.0, "ignore_eos": True}
    texts = {seed: server.complete(seed=seed, **fields)["choices"][0]["text"] for seed in (-1, 1, 2)}
    assert len(set(texts.values())) == 3
    for seed, text in texts.items():
        assert server.complete(seed=seed, **fields)["choices"][0]["text"] == text


def test_texts_are_cut_where_a_stop_string_begins(serving: Any, well: Any) -> None:
    """B-F11: wherever tokens and characters end; what is said is known, so that the cut is."""
    said = "plain words, naïve 日本語 and \U0001f642\U0001f680 then the end"
    server = serving(engine={"says": said})
    assert server.complete(max_tokens=200)["choices"][0]["text"] == said
    for stop in ("words, n", "ï", "本", "語 and", "\U0001f680", "\U0001f642\U0001f680", "d", "the end", " "):
        choice = server.complete(max_tokens=200, stop=[stop, "never"])["choices"][0]
        assert choice["text"] == said[: said.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        body = {"model": "demo", "prompt": "a", "max_tokens": 200, "stop": stop}
        events = server.stream(COMPLETIONS, body)
        assert "".join(event["choices"][0]["text"] for event in events) == said[: said.index(stop)]
    well(server)


VALUES: dict[str, list[Any]] = {
    "n": [None, 1, 2, 3, 0, 65],
    "temperature": [None, 0, 1e-320, 1, 2, 2.1, -1],
    "top_p": [None, 1e-300, 0.5, 1, 0],
    "top_k": [None, -1, 0, 1, 10**6, -2],
    "min_p": [None, 0, 0.5, 1],
    "presence_penalty": [None, -2, 2, 3],
    "frequency_penalty": [None, -2, 2],
    "repetition_penalty": [None, 0.5, 2, 0],
    "seed": [None, 0, -1, 2**63 - 1, 2**63],
    "logit_bias": [None, {}, {"5": 1}, {"x": 1}, {"600": 1}],
    "allowed_token_ids": [None, [5, 6], [], [600]],
    "stop": [None, [], "a", ["a", "b"], ""],
    "stop_token_ids": [None, [], [5], [600]],
    "min_tokens": [None, 0, 2, 100],
    "max_tokens": [None, 1, 8, 0, 5000],
    "ignore_eos": [None, True, False],
    "logprobs": [None, 0, 5, 6],
    "prompt_logprobs": [None, 0, 3, 21],
    "echo": [None, True],
    "return_token_ids": [None, True],
    "return_tokens_as_token_ids": [None, True],
    "include_stop_str_in_output": [None, True],
    "skip_special_tokens": [None, True, False],
    "stream": [None, False, True],
    "stream_options": [None, {"include_usage": True}, {"continuous_usage_stats": True}],
    "priority": [None, -5, 5, 2**63],
    "slo_class": [None, "batch", "urgent"],
    "timing": [None, True],
}


def combination(chooser: random.Random) -> dict[str, Any]:
    """Several fields at once; most of them say nothing, so that every second body is good."""
    names = chooser.sample(sorted(VALUES), 6)
    return {"prompt": "ab", "max_tokens": 5} | {name: chooser.choice(VALUES[name]) for name in names}


def run_combinations(server: Any, ask: Any, num: int, seed: int) -> None:
    """B-F15, G-33: any combination is served or refused."""
    chooser = random.Random(seed)

    def run(changes: dict[str, Any]) -> int:
        answer = ask(server, COMPLETIONS, {"max_tokens": 5, **changes})
        assert answer.status_code in (200, 400), (changes, answer.text)
        assert answer.status_code == 200 or answer.json()["error"]["code"], changes
        return answer.status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(run, [combination(chooser) for _ in range(num)]))
    assert statuses.count(200) > num / 20
    assert statuses.count(400) > num / 20


def test_combinations(server: Any, ask: Any) -> None:
    run_combinations(server, ask, 200, seed=1)


@pytest.mark.nightly
def test_many_combinations(server: Any, ask: Any) -> None:
    run_combinations(server, ask, 20_000, seed=2)
