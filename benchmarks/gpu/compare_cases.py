"""The batches that this engine and transformers both generate: pure numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan:
    """Batches of equal requests."""

    batch_sizes: tuple[int, ...]
    num_prompt_tokens: int
    num_output_tokens: int
    num_repeats: int

    def case(self, batch: int) -> str:
        return f"generate {batch}x({self.num_prompt_tokens}+{self.num_output_tokens})"

    def tokens_per_s(self, batch: int, seconds: float) -> float:
        """Output tokens a second, the prompts' time included."""
        return batch * self.num_output_tokens / seconds


FULL = ComparePlan(batch_sizes=(1, 32, 128), num_prompt_tokens=512, num_output_tokens=128, num_repeats=3)
TINY = ComparePlan(batch_sizes=(2,), num_prompt_tokens=8, num_output_tokens=4, num_repeats=1)


def plan_of(*, is_tiny: bool) -> ComparePlan:
    return TINY if is_tiny else FULL
