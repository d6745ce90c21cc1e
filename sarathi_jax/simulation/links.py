"""What moving bytes between devices takes: lines fitted to measured all-reduces and sends, and rings between hosts.

Inside a host an all-reduce of b bytes takes alpha + b / beta, with alpha and beta of the smallest group measured that is as large. Between hosts it is a ring of n
devices: 2 (n - 1) steps, and 2 (n - 1) / n of the message over every link, the one between hosts being the slowest. The fits hold from 1 MB on; smaller messages
are mostly alpha. All-gather and reduce-scatter are half of an all-reduce each, as rings are; so, by bytes over the links, is all-to-all.
"""

from dataclasses import dataclass

from sarathi_jax.simulation.hardware import System
from sarathi_jax.simulation.placement import Group

SHARE_OF_ALL_REDUCE = {"all-reduce": 1.0, "all-gather": 0.5, "reduce-scatter": 0.5, "all-to-all": 0.5}


@dataclass(frozen=True, slots=True)
class Links:
    """The links of one system."""

    system: System

    def all_reduce_s(self, num_bytes: float, group: Group) -> float:
        """num_bytes: of the message, as it lies on each device. A group of one has nothing to do."""
        if group.num_devices == 1:
            return 0.0
        if group.num_hosts > 1:
            return self._ring_s(num_bytes, group)
        size = group.num_devices if self.system.is_switched else group.span
        measured = self.system.all_reduce
        return measured[min((each for each in measured if each >= size), default=max(measured))].seconds(num_bytes)

    def collective_s(self, kind: str, num_bytes: float, group: Group) -> float:
        """Of an all-reduce, all-gather, reduce-scatter or all-to-all, with the launch that it costs. num_bytes: of the whole message, gathered or to be scattered."""
        if group.num_devices == 1:
            return 0.0
        return self.system.launch_s + SHARE_OF_ALL_REDUCE[kind] * self.all_reduce_s(num_bytes, group)

    def send_s(self, num_bytes: float, *, is_remote: bool, num_pairs: int = 1) -> float:
        """From one device to another. num_pairs: how many of a host send at once, which a network may not carry all at full speed."""
        if not is_remote:
            return self.system.send.seconds(num_bytes)
        network = self.system.network
        share = min(network.send.bytes_per_s, network.send_bytes_per_s_per_host / num_pairs)
        return network.send.alpha_s + num_bytes / share

    def _ring_s(self, num_bytes: float, group: Group) -> float:
        network, others = self.system.network, group.num_devices - 1
        rate = min(
            group.gpus_per_host * network.ring_bytes_per_s_per_gpu, network.ring_bytes_per_s_per_host / group.num_rivals
        )
        return 2 * others * network.ring_step_s + 2 * others / group.num_devices * num_bytes / rate
