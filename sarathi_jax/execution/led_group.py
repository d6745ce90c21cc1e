"""A group from process 0's side, from its start to its end: the other processes, the leader's hold on them, and jax over all of them."""

from collections.abc import Callable

from sarathi_jax.checkpoints.model_source import ModelSource
from sarathi_jax.checkpoints.weight_files import weight_paths
from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.processes import join_processes, leave_processes, prints_on_stderr
from sarathi_jax.group.admission import admit
from sarathi_jax.group.facts import model_facts, option_facts
from sarathi_jax.group.key import read_key
from sarathi_jax.group.launch import Launched, launch
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.member import Group, check_same
from sarathi_jax.group.place import Place

KILL_AFTER_S = 2.0


def check_source(group: Group, source: ModelSource) -> None:
    """Check that all processes have the same model. Raises: ConfigError, naming what differs."""
    paths = weight_paths(source.folder) if source.folder is not None else []
    check_same(group, "model", model_facts(source.config, paths))


class LedGroup:
    """The group that this process leads; waits for the others to come.

    Raises: ConfigError if there is no key, no such address, or another process has other options; GroupError if not all come.
    """

    def __init__(self, config: EngineConfig, place: Place) -> None:
        self._launched: Launched | None = launch(config, place) if place.is_launcher else None
        try:
            if self._launched is None:
                self._place, self._local_devices = place, None
                admitted = admit(place, read_key())
            else:
                self._place, self._local_devices = self._launched.place, self._launched.local_devices
                admitted = admit(self._place, self._launched.key, self._launched.check)
            self.leader = Leader(admitted)
            check_same(self.leader, "options", option_facts(config))
        except BaseException:
            self._end_launched(0.0)
            raise

    def run[T](self, source: ModelSource, build: Callable[[Leader], T]) -> T:
        """The result of `build`, which may use all processes' devices for this model. From then on requests may come.

        Raises: what it raises; ConfigError if another process has another model; GroupError as soon as a process is lost.
        """

        def join_and_build() -> T:
            check_source(self.leader, source)
            join_processes(self._place, self.leader, self._local_devices)
            with prints_on_stderr():
                built = build(self.leader)
            self.leader.mark_ready()
            return built

        return self.leader.loss.run(join_and_build)

    def fail(self, error: BaseException) -> None:
        """End the group because this process can't go on."""
        self.leader.fail(error)
        self._end_launched(KILL_AFTER_S)

    def close(self) -> None:
        """Let all processes end; idempotent. Those that were started here have ended then."""
        self.leader.close()
        if self.leader.loss.error is None:
            leave_processes()
        self._end_launched(KILL_AFTER_S)

    def _end_launched(self, limit_s: float) -> None:
        if self._launched is not None:
            self._launched.end(limit_s)
