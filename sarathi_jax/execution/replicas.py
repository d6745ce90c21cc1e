"""From a model that was found to what runs it on a mesh: one runner and one executor for each replica of the engine, whichever processes its devices belong to."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from sarathi_jax.checkpoints.finite import check_finite
from sarathi_jax.checkpoints.loader import dummy_params, load_params
from sarathi_jax.checkpoints.model_source import ModelSource
from sarathi_jax.config import EngineConfig
from sarathi_jax.cpu_defaults import choose_threads
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.build import EnginePrograms, build_runner, choose_dtype, memory_named
from sarathi_jax.execution.device_runner import LocalRunner
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.group_runner import LeaderRunner
from sarathi_jax.execution.programs import agree_on_cache, use_compile_cache
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.member import Group
from sarathi_jax.sharding.mesh import make_mesh, process_ids, replica_meshes
from sarathi_jax.sharding.model_state import ModelState, abstract_model
from sarathi_jax.sharding.rules import find_rules

logger = logging.getLogger(__name__)


class Replica(NamedTuple):
    """One replica. runner: over this process's part of its devices; None: it has none of them. process_ids: those that have some."""

    programs: EnginePrograms
    runner: LocalRunner | None
    process_ids: Sequence[int]


def build_replicas(
    source: ModelSource,
    config: EngineConfig,
    *,
    progress: bool,
    group: Group | None = None,
    variants: tuple[Variant, ...] = tuple(Variant),
) -> list[Replica]:
    """Load the model onto its mesh and compile its programs, for one replica after the other. Args, raises: as `build_runner`'s."""
    replicas = []
    choose_threads(source.config.hidden_size)
    use_compile_cache(config.compile_cache)
    if group is not None:
        agree_on_cache(group)
    for mesh in replica_meshes(make_mesh(config.mesh_shape)):
        state = abstract_model(
            source.config, choose_dtype(config.dtype, source.config, mesh), mesh, find_rules(config.rules)
        )

        def load(state: ModelState = state) -> Sequence[jax.Array]:
            if config.load_format == "dummy" or source.folder is None:
                return state.flat(dummy_params(state.parameters, config.seed))
            params = load_params(source.folder, source.config, state.parameters, state.layout, progress=progress)
            if config.check_weights:
                check_finite(params)
            return state.flat(params)

        programs, runner = build_runner(state, config, load, progress=progress, group=group, variants=variants)
        logger.info("%s", programs.plan.describe())
        replicas.append(Replica(programs, runner, process_ids(mesh)))
    return replicas


def start_replicas(
    replicas: Sequence[Replica], *, progress: bool, leader: Leader | None = None
) -> list[tuple[EnginePrograms, JaxExecutor]]:
    """An executor for each replica, which has run every program once. leader: of the group whose processes the replicas' devices belong to."""
    started = []
    for number, (programs, local, processes) in enumerate(replicas):
        if leader is None:
            assert local is not None, "a process that is alone has all devices"
            runner = local
        else:
            runner = LeaderRunner(local, leader, number, programs.table.buckets, processes)
        executor = programs.executor_over(runner)
        with memory_named(programs):
            executor.warm_up(progress=progress)
        programs.ledger.mark_ready()
        started.append((programs, executor))
    return started


def followed_runners(replicas: Sequence[Replica]) -> tuple[Mapping[int, LocalRunner], list[int]]:
    """This process's runners by number; and those of them whose words it has to tell, since process 0 has no part in them, and it is the first that has."""
    runners = {number: replica.runner for number, replica in enumerate(replicas) if replica.runner is not None}
    tellers = [number for number in runners if replicas[number].process_ids[0] == jax.process_index()]
    return runners, tellers
