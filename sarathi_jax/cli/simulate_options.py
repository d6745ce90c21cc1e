"""The options of `simulate` that its commands share: model, hardware, what kind of an engine, its own options; and the deployment that they come to."""

import argparse
from collections.abc import Collection
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from sarathi_jax.cli.hardware_options import add_hardware_arguments, add_shape_arguments, read_topology
from sarathi_jax.cli.model_options import model_name
from sarathi_jax.cli.options import Parser, add_fields, given_fields
from sarathi_jax.config import EngineConfig
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.token_budget import REFERENCE_BATCH, REFERENCE_CONTEXT, RELAXED, STRICT
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import host_names
from sarathi_jax.simulation.self_profile import slo_maker
from sarathi_jax.simulation.step_work import decode_work

if TYPE_CHECKING:
    from sarathi_jax.lab.simulated import SimulatedEngine

PIPELINES = ("lock-step", "series")
ENGINE_FIELDS = (
    "mesh",
    "rules",
    "policy",
    "token_budget",
    "max_num_seqs",
    "max_model_len",
    "page_size",
    "memory_fraction",
    "dtype",
    "kv_dtype",
    "prefix_caching",
    "overlap",
)


def add_simulated_arguments(parser: Parser, *, skip: Collection[str] = ()) -> None:
    """skip: fields of the engine that the command has options of its own for."""
    add_shape_arguments(parser)
    group = add_hardware_arguments(parser)
    names = ", ".join(host_names())
    group.add_argument(
        "--host",
        default="sarathi-jax",
        choices=host_names(),
        metavar="ENGINE",
        help=f"whose host code runs between steps: {names} (default: sarathi-jax)",
    )
    group.add_argument(
        "--pipeline",
        default=PIPELINES[0],
        choices=PIPELINES,
        help="whether stages tick together, as here, or run in series, as Sarathi-Serve's (default: lock-step)",
    )
    add_fields(parser, EngineConfig, "engine", skip=_skipped(skip))


def read_engine(args: argparse.Namespace, *, skip: Collection[str] = (), **chosen: Any) -> EngineConfig:
    """The engine's options. chosen: fields that the command sets itself. Raises: ConfigError."""
    return EngineConfig(model=model_name(args), **given_fields(args, EngineConfig, skip=_skipped(skip)), **chosen)


def read_kind(args: argparse.Namespace) -> "SimulatedEngine":
    """Where it runs, and what kind of an engine it is. Raises: UsageError."""
    from sarathi_jax.lab.simulated import SimulatedEngine  # here: jax takes over a second to import

    return SimulatedEngine(
        device=args.device,
        topology=read_topology(args),
        system=args.system,
        host=args.host,
        has_lock_step=args.pipeline == PIPELINES[0],
    )


def with_goal(deployment: Deployment, tbt_slo_s: float | None = None) -> Deployment:
    """The policy `slo` is told its goal, and what steps take on the deployment, as on a machine that was profiled; others stay as they are.

    tbt_slo_s: None is the paper's strict one.
    """
    if deployment.policy != "slo":
        return deployment
    levels = service_levels(derived_slos_s(deployment.cost_model)[0] if tbt_slo_s is None else tbt_slo_s)
    return replace(deployment, policy=slo_maker(deployment, levels))


def derived_slos_s(cost_model: CostModel) -> list[float]:
    """Strict and relaxed, as the paper derives them (section 5.1)."""
    decode_s = cost_model.step(decode_work(REFERENCE_BATCH, REFERENCE_CONTEXT)).latency_s
    return [STRICT * decode_s, RELAXED * decode_s]


def _skipped(skip: Collection[str]) -> list[str]:
    return [field.name for field in fields(EngineConfig) if field.name not in ENGINE_FIELDS or field.name in skip]
