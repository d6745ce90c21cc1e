"""Several engines as one: where requests go, and that none waits for another's devices."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sarathi_jax.engine.replicas import EngineReplicas
from sarathi_jax.errors import EngineError, RequestError
from sarathi_jax.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, seed=3)
Make = Callable[..., Any]


@pytest.fixture
def make_replicas(make_rig: Make) -> Callable[[int], EngineReplicas]:
    """Engines over fake devices whose steps are done at once."""
    return lambda count, **options: EngineReplicas([make_rig(step_s=0.0).engine for _ in range(count)], **options)


def drain(replicas: EngineReplicas) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    while replicas.has_unfinished:
        outputs |= {event.request_id: event.output for event in replicas.step() if event.output is not None}
    return outputs


def test_each_request_goes_to_the_engine_that_has_the_fewest(make_replicas: Make) -> None:
    replicas = make_replicas(3)
    for _ in range(4):
        replicas.add_request([1, 2, 3], GREEDY)
    assert [each.scheduler.num_waiting for each in replicas.engines] == [2, 1, 1]
    replicas.abort("request-2")
    replicas.add_request([1, 2, 3], GREEDY)
    assert [each.scheduler.num_waiting for each in replicas.engines] == [2, 1, 1]


def test_tokens_do_not_depend_on_where_a_request_runs(make_replicas: Make, expected_tokens: Make) -> None:
    replicas = make_replicas(2)
    prompts = {replicas.add_request([65 + place] * (place + 1), GREEDY): place for place in range(5)}
    outputs = drain(replicas)
    assert outputs.keys() == prompts.keys()
    for request_id, place in prompts.items():
        expected = expected_tokens([65 + place] * (place + 1), 3, 4)
        assert outputs[request_id].outputs[0].token_ids == expected


def test_seeds_are_drawn_in_the_order_of_requests(make_replicas: Make) -> None:
    """So the same requests get the same tokens on any number of engines."""
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    runs = []
    for count in (1, 3):
        replicas = make_replicas(count, seed=5)
        for place in range(4):
            replicas.add_request([65 + place], params)
        runs.append([output.outputs[0].token_ids for _, output in sorted(drain(replicas).items())])
    assert runs[0] == runs[1]


def test_an_engine_that_waits_for_its_device_holds_up_no_other(make_rig: Make) -> None:
    slow, fast = make_rig(step_s=5.0), make_rig(step_s=0.0)
    fast.engine.loop.clock = fast.executor.clock = slow.clock
    replicas = EngineReplicas([slow.engine, fast.engine])
    slow_id, fast_id = (replicas.add_request([65, 66], GREEDY) for _ in range(2))
    outputs: dict[str, Any] = {}
    while fast_id not in outputs:
        outputs |= {event.request_id: event.output for event in replicas.step() if event.output is not None}
    assert slow_id not in outputs
    slow.clock.advance(5.0)
    assert slow.engine.step(does_wait=False), "its first token is there now"


def test_an_id_in_use_is_refused_wherever_its_request_is(make_replicas: Make) -> None:
    replicas = make_replicas(2)
    replicas.add_request([1], GREEDY, request_id="mine")
    with pytest.raises(RequestError, match="request_id='mine' is in use by a request that has not ended"):
        replicas.add_request([1], GREEDY, request_id="mine")
    drain(replicas)
    assert replicas.add_request([1], GREEDY, request_id="mine") == "mine"


def test_an_id_that_is_made_up_is_nobody_elses(make_replicas: Make) -> None:
    replicas = make_replicas(2)
    assert replicas.add_request([1], GREEDY, request_id="request-0") == "request-0"
    assert replicas.add_request([1], GREEDY) == "request-1"


def test_what_others_brought_when_one_engine_failed_comes_with_the_next_turn(make_rig: Make) -> None:
    good, bad = make_rig(step_s=0.0), make_rig(step_s=0.0)
    bad.executor.failing_steps = set(range(100))
    replicas = EngineReplicas([good.engine, bad.engine])
    kept = replicas.add_request([65], replace(GREEDY, max_tokens=20))
    replicas.add_request([66], GREEDY)
    bad.engine.add_request([67], GREEDY)  # with one alone it might be that one's fault
    tokens: list[int] = []
    num_raised = 0
    for _ in range(60):
        try:
            tokens += [token for event in replicas.step() if event.request_id == kept for token in event.token_ids]
        except EngineError:
            num_raised += 1
    assert num_raised > 0
    assert len(tokens) == 20


def test_an_abort_ends_the_request_and_an_unknown_one_is_no_error(make_replicas: Make) -> None:
    replicas = make_replicas(2)
    request_id = replicas.add_request([1], GREEDY)
    (event,) = replicas.abort(request_id)
    assert (event.finish_reason, replicas.abort(request_id), replicas.has_unfinished) == ("abort", [], False)


def test_records_of_all_are_in_one_place_and_say_whose_they_are(make_rig: Make) -> None:
    engines = [make_rig(step_s=0.0).engine for _ in range(2)]
    engines[1].loop.replica = 1
    replicas = EngineReplicas(engines)
    for _ in range(2):
        replicas.add_request([1], GREEDY)
    drain(replicas)
    assert {record.replica for record in replicas.records} == {0, 1}
