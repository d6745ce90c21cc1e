"""Be one of several processes that run a model together: run what process 0 sends, until it closes the group.

Process 0 runs any other command, with the same options; so may every process: one that has another number follows all the same. Every process needs the
group's key, in the variable SARATHI_JAX_GROUP_KEY or in a file that SARATHI_JAX_GROUP_KEY_FILE names.
"""

import argparse
from dataclasses import fields

from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser

EXAMPLES = """  sarathi-jax follow demo --mesh tensor=2 --num-processes 2 --process-id 1 --coordinator node1:7700
  srun sarathi-jax generate demo --mesh stage=2,tensor=4 --coordinator auto --prompt '12+30='"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    from sarathi_jax.follow import follow  # here: jax takes over a second to import

    follow(
        config.model, **{field.name: getattr(config, field.name) for field in fields(config) if field.name != "model"}
    )
    return 0
