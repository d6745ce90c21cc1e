"""jax over several processes: they find each other once, before any of them makes its devices, and part at the end.

A process that does not part in time keeps the others from ending, and one whose group is lost can't part any more: it ends without."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import jax

from sarathi_jax.errors import ConfigError
from sarathi_jax.gpu_defaults import apply_defaults
from sarathi_jax.group.loss import Loss
from sarathi_jax.group.member import Group, check_same
from sarathi_jax.group.place import Place

logger = logging.getLogger(__name__)

# jax's own watch over its processes; ours is faster, and says more.
HEARTBEAT_LIMIT_S = 100
START_LIMIT_S = 300
SHUTDOWN_LIMIT_S = 10


def join_processes(place: Place, group: Group, local_devices: Sequence[int] | None = None) -> None:
    """Make all processes' devices one set. When this process ends after the group was lost, it ends with code 1, whatever it waits for.

    Args:
      local_devices: the GPUs of this process, by number; None: all.
    Raises: ConfigError if jax has made its devices already, or the processes' devices are not of one kind; GroupError.
    """
    apply_defaults()
    # It would take SIGTERM for itself, and a process that is told to end would stay.
    jax.config.update("jax_enable_preemption_service", False)
    address = f"[{place.host}]:{place.jax_port}" if ":" in place.host else f"{place.host}:{place.jax_port}"
    try:
        jax.distributed.initialize(
            address,
            place.num_processes,
            place.process_id,
            list(local_devices) if local_devices else None,
            cluster_detection_method="deactivate",
            initialization_timeout=START_LIMIT_S,
            heartbeat_timeout_seconds=HEARTBEAT_LIMIT_S,
            shutdown_timeout_seconds=SHUTDOWN_LIMIT_S,
            coordinator_bind_address=address,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"jax's own processes must find each other at {address}, the port after the coordinator's, got {str(error)[:500]}: free that port, and look whether"
            " the network lets all processes reach it."
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"A process must join its group before jax makes its devices, and only once, got {str(error)[:500]}: start the engine first, in a process"
            " of its own."
        ) from error
    # Registered after jax's own, and so called before it, which would wait for the others.
    atexit.register(_end_if_lost, group.loss)
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    check_same(group, "devices", {"kind of devices": ", ".join(kinds)})


def leave_processes() -> None:
    """Part, together with all other processes."""
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        logger.warning("jax's processes must part together, got %s: one of them ended before", str(error)[:500])


@contextlib.contextmanager
def prints_on_stderr() -> Iterator[None]:
    """What is printed by libraries goes to standard error, as the CPU's collectives do when they first meet: standard output is for answers."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _end_if_lost(loss: Loss) -> None:
    if loss.error is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)
