"""What `bench profile` would measure on a deployment that is only simulated: its cost model's times of steps of many kinds, and the `slo` policy that starts from them."""

from collections.abc import Iterator, Mapping
from functools import partial

from sarathi_jax.config import TOKEN_TILE
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.service_levels import ServiceLevel
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample
from sarathi_jax.scheduling.step_times import StepLoad, StepTimeModel
from sarathi_jax.simulation.deployment import Deployment, PolicyMaker
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work

DECODES_BESIDE = 64  # a chunk, where there is room for them
CONTEXT_BESIDE = 1024


def profile_of(deployment: Deployment) -> StepProfile:
    """The profile of its steps, each from an idle engine until its tokens are on the host, through all stages."""
    works = [*_decode_works(deployment), *_mixed_works(deployment)]
    return StepProfile(
        model="",
        device=deployment.cost_model.device.name,
        mesh=deployment.cost_model.placement.describe(),
        dtype="",
        kv_dtype="",
        kernels="simulated",
        jax_version="",
        token_budget=deployment.token_budget,
        max_num_seqs=deployment.max_num_seqs,
        max_model_len=deployment.max_model_len,
        num_kv_tokens=deployment.num_pages * deployment.page_size,
        samples=tuple(_sample(deployment, work) for work in works),
    )


def slo_maker(deployment: Deployment, levels: Mapping[str, ServiceLevel]) -> PolicyMaker:
    """For `Deployment.policy`: a `slo` policy a run, that knows the profile and learns from there."""
    return partial(_make_slo, profile_of(deployment), levels)


def _make_slo(profile: StepProfile, levels: Mapping[str, ServiceLevel]) -> SloPolicy:
    return SloPolicy(StepTimeModel.fit(profile), levels)


def load_of_work(work: StepWork) -> StepLoad:
    """The same step as a policy sees it."""
    return StepLoad(work.num_tokens, work.num_rows, work.num_decodes, work.decode_context, _num_pairs(work))


def _num_pairs(work: StepWork) -> float:
    return sum(chunk.num_pairs(None) for chunk in work.chunks)


def _decode_works(deployment: Deployment) -> Iterator[StepWork]:
    num_decodes = 1
    while num_decodes <= deployment.max_num_seqs:
        for context in _contexts(deployment):
            yield decode_work(num_decodes, context)
        num_decodes *= 2


def _mixed_works(deployment: Deployment) -> Iterator[StepWork]:
    budget = deployment.token_budget
    for size in (*range(TOKEN_TILE, budget, TOKEN_TILE), budget):
        num_decodes = min(DECODES_BESIDE, size // 2, deployment.max_num_seqs - 1)
        for history in (0, *_contexts(deployment)):
            yield StepWork((ChunkWork(history, size),))
            yield StepWork((ChunkWork(history, size - num_decodes),), num_decodes, num_decodes * CONTEXT_BESIDE)


def _contexts(deployment: Deployment) -> tuple[int, ...]:
    longest = deployment.max_model_len
    return longest // 64 + 1, longest // 8 + 1, longest // 2


def _sample(deployment: Deployment, work: StepWork) -> StepSample:
    device_s = sum(deployment.cost_model.stages_s(work))
    host = deployment.cost_model.host
    host_s = host.seconds(work.num_rows)
    seconds = max(device_s, host_s) if deployment.is_overlapped else device_s + host_s
    return StepSample(**load_of_work(work)._asdict(), median_s=seconds, p99_s=seconds, num_repeats=1)
