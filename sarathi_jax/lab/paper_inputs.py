"""What Sarathi-Serve's evaluation rests on (arXiv 2403.02310): lengths as its table 2 prints them, and decode latencies over two hosts, its figure 13a."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarathi_jax.lab.paper_grid import Check
from sarathi_jax.lab.paper_setup import cost_model, load
from sarathi_jax.simulation.step_work import decode_work

# Median, 90th percentile, standard deviation. The table has the outputs' deviations in each other's row: the chat trace, which is public, says which is whose.
TABLE_2 = {
    ("sharegpt", "prompt"): (1730, 5696, 2088),
    ("sharegpt", "output"): (415, 834, 266),
    ("arxiv", "prompt"): (7059, 12985, 3638),
    ("arxiv", "output"): (208, 371, 101),
}
NUM_DRAWN = 20_000
LENGTH_TOLERANCE = 0.02
DECODE_BATCHES, DECODE_CONTEXT = (8, 32, 128), 2048


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Tokens: median, 90th percentile and standard deviation of what is drawn, and of the paper's."""

    lengths: str
    part: str
    drawn: tuple[float, float, float]
    printed: tuple[float, float, float]

    @property
    def error(self) -> float:
        """The largest, as a share."""
        return max(abs(got / wanted - 1) for got, wanted in zip(self.drawn, self.printed, strict=True))


@dataclass(frozen=True, slots=True)
class LayoutRow:
    """Time between tokens of Falcon-180B's decodes alone, on eight GPUs of two hosts: cut over all of them, or over four and two stages, half of the batch in each."""

    batch: int
    tensor_s: float
    stages_s: float


def length_rows() -> list[LengthRow]:
    """Table 2."""
    rows: list[LengthRow] = []
    for (lengths, part), printed in TABLE_2.items():
        shapes = load(lengths, NUM_DRAWN)
        tokens = [each.num_prompt_tokens if part == "prompt" else each.num_output_tokens for each in shapes]
        drawn = float(np.median(tokens)), float(np.quantile(tokens, 0.9)), float(np.std(tokens))
        rows.append(LengthRow(lengths, part, drawn, printed))
    return rows


def layout_rows() -> list[LayoutRow]:
    """Figure 13a."""
    tensor, stages = cost_model("falcon-180b", tensor=8, stage=1), cost_model("falcon-180b")
    return [
        LayoutRow(
            batch,
            tensor.step(decode_work(batch, DECODE_CONTEXT)).latency_s,
            stages.step(decode_work(batch // 2, DECODE_CONTEXT)).latency_s,
        )
        for batch in DECODE_BATCHES
    ]


def input_checks(lengths: Sequence[LengthRow], layouts: Sequence[LayoutRow]) -> list[Check]:
    """F28, F24."""
    checks = [
        Check(
            f"F28 {row.lengths} {row.part}: median, P90, deviation, in tokens",
            f"{', '.join(f'{each:g}' for each in row.printed)} within {LENGTH_TOLERANCE:.0%}",
            ", ".join(f"{each:.0f}" for each in row.drawn),
            row.error <= LENGTH_TOLERANCE,
        )
        for row in lengths
    ]
    ratios = [row.tensor_s / row.stages_s for row in layouts]
    name = "F24 falcon-180b, decode latency of tensor=8 over that of tensor=4,stage=2, at batches of 8, 32, 128"
    got = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [*checks, Check(name, "at least 2 each", got, min(ratios) >= 2)]
