"""Say what happened to one request of a recorded run, and for each late token why: whose prompt, which preemption, which bucket, the host, a compile, a failure.

RECORD is a flight record (docs/flight-recorder.md), REQUEST an id in it, or # and its number there. Times are seconds from the request's arrival. The
causes of a gap add up to it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.cli.options import Parser, UsageError

if TYPE_CHECKING:
    from sarathi_jax.engine.explain import Cause, Explanation, LateToken
    from sarathi_jax.engine.queue_wait import QueueReason

EXAMPLES = """  sarathi-jax explain run.jsonl.gz request-7
  sarathi-jax explain run.jsonl.gz request-7 --slo-ms 100
  sarathi-jax explain run.jsonl.gz '#12' --json"""

MAX_NAMED_STEPS = 4
QUEUE_TEXT = {
    "loop": "until the next step was planned",
    "slots": "as many requests ran as may{by}",
    "budget": "steps were full{by}",
    "preemption": "pages had run out: a preemption{by}",
    "behind": "behind{by}",
    "pages": "no room for the prompt among the free pages",
    "leader": "until the prompt was read{by}",
    "policy": "the policy admitted nobody",
    "unrecorded": "before the record begins",
}
CAUSE_TEXT = {
    "decode": "decodes, its own among them, in {steps}",
    "prefill": "prompt of {by}, beside it: {tokens} in {steps}",
    "padding": "padding: {tokens} in {steps}",
    "prompt": "its own prompt: {tokens} in {steps}",
    "recompute": "computed again: {tokens} in {steps}",
    "stall": "left out of {steps}, which read the prompt of {by}: {tokens}",
    "pipeline": "other microbatches: {steps}",
    "preempted": "waited, its pages taken{by}: {steps}",
    "before": "what was under way when it was admitted: {steps}",
    "failed": "failed: {steps}",
    "host": "the host, between steps: {steps}",
    "compile": "compiling {detail}: {steps}",
    "slow": "slower than is usual for {detail}: {steps}",
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("record", metavar="RECORD", type=Path, help="what a flight recorder wrote")
    parser.add_argument("request", metavar="REQUEST", help="a request's id, or # and its number in the record")
    parser.add_argument(
        "--slo-ms",
        type=float,
        metavar="X",
        help="tokens that come later than this after the one before are late (default: twice the median)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import msgspec  # here: reading records needs it, help does not

    from sarathi_jax.engine.explain import explain
    from sarathi_jax.engine.flight_record import read_record

    if args.slo_ms is not None and not args.slo_ms > 0:
        raise UsageError(f"--slo-ms must be above 0, got {args.slo_ms}: pass a positive number.")
    found = explain(read_record(args.record), args.request, None if args.slo_ms is None else args.slo_ms / 1e3)
    print(msgspec.json.encode(found).decode() if args.json else describe(found))
    return 0


def describe(found: "Explanation") -> str:
    """All of it, in lines for people."""
    zero_s = found.arrival_s
    hits = f" ({found.num_prefix_hit_tokens} of them from the prefix cache)" if found.num_prefix_hit_tokens else ""
    lines = [
        f"{found.request}: {_count(found.num_prompt_tokens, 'prompt token')}{hits}, {found.num_tokens} tokens of output"
    ]
    lines.append("    0.000 s  arrived" + ("" if found.is_whole else ", before the record begins"))
    lines += [f"             {reason.seconds:8.3f} s  {_queue_line(reason)}" for reason in found.queue]
    if found.first_planned_s is not None:
        lines.append(f"{found.first_planned_s - zero_s:9.3f} s  admitted")
    if found.first_token is not None:
        lines.append(
            f"{found.first_token.at_s - zero_s:9.3f} s  first token, {found.first_token.gap_s:.3f} s after that"
        )
        lines += _cause_lines(found.first_token)
    if found.end_s is not None:
        preempted = f", after {_count(found.num_preemptions, 'preemption')}" if found.num_preemptions else ""
        lines.append(f"{found.end_s - zero_s:9.3f} s  ended: {found.end}{preempted}")
    return "\n".join([*lines, *_chunk_lines(found), *_gap_lines(found)])


def _chunk_lines(found: "Explanation") -> list[str]:
    lines = ["chunks: step, planned, done, tokens, bucket"] if found.chunks else []
    for chunk in found.chunks:
        done = "under way" if chunk.end_s is None else f"{chunk.end_s - found.arrival_s:.3f} s"
        span = f"{chunk.start} to {chunk.start + chunk.num_tokens - 1}"
        beside = f", with {_count(chunk.num_beside, 'other row')}" if chunk.num_beside else ""
        lines.append(
            f"  {chunk.step:6}  {chunk.start_s - found.arrival_s:8.3f} s  {done:>10}  {span}  {chunk.bucket}{beside}"
        )
    return lines


def _gap_lines(found: "Explanation") -> list[str]:
    if found.median_gap_s is None or found.max_gap_s is None:
        return []
    rule = "" if found.is_limit_given else ", twice the median of the record"
    lines = [
        f"time between tokens: median {found.median_gap_s:.3f} s, longest {found.max_gap_s:.3f} s;"
        f" {len(found.late)} over {found.limit_s:.3f} s{rule}"
    ]
    for token in found.late:
        at_s = token.at_s - found.arrival_s
        lines.append(f"  token {token.number} at {at_s:.3f} s, {token.gap_s:.3f} s after the one before")
        lines += _cause_lines(token)
    return lines


def _cause_lines(token: "LateToken") -> list[str]:
    return [f"             {cause.seconds:8.3f} s  {_cause_line(cause)}" for cause in token.causes]


def _queue_line(reason: "QueueReason") -> str:
    names = ", ".join(reason.requests)
    by = {"behind": f" {names}", "budget": f", with the prompt of {names}", "slots": f": {names}"}
    by |= {"preemption": f" of {names}", "leader": f" by {names}"}
    return QUEUE_TEXT[reason.kind].format(by=by.get(reason.kind, "") if names else "")


def _cause_line(cause: "Cause") -> str:
    names = ", ".join(cause.requests)
    if cause.kind == "stall" and not names:
        return f"left out of {_steps(cause)}, of decodes alone"
    by = f" for {names}" if cause.kind == "preempted" and names else names
    return CAUSE_TEXT[cause.kind].format(
        by=by, tokens=_count(cause.num_tokens, "token"), steps=_steps(cause), detail=cause.detail
    )


def _steps(cause: "Cause") -> str:
    """ "step 3", "steps 3, 4, 8", "steps 3 to 9", or "7 steps from 3 to 12"."""
    steps = cause.steps
    if len(steps) <= MAX_NAMED_STEPS:
        return f"step{'' if len(steps) == 1 else 's'} {', '.join(map(str, steps))}"
    if steps[-1] - steps[0] == len(steps) - 1:
        return f"steps {steps[0]} to {steps[-1]}"
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
