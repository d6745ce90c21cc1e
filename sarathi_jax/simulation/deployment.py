"""An engine on hardware, as the simulator runs it: what prices its steps, and the numbers of its scheduler."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sarathi_jax.errors import CapacityError
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.pipelines import Pipeline, StagesInLockStep, StagesInSeries

type PolicyMaker = Callable[[], Policy]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What `simulate` needs to know. Fields that are the engine's too mean the same there.

    policy: the name of one, or a function that makes one (a policy may learn, so each run gets its own).
    memory_fraction: of all of a device's memory. temp_bytes: of it, for what steps need besides weights and KV.
    has_lock_step: whether stages tick together, as this engine's do, or run in series, as Sarathi-Serve's.
    is_overlapped: whether the next step is scheduled while the device runs this one.
    """

    cost_model: CostModel
    max_model_len: int
    policy: str | PolicyMaker = "sarathi"
    token_budget: int = 512
    max_num_seqs: int = 128
    page_size: int = 16
    memory_fraction: float = 0.9
    temp_bytes: int = 0
    is_prefix_caching: bool = False
    is_overlapped: bool = True
    has_lock_step: bool = True
    watermark: float = 0.01
    num_pages: int = field(init=False)

    def __post_init__(self) -> None:
        num_pages = self.cost_model.kv_tokens(self.memory_fraction, self.temp_bytes) // self.page_size
        if num_pages * self.page_size < self.max_model_len:
            model = self.cost_model
            raise CapacityError(
                f"A device must hold weights and the KV of one request, got {model.device.memory_bytes * self.memory_fraction / 1e9:.1f} GB of memory to"
                f" use, {model.weight_bytes / 1e9:.1f} GB of weights and {max(num_pages, 0) * self.page_size} of {self.max_model_len} tokens: use more"
                " devices, or a smaller max_model_len."
            )
        object.__setattr__(self, "num_pages", num_pages)

    @property
    def num_stages(self) -> int:
        return self.cost_model.placement.stage

    def scheduler(self) -> Scheduler:
        """A new one, the production scheduler."""
        return Scheduler(
            self.policy if isinstance(self.policy, str) else self.policy(),
            num_pages=self.num_pages,
            page_size=self.page_size,
            token_budget=self.token_budget,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            vocab_size=self.cost_model.model.vocab_size,
            is_prefix_caching=self.is_prefix_caching,
            watermark=self.watermark,
            num_microbatches=self.num_stages,
        )

    def pipeline(self) -> Pipeline:
        """A new one, empty."""
        return StagesInLockStep(self.num_stages) if self.has_lock_step else StagesInSeries(self.num_stages)
