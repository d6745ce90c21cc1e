"""One of two processes, as a program. Process 0 generates golden prompts twice, then the same again and again until a process is lost; it prints JSON lines.
Both compile only what greedy requests need.

    python one_of_two.py '{"options": {...}, "prompts": [[...], ...]}'
"""

import json
import sys
import time
from functools import partial
from typing import Any

from sarathi_jax import LLM, SamplingParams, follow
from sarathi_jax.errors import GroupError
from sarathi_jax.execution import build
from sarathi_jax.execution.buckets import BucketTable, Variant

GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)

LONG = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def lead(options: dict[str, Any], prompts: list[list[int]]) -> None:
    llm = LLM(**options)
    for _ in range(2):
        outputs = llm.generate(prompts, GREEDY)
        metrics = [output.metrics for output in outputs]
        say(
            tokens=[output.outputs[0].token_ids for output in outputs],
            num_prefix_hit_tokens=sum(one.num_prefix_hit_tokens for one in metrics),
            num_preemptions=sum(one.num_preemptions for one in metrics),
        )
    say(is_running=True)
    stream = llm.stream(prompts[0], LONG)
    try:
        while True:
            llm.generate(prompts, GREEDY)
            stream.close()
            stream = llm.stream(prompts[0], LONG)  # outlives what runs beside it
    except GroupError as error:
        say(error=str(error), at=time.time())
    try:
        list(stream)
    except GroupError as error:
        say(error=str(error), at=time.time())
    try:
        llm.generate(prompts, GREEDY)
    except GroupError as error:
        say(error=str(error), at=time.time())


order = json.loads(sys.argv[1])
build.BucketTable = partial(BucketTable, variants=(Variant.GREEDY,))
if order["options"]["process_id"]:
    follow(**order["options"])
else:
    lead(**order)
