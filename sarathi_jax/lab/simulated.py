"""What `sarathi-jax simulate` is asked: a model, GPUs and an engine's options, checked and brought together as a deployment that the simulator runs."""

from dataclasses import dataclass

import jax.numpy as jnp

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.lab.cost_inputs import cuts_of, model_shape
from sarathi_jax.lab.plan import JAX_SHARE, estimated_temp_bytes
from sarathi_jax.lab.plan_task import HOST, default_topology, dtypes_on_gpu, find_hardware
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.policies.demands import budget_for
from sarathi_jax.sharding.rules import find_rules
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import load_host
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Placement, why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEngine:
    """What the options of an engine don't say: where it runs, and what kind of an engine it is.

    device, system, host: by the names in `simulation/hardware.json`; system None: the device's own.
    topology: hosts, and GPUs of each; None: one host, with as many as the mesh takes.
    has_lock_step: whether the stages of a pipeline tick together, as this engine's, or run in series, as Sarathi-Serve's.
    """

    device: str = "a100-80g"
    topology: tuple[int, int] | None = None
    system: str | None = None
    host: str = HOST
    has_lock_step: bool = True

    def deploy(self, engine: EngineConfig, longest_request: int) -> Deployment:
        """The engine on its GPUs. A policy that never splits a prompt gets steps that hold the longest one, whatever its token budget is.

        longest_request: of the workload, in tokens: where no max_model_len is given it is the model's, or this if it is more.
        Raises: ConfigError; CapacityError; ModelError.
        """
        placement = self._place(engine)
        gpu, links = find_hardware(self.device, self.system, placement.gpus_per_host)
        config = find_model(engine.model, is_dummy=True).config
        dtype, kv_dtype = dtypes_on_gpu(engine, config)
        cost_model = CostModel(
            model_shape(config, jnp.dtype(dtype).itemsize, kv_dtype),
            gpu,
            placement,
            Links(links),
            load_host(self.host),
            cuts_of(find_rules(engine.rules)),
            has_split_sends=self.host != HOST,
        )
        if reason := why_not(cost_model.model, placement, cost_model.cuts):
            raise ConfigError(
                f"mesh {placement.describe()} must divide {engine.model}, got: {reason}. Choose another mesh."
            )
        max_model_len = engine.max_model_len or max(config.max_position_embeddings, longest_request)
        limits = SchedulerLimits(
            num_pages=-(-max_model_len // engine.page_size),  # a deployment has at least these
            page_size=engine.page_size,
            token_budget=engine.step_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=config.vocab_size,
        )
        budget = budget_for(make_policy(engine.policy), limits)
        rows = -(-engine.max_num_seqs // placement.stage)
        is_own = self.host == HOST
        return Deployment(
            cost_model=cost_model,
            max_model_len=max_model_len,
            policy=engine.policy,
            token_budget=budget,
            max_num_seqs=engine.max_num_seqs,
            page_size=engine.page_size,
            memory_fraction=engine.memory_fraction * (JAX_SHARE if is_own else 1.0),
            temp_bytes=estimated_temp_bytes(cost_model, budget, rows) if is_own else 0,
            is_prefix_caching=engine.prefix_caching,
            is_overlapped=engine.overlap,
            has_lock_step=self.has_lock_step,
        )

    def _place(self, engine: EngineConfig) -> Placement:
        mesh = engine.mesh_shape
        if mesh.get("data", 1) > 1:
            raise ConfigError(
                f"mesh must be of one engine, got {engine.mesh}: leave `data` out, and send it its share of the requests."
            )
        num_hosts, gpus_per_host = self.topology or default_topology(mesh)
        return Placement(num_hosts=num_hosts, gpus_per_host=gpus_per_host, **mesh)
