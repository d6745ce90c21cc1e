"""What a request was promised: how soon its first token, and how soon each one after it."""

from collections.abc import Mapping
from dataclasses import dataclass

from sarathi_jax.errors import ConfigError, RequestError

INTERACTIVE = "interactive"
BATCH = "batch"


CLASSES = (INTERACTIVE, BATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """tbt_slo_s: longest time between two tokens. ttft_slo_s: latest first token after the arrival; None: in proportion to the prompt's length.

    carries_slack: whether a token that came early earns time for those after it (a reader falls behind only on average), or each gap counts alone.
    Raises: ConfigError from the constructor if a time is not above 0.
    """

    tbt_slo_s: float
    ttft_slo_s: float | None = None
    carries_slack: bool = False

    def __post_init__(self) -> None:
        for name in ("tbt_slo_s", "ttft_slo_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}={value!r} must be a time above 0, in seconds. Use 0.1.")


def service_levels(
    tbt_slo_s: float,
    *,
    ttft_slo_s: float | None = None,
    batch_tbt_slo_s: float | None = None,
    batch_ttft_slo_s: float = 60.0,
) -> Mapping[str, ServiceLevel]:
    """The two levels there are. A batch request may have five times the interactive one's TBT unless said otherwise, on average, and a minute for its first token."""
    batch_tbt_slo_s = 5 * tbt_slo_s if batch_tbt_slo_s is None else batch_tbt_slo_s
    return {
        INTERACTIVE: ServiceLevel(tbt_slo_s=tbt_slo_s, ttft_slo_s=ttft_slo_s),
        BATCH: ServiceLevel(tbt_slo_s=batch_tbt_slo_s, ttft_slo_s=batch_ttft_slo_s, carries_slack=True),
    }


def check_class(slo_class: object, client: object) -> None:
    """Raises: RequestError, with `param`, if there is no such class, or the client is no text."""
    if slo_class not in CLASSES:
        raise RequestError(
            f"slo_class must be one of {', '.join(CLASSES)}, got {slo_class!r}: choose one.", param="slo_class"
        )
    if not isinstance(client, str):
        raise RequestError(f"client must be a text, got {client!r}: pass who asks, or leave it out.", param="client")
