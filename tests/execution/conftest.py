"""A tiny model whose programs are compiled once, and the dense logits that whatever runs over them has to agree with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.build import EnginePrograms, compile_engine
from sarathi_jax.models import ModelConfig, causal_lm_logits
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import ModelState, abstract_model
from sarathi_jax.sharding.rules import MEGATRON

MODEL = ModelConfig(
    family="llama",
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=96,
    eos_token_ids=(2,),
)
CONFIG = EngineConfig(token_budget=32, max_num_seqs=4, max_model_len=96, page_size=4)

type Params = tuple[jax.Array, ...]


def random_params(state: ModelState) -> Params:
    """Weights that put logits far apart."""
    rng = np.random.default_rng(0)
    leaves = [
        rng.normal(float("norm" in path), 0.35, spec.shape).astype(np.float32)
        for path, spec in state.parameters.items()
    ]
    shardings = [spec.sharding for spec in state.parameters.values()]
    return tuple(jax.device_put(leaf, sharding) for leaf, sharding in zip(leaves, shardings, strict=True))


@dataclass(frozen=True)
class Tiny:
    """Compiled programs, parameters for them, and engines over both."""

    programs: EnginePrograms
    params: Params
    dense: Callable[[Params, jax.Array], jax.Array]

    def with_param(self, path: str, change: Callable[[jax.Array], jax.Array]) -> "Tiny":
        """The same model with one parameter changed."""
        place = list(self.programs.model_state.parameters).index(path)
        changed = jax.device_put(change(self.params[place]), self.params[place].sharding)
        return replace(self, params=(*self.params[:place], changed, *self.params[place + 1 :]))

    def with_steps(self, wrap: Callable[[Any], Any]) -> "Tiny":
        """The same programs, each step wrapped."""
        inner = self.programs.programs
        steps = {bucket: wrap(step) for bucket, step in inner.steps.items()}
        return replace(self, programs=replace(self.programs, programs=replace(inner, steps=steps)))

    def engine(self, *, overlap: bool = True, num_pages: int | None = None, **options: Any) -> Engine:
        """A new engine with an empty cache; other options are the scheduler's."""
        geometry = self.programs.geometry
        scheduler = Scheduler(
            "sarathi",
            num_pages=num_pages or geometry.num_pages,
            page_size=geometry.page_size,
            max_model_len=geometry.max_model_len,
            vocab_size=geometry.vocab_size,
            **{"token_budget": 32, "max_num_seqs": 4, **options},
        )
        executor = self.programs.executor(self.params)
        return Engine(scheduler, executor, WallClock(), is_overlapped=overlap, tokenizer=None, eos_token_ids=(2,))

    def run(self, *calls: tuple[list[int], SamplingParams], **options: Any) -> list[RequestOutput]:
        """The outputs of requests that run together in a new engine."""
        return self.run_on(self.engine(**options), *calls)

    def run_on(self, engine: Engine, *calls: tuple[list[int], SamplingParams]) -> list[RequestOutput]:
        request_ids = [engine.add_request(prompt, params) for prompt, params in calls]
        outputs: dict[str, RequestOutput] = {}
        while engine.has_unfinished:
            outputs |= {event.request_id: event.output for event in engine.step() if event.output is not None}
        engine.scheduler.check_integrity()
        return [outputs[request_id] for request_id in request_ids]

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """f64[n, V] of the dense forward; row t for the token after t."""
        padded = np.zeros(MODEL.max_position_embeddings, np.int32)
        padded[: len(token_ids)] = token_ids
        return np.asarray(self.dense(self.params, jnp.asarray(padded)), np.float64)[: len(token_ids)]

    def logprobs(self, token_ids: list[int]) -> np.ndarray:
        """f64[n, V]: log_softmax of `logits`."""
        logits = self.logits(token_ids)
        highest = logits.max(-1, keepdims=True)
        return logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    mesh = make_mesh({})
    state = abstract_model(MODEL, jnp.dtype("float32"), mesh, MEGATRON)
    table = BucketTable(32, 4, variants=(Variant.GREEDY, Variant.FULL), is_sparse=True)
    programs = compile_engine(state, CONFIG, table, progress=False)
    programs.ledger.mark_ready()

    @jax.jit
    def dense(params: Params, token_ids: jax.Array) -> jax.Array:
        return causal_lm_logits(state.merge(params), token_ids)

    return Tiny(programs, random_params(state), dense)
