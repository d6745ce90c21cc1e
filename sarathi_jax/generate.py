"""generate: for people who hold a Flax model and jax arrays. The same engine, scheduler and step program as everywhere, without text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.errors import ConfigError, RequestError
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.build import EnginePrograms, choose_dtype, compile_engine
from sarathi_jax.execution.executor import variant_of
from sarathi_jax.models import CausalLM, GenerativeModel, check_model
from sarathi_jax.outputs import CompletionOutput
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import AXES, axis_size, make_mesh
from sarathi_jax.sharding.model_state import ModelState, abstract_model, split_model
from sarathi_jax.sharding.rules import MEGATRON, Rules, mesh_axes

# Lengths and batches are rounded up to these, so that calls of about the same size share their programs.
LENGTH_STEP = 256
MAX_ROWS = 128
TOKEN_BUDGET = 512


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What `generate` drew.

    tokens: i32[batch, max_new_tokens]; past `lengths`, `pad_id`. An end-of-sequence token is part of it.
    lengths: i32[batch], tokens drawn.
    logprobs: f32[batch, max_new_tokens], the log-probability of each token under the model itself, 0 past `lengths`; None if not asked for.
    """

    tokens: jax.Array
    lengths: jax.Array
    logprobs: jax.Array | None
    pad_id: int


def load_model(
    model: str = "demo",
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = MEGATRON,
    dtype: str = "auto",
    progress: bool = False,
) -> CausalLM:
    """A Flax NNX model with its parameters where the mesh and the rules put them.

    Args:
      model: "demo", a folder (in Hugging Face format, or what `convert` made of one), or a hub id.
      mesh: with axes `tensor` and `expert`; None is one device.
      rules: logical axis -> mesh axis, several, or None.
      dtype: as EngineConfig's.
    Raises: ConfigError, ModelError.
    """
    source = find_model(model)
    assert source.folder is not None, "a built-in shape is refused where weights are to be read"
    config = source.config
    mesh = _check_axes(mesh, "A model that is held whole", ("data", "stage"))
    state = abstract_model(config, choose_dtype(dtype, config, mesh), mesh, rules)
    return state.merge(
        state.flat(load_params(source.folder, config, state.parameters, state.layout, progress=progress))
    )


def generate(
    model: GenerativeModel,
    prompts: Sequence[Any] | jax.Array | np.ndarray,
    max_new_tokens: int = 32,
    *,
    prompt_lengths: Sequence[int] | jax.Array | np.ndarray | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    eos_token_ids: Sequence[int] | None = None,
    pad_id: int = 0,
    has_logprobs: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = MEGATRON,
) -> GenerateResult:
    """Continue prompts.

    Args:
      model: of this package, or a Flax NNX module of one's own that keeps to `GenerativeModel` (docs/own-model.md); its parameters may have changed since the
        last call.
      prompts: a list of i32 arrays, or i32[batch, length], padded on the right where `prompt_lengths` says so.
      prompt_lengths: valid tokens of each row of a padded array; None: all.
      temperature, top_k, top_p: as SamplingParams'.
      key: a jax random key, needed if temperature is above 0; each row's draws depend on the key and the row's number only.
      eos_token_ids: what ends a row; None: the model's; (): nothing.
      mesh, rules: where the model's parameters are to be; None is one device. With an axis `stage`, layers are laid out over a pipeline.
    Raises: RequestError if a prompt or an option is wrong; ConfigError if the mesh or the rules don't fit the model;
      ModelError if the model does not keep to the protocol.
    """
    rows = _rows(prompts, prompt_lengths)
    params = [
        SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            logprobs=0 if has_logprobs else None,
        )
        for seed in _seeds(key, len(rows), is_needed=temperature > 0)
    ]
    mesh = _check_axes(mesh, "generate", ("data",))
    if not isinstance(model, CausalLM):
        check_model(model, is_constrained=bool(mesh_axes(rules, "tokens", mesh)))
    state, leaves = split_model(model, mesh, rules)
    programs = _programs(state, rows, params[0] if params else SamplingParams(), max_new_tokens)
    engine = _engine(programs, leaves, model.config.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids))
    request_ids = [engine.add_request(row, each) for row, each in zip(rows, params, strict=True)]
    done: dict[str, CompletionOutput] = {}
    while engine.has_unfinished:
        done |= {event.request_id: event.output.outputs[0] for event in engine.step() if event.output is not None}
    engine.close()
    return _result([done[request_id] for request_id in request_ids], max_new_tokens, pad_id, has_logprobs)


def _check_axes(mesh: jax.sharding.Mesh | None, what: str, refused: tuple[str, ...]) -> jax.sharding.Mesh:
    if mesh is None:
        return make_mesh({})
    if found := [axis for axis in refused if axis_size(mesh, axis) > 1]:
        raise ConfigError(
            f"{what} takes a mesh without {' and '.join(refused)}, got {dict(mesh.shape)}: leave out {found[0]}, or use LLM."
        )
    if not set(mesh.axis_names) <= set(AXES):
        raise ConfigError(f"A mesh must have axes of {', '.join(AXES)}, got {', '.join(mesh.axis_names)}: rename them.")
    # `jax.make_mesh` makes axes that every operation has to name; the partitioner is to have them.
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names)


def _rows(prompts: Any, prompt_lengths: Any) -> list[list[int]]:
    """Prompts as lists of ids; what the ids are is checked where all requests are."""
    if prompt_lengths is None:
        return [_row(each, index) for index, each in enumerate(prompts)]
    padded = np.asarray(prompts)
    lengths = np.asarray(prompt_lengths)
    is_wrong = padded.ndim != 2 or lengths.shape != padded.shape[:1]
    if is_wrong or ((lengths < 1) | (lengths > padded.shape[1])).any():
        raise RequestError(
            f"prompt_lengths must give one length from 1 to the padded length for each row of prompts, got {lengths.tolist()} for an array of"
            f" shape {padded.shape}: pass i32[batch, length] and i32[batch].",
            param="prompt_lengths",
        )
    return [_row(row[:length], index) for index, (row, length) in enumerate(zip(padded, lengths, strict=True))]


def _row(prompt: Any, index: int) -> list[int]:
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(
            f"Prompt {index} must be a one-dimensional array of whole numbers, got shape {ids.shape} of {ids.dtype}: tokenize text first.",
            param="prompts",
        )
    return ids.tolist()


def _seeds(key: jax.Array | None, count: int, *, is_needed: bool) -> list[int]:
    if key is None:
        if is_needed:
            raise RequestError("temperature above 0 needs a key, got None: pass jax.random.key(0).", param="key")
        return [0] * count
    words = np.asarray(jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (2,)))(jnp.arange(count)))
    return [int(low) | (int(high) >> 1) << 32 for low, high in words.astype(np.uint64)]


def _programs(state: ModelState, rows: list[list[int]], params: SamplingParams, max_new_tokens: int) -> EnginePrograms:
    longest = max(map(len, rows), default=1) + max_new_tokens
    limit = state.config.max_position_embeddings
    max_model_len = max(min(-(-longest // LENGTH_STEP) * LENGTH_STEP, limit), 1)
    max_num_seqs = min(1 << max(len(rows) - 1, 0).bit_length(), MAX_ROWS)
    config = EngineConfig(max_num_seqs=max_num_seqs, token_budget=TOKEN_BUDGET, max_model_len=max_model_len)
    return _compile(_Key(state, config, variant_of(params)))


@dataclass(frozen=True, slots=True)
class _Key:
    """What programs depend on: not the values of parameters."""

    state: ModelState
    config: EngineConfig
    variant: Variant

    def __hash__(self) -> int:
        return hash((self.state.graph, tuple(self.state.parameters), self.config, self.variant))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Key)
            and (self.config, self.variant, self.state.graph) == (other.config, other.variant, other.state.graph)
            and self.state.treedef == other.state.treedef
            and self.state.parameters == other.state.parameters
            and self.state.rules == other.state.rules
        )


@lru_cache(maxsize=8)
def _compile(key: _Key) -> EnginePrograms:
    table = BucketTable(key.config.step_tokens, key.config.max_num_seqs, variants=(key.variant,), is_sparse=True)
    return compile_engine(key.state, key.config, table, progress=False)


def _engine(programs: EnginePrograms, leaves: tuple[jax.Array, ...], eos_token_ids: tuple[int, ...]) -> Engine:
    geometry = programs.geometry
    scheduler = Scheduler(
        "sarathi",
        num_pages=geometry.num_pages,
        page_size=geometry.page_size,
        token_budget=TOKEN_BUDGET,
        max_num_seqs=geometry.max_num_seqs,
        max_model_len=geometry.max_model_len,
        vocab_size=geometry.vocab_size,
        num_microbatches=programs.model_state.num_stages,
    )
    executor = programs.executor(leaves)
    return Engine(scheduler, executor, WallClock(), is_overlapped=True, tokenizer=None, eos_token_ids=eos_token_ids)


def _result(outputs: list[CompletionOutput], max_new_tokens: int, pad_id: int, has_logprobs: bool) -> GenerateResult:
    tokens = np.full((len(outputs), max_new_tokens), pad_id, np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    for row, output in enumerate(outputs):
        tokens[row, : len(output.token_ids)] = output.token_ids
        if output.logprobs:
            logprobs[row, : len(output.logprobs)] = [each.logprob for each in output.logprobs]
    lengths = np.array([len(output.token_ids) for output in outputs], np.int32)
    return GenerateResult(
        jnp.asarray(tokens), jnp.asarray(lengths), jnp.asarray(logprobs) if has_logprobs else None, pad_id
    )
