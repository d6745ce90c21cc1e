"""What single steps of Sarathi-Serve's evaluation cost (arXiv 2403.02310): chunks against whole prompts, prompts in the way of decodes, repeated reads of KV."""

from collections.abc import Iterator
from dataclasses import dataclass

from sarathi_jax.lab.paper_grid import Check
from sarathi_jax.lab.paper_setup import cost_model
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.step_work import ChunkWork, StepWork

# Figure 14: of Yi-34B on two A100s, milliseconds (the artifact's chunking-overhead.csv): prompt tokens -> chunk tokens, 0 being the whole prompt.
MEASURED_MS = {
    2048: {512: 435.7, 1024: 444.2, 2048: 377.7, 0: 378.1},
    4096: {512: 922.0, 1024: 932.3, 2048: 793.9, 0: 775.4},
    8192: {512: 1958.5, 1024: 1946.2, 2048: 1643.4, 0: 1754.2},
}
# Figure 9: contexts and batches of decodes that a prompt of the context's length joins.
CONTEXTS, BATCHES = (1024, 2048, 4096), (1, 32, 64)


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A prompt read in chunks: what it takes, over the whole prompt in one step; ours and as measured; and keys and values read, over the least."""

    num_prompt_tokens: int
    num_chunk_tokens: int
    overhead: float
    measured_overhead: float
    kv_read_ratio: float


@dataclass(frozen=True, slots=True)
class InterferenceRow:
    """A step of decodes joined by a prompt, whole or by a chunk: over the decodes alone."""

    model: str
    num_decodes: int
    context: int
    with_prompt: float
    with_chunk: float


def chunks(num_prompt_tokens: int, num_chunk_tokens: int) -> Iterator[ChunkWork]:
    """A prompt cut up; the last chunk is what is left."""
    for start in range(0, num_prompt_tokens, num_chunk_tokens):
        yield ChunkWork(start, min(num_chunk_tokens, num_prompt_tokens - start))


def chunk_rows() -> list[ChunkRow]:
    """Figure 14."""
    model = cost_model("yi-34b")
    rows: list[ChunkRow] = []
    for num_tokens, measured in MEASURED_MS.items():
        whole_s = _step_s(model, StepWork((ChunkWork(0, num_tokens),)))
        for size in (each for each in measured if each):
            parts = list(chunks(num_tokens, size))
            seconds = sum(_step_s(model, StepWork((part,))) for part in parts)
            read = sum(part.num_keys(None) for part in parts) / num_tokens
            rows.append(ChunkRow(num_tokens, size, seconds / whole_s - 1, measured[size] / measured[0] - 1, read))
    return rows


def interference_rows() -> list[InterferenceRow]:
    """Figure 9a, with its budget of 256 tokens."""
    model = cost_model("mistral-7b")
    rows: list[InterferenceRow] = []
    for context in CONTEXTS:
        for num_decodes in BATCHES:
            decodes = StepWork((), num_decodes, num_decodes * context)
            alone_s = _step_s(model, decodes)
            with_prompt = StepWork((ChunkWork(0, context),), num_decodes, decodes.decode_context)
            # The last chunk of the prompt, which reads all that was before it.
            size = 256 - num_decodes
            with_chunk = StepWork((ChunkWork(context - size, size),), num_decodes, decodes.decode_context)
            ratios = (_step_s(model, each) / alone_s for each in (with_prompt, with_chunk))
            rows.append(InterferenceRow("mistral-7b", num_decodes, context, *ratios))
    return rows


def step_checks(chunked: list[ChunkRow], interfering: list[InterferenceRow]) -> list[Check]:
    """F9, F11, F14, F15."""
    worst = {size: max(row.overhead for row in chunked if row.num_chunk_tokens == size) for size in (512, 2048)}
    prompt = max(row.with_prompt for row in interfering)
    chunk = max(row.with_chunk for row in interfering)
    reads = {row.num_chunk_tokens: row.kv_read_ratio for row in chunked if row.num_prompt_tokens == 8192}
    # N chunks of a prompt: the i-th one's keys and values are read by itself and by those after it, N - i + 1 times in all: (N + 1) / 2 times the prompt.
    wanted_reads = {size: (8192 // size + 1) / 2 for size in reads}
    return [
        Check("F14 chunks of 512 over a whole prompt", "at most 25 % longer", f"{worst[512]:.1%}", worst[512] <= 0.25),
        Check(
            "F14 chunks of 2048 over a whole prompt", "at most 5 % longer", f"{worst[2048]:.1%}", worst[2048] <= 0.05
        ),
        Check("F11 decodes with a whole prompt, over decodes alone", "above 10", f"{prompt:.1f}", prompt > 10),
        Check("F11 decodes with a chunk, over decodes alone", "below 4", f"{chunk:.1f}", chunk < 4),
        Check(
            "F15 keys read of 8,192 tokens by chunks of 512, over the prompt",
            f"{wanted_reads[512]:g}",
            f"{reads[512]:g}",
            reads == wanted_reads,
        ),
        _length_check(),
    ]


def _length_check() -> Check:
    """F9: a step's time does not grow with the prompt it reads, but for attention."""
    model = cost_model("mistral-7b")
    short, long = (_without_attention_s(model, ChunkWork(tokens - 480, 480)) for tokens in (1024, 16384))
    with_attention = _step_s(model, _hybrid(ChunkWork(16384 - 480, 480))) / _step_s(model, _hybrid(ChunkWork(544, 480)))
    name = "F9 the longest step of a 16k prompt over that of a 1k one, attention left out"
    got = f"{long / short:.3f} ({with_attention:.2f} with attention)"
    return Check(name, "1", got, abs(long / short - 1) < 1e-9)


def _hybrid(chunk: ChunkWork) -> StepWork:
    return StepWork((chunk,), 32, 32 * 2048)


def _without_attention_s(model: CostModel, chunk: ChunkWork) -> float:
    cost = model.step(_hybrid(chunk))
    return cost.latency_s - sum(stage.attention_prefill_s + stage.attention_decode_s for stage in cost.stages)


def _step_s(model: CostModel, work: StepWork) -> float:
    return model.step(work).latency_s
