"""What requests are promised, by class."""

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.service_levels import BATCH, INTERACTIVE, ServiceLevel, service_levels


def test_a_batch_request_may_take_five_times_as_long_on_average_and_a_minute_to_begin():
    assert service_levels(0.1) == {
        INTERACTIVE: ServiceLevel(tbt_slo_s=0.1, ttft_slo_s=None, carries_slack=False),
        BATCH: ServiceLevel(tbt_slo_s=0.5, ttft_slo_s=60.0, carries_slack=True),
    }


def test_all_times_can_be_given():
    levels = service_levels(0.1, ttft_slo_s=2.0, batch_tbt_slo_s=0.3, batch_ttft_slo_s=9.0)
    assert [(each.tbt_slo_s, each.ttft_slo_s) for each in levels.values()] == [(0.1, 2.0), (0.3, 9.0)]


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["tbt_slo_s", "ttft_slo_s"])
def test_a_time_must_be_above_0(name: str, wrong: float):
    with pytest.raises(ConfigError, match=f"{name}={wrong!r} must be a time above 0, in seconds. Use 0.1."):
        ServiceLevel(tbt_slo_s=wrong) if name == "tbt_slo_s" else ServiceLevel(tbt_slo_s=1.0, ttft_slo_s=wrong)


def test_levels_without_the_default_class_are_refused():
    with pytest.raises(ConfigError, match=r"levels must have 'interactive', .* got batch: add it"):
        SloPolicy(levels={BATCH: ServiceLevel(tbt_slo_s=1.0)})
