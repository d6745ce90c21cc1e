"""Whether a model fits and runs here, as `doctor` says it: the memory plan of an engine with default options, and 3 tokens from a small one."""

from sarathi_jax.checkpoints.model_source import ModelSource
from sarathi_jax.cli.doctor_check import FAIL, OK, Check, attempt
from sarathi_jax.cli.load import run_load
from sarathi_jax.cli.policy_engines import policy_engines
from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.build import choose_dtype, estimate_plan
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import find_rules
from sarathi_jax.simulation.workloads import RequestShape
from sarathi_jax.text.tokenizer import Tokenizer

NUM_TOKENS = 3
PROMPT = "Hello"
MAX_MODEL_LEN = 64


def check_engine(source: ModelSource) -> list[Check]:
    """The generation only if there is memory for it."""
    plan = attempt("memory", lambda: plan_memory(source))
    return [plan] if plan.state == FAIL else [plan, attempt("generation", lambda: generate(source))]


def plan_memory(source: ModelSource) -> str:
    """Raises: CapacityError if the model does not fit."""
    config = EngineConfig()
    mesh = make_mesh(config.mesh_shape)
    dtype = choose_dtype(config.dtype, source.config, mesh)
    plan = estimate_plan(abstract_model(source.config, dtype, mesh, find_rules(config.rules)), config)
    return f"as {dtype}: {plan.describe()}"


def generate(source: ModelSource) -> Check:
    """Greedily, with limits so small that little is compiled. Raises: SarathiError."""
    assert source.folder is not None, "a model with files"
    tokenizer = Tokenizer.from_folder(source.folder)
    prompt = tokenizer.encode(PROMPT)
    limit = min(MAX_MODEL_LEN, source.config.max_position_embeddings)
    config = EngineConfig(model=str(source.folder), max_num_seqs=1, token_budget=16, max_model_len=limit)
    with policy_engines(config, progress=False) as engines:
        engine, _ = engines.engine(make_policy(config.policy), config.step_tokens)
        sample = run_load(engine, [RequestShape(0.0, len(prompt), NUM_TOKENS)], [prompt])[0].outputs[0]
    if sample.finish_reason != "length":
        text = f"logits must be numbers, and {NUM_TOKENS} tokens come, got {len(sample.token_ids)} and {sample.finish_reason}"
        return Check("generation", FAIL, f"{text}: the weights are damaged, or overflow in this dtype.")
    text = tokenizer.decode(sample.token_ids)
    return Check("generation", OK, f"{PROMPT!r} goes on with tokens {sample.token_ids}, {text!a}")
