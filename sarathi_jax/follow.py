"""follow: what every process of a group but the first one does. It runs what process 0 sends, and knows nothing of requests."""

import sys
from typing import Any

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.group_runner import follow_calls
from sarathi_jax.execution.led_group import check_source
from sarathi_jax.execution.processes import join_processes, leave_processes, prints_on_stderr
from sarathi_jax.execution.replicas import build_replicas, followed_runners
from sarathi_jax.group.admission import join
from sarathi_jax.group.facts import option_facts
from sarathi_jax.group.follower import Follower
from sarathi_jax.group.key import read_key
from sarathi_jax.group.member import check_same
from sarathi_jax.group.place import find_place
from sarathi_jax.llm import engine_config
from sarathi_jax.scheduling.token_budget import with_token_budget


def follow(model: str = "demo", *, progress: bool | None = None, **options: Any) -> None:
    """Run what process 0 of a group sends, until it closes the group.

    Args: as `LLM`'s, which process 0 has; options must be the same, but for process_id.
    Raises: ConfigError, ModelError, CapacityError. Where the group ends by another process's fault, this process ends too, with a message and code 1.
    """
    config = with_token_budget(engine_config(model, options))
    place = find_place(config)
    if place is None or place.is_leader:
        raise ConfigError(
            f"A process must follow as one of 1, 2, ... of a group, got {'no group' if place is None else 'process 0, which leads'}: pass"
            " num_processes, process_id and coordinator; who leads, or is alone, uses LLM or any other command."
        )
    follower = Follower(join(place, read_key()), place.process_id)
    try:
        check_same(follower, "options", option_facts(config))
        with prints_on_stderr():
            source = find_model(config.model, is_dummy=config.load_format == "dummy")
            check_source(follower, source)
            join_processes(place, follower)
            has_bars = sys.stderr.isatty() if progress is None else progress
            replicas = build_replicas(source, config, progress=has_bars, group=follower)
            runners, tellers = followed_runners(replicas)
            follow_calls(follower, runners, replicas[0].programs.table.buckets, tellers)
            leave_processes()
    except BaseException as error:
        follower.fail(error)
        raise
