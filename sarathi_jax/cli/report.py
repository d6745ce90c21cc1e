"""What the engine did, from its step records and its compile ledger: as numbers for --json and as a few lines for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarathi_jax.engine.records import StepRecord
    from sarathi_jax.execution.compile_ledger import CompileLedger


@dataclass(frozen=True, slots=True)
class StepMix:
    """Sums over steps. `duration_s` runs from the first step's start to the last one's end, idle time included; `bucket_fill` is the share of the
    buckets' tokens that were real."""

    num_steps: int
    num_decode_only: int
    num_prefill_only: int
    num_hybrid: int
    num_decode_tokens: int
    num_prefill_tokens: int
    num_preemptions: int
    duration_s: float
    bucket_fill: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens that went through the model, prompts' and outputs'."""
        return (self.num_decode_tokens + self.num_prefill_tokens) / self.duration_s if self.duration_s else 0.0


def step_mix(records: "Sequence[StepRecord]") -> StepMix:
    """Of all steps, in the order they ran."""
    decode = [record.num_decode_tokens for record in records]
    prefill = [record.num_prefill_tokens for record in records]
    num_bucket_tokens = sum(record.bucket.num_tokens for record in records)
    return StepMix(
        num_steps=len(records),
        num_decode_only=sum(not tokens for tokens in prefill),
        num_prefill_only=sum(not tokens for tokens in decode),
        num_hybrid=sum(bool(d and p) for d, p in zip(decode, prefill, strict=True)),
        num_decode_tokens=sum(decode),
        num_prefill_tokens=sum(prefill),
        num_preemptions=sum(record.num_preemptions for record in records),
        duration_s=records[-1].end_s - records[0].start_s if records else 0.0,
        bucket_fill=(sum(decode) + sum(prefill)) / num_bucket_tokens if num_bucket_tokens else 0.0,
    )


def compile_report(ledger: "CompileLedger") -> dict[str, Any]:
    """Programs, how many of them the persistent cache had, seconds summed over programs (they compile side by side), and those after ready."""
    entries = list(ledger.entries)
    return {
        "num_programs": len(entries),
        "num_cache_hits": sum(entry.is_cache_hit for entry in entries),
        "seconds": sum(entry.seconds for entry in entries),
        "num_after_ready": ledger.num_after_ready,
    }


def run_report(records: "Sequence[StepRecord]", ledger: "CompileLedger") -> dict[str, Any]:
    """Both, as JSON."""
    mix = step_mix(records)
    return {"steps": asdict(mix) | {"tokens_per_s": mix.tokens_per_s}, "compiles": compile_report(ledger)}


def describe_run(records: "Sequence[StepRecord]", ledger: "CompileLedger") -> str:
    """Both, in three lines of text."""
    mix, compiles = step_mix(records), compile_report(ledger)
    return "\n".join(
        [
            f"steps     {mix.num_steps} in {mix.duration_s:.3f} s: {mix.num_prefill_only} prefill only, "
            f"{mix.num_hybrid} hybrid, {mix.num_decode_only} decode only; {mix.num_preemptions} preemptions",
            f"tokens    {mix.num_prefill_tokens} prefill + {mix.num_decode_tokens} decode = {mix.tokens_per_s:.0f} tokens/s; "
            f"{mix.bucket_fill:.0%} of the buckets' tokens were real",
            f"compiles  {compiles['num_programs']} programs, {compiles['num_cache_hits']} of them from the cache, "
            f"{compiles['seconds']:.1f} s of compiling; {compiles['num_after_ready']} after ready",
        ]
    )
