"""Flags that people know from vLLM, where they mean the same as one of ours; and what to say of those that mean nothing here."""

from collections.abc import Sequence

from sarathi_jax.cli.options import UsageError

RENAMED = {
    "--max-num-batched-tokens": "--token-budget",
    "--block-size": "--page-size",
    "--gpu-memory-utilization": "--memory-fraction",
    "--num-gpu-blocks-override": "--num-pages",
    "--kv-cache-dtype": "--kv-dtype",
    "--max-num-queued-reqs": "--max-queued-requests",
    "--shutdown-timeout": "--drain-timeout-s",
    "--otlp-traces-endpoint": "--otlp-endpoint",
    "--uvicorn-log-level": "--log-level",
    "--enable-prefix-caching": "--prefix-caching",
    "--no-enable-prefix-caching": "--no-prefix-caching",
    "--disable-uvicorn-access-log": "--no-access-log",
    "--disable-log-stats": "--log-stats-s=0",
}
AXES = {
    "--data-parallel-size": "data",
    "-dp": "data",
    "--pipeline-parallel-size": "stage",
    "-pp": "stage",
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
}
# What is so anyway. A value has to say so too.
ALWAYS = {"--enable-chunked-prefill": ("true", "True"), "--scheduling-policy": ("fcfs", "priority")}
REMEDIES = {
    "--enable-chunked-prefill": "prompts are always read in chunks. Leave it out, or compare policies with --policy",
    "--no-enable-chunked-prefill": "prompts are always read in chunks. Leave it out, or compare policies with --policy",
    "--scheduling-policy": "requests are served by their priority, which is 0 unless they say otherwise, in the order they come. Leave it out, or choose with --policy",
    "--enforce-eager": "steps are always compiled, before the server is ready. Leave it out",
    "--enable-log-requests": "what is asked is never logged. Leave it out",
    "--trust-remote-code": "a model's own code is never run. Leave it out",
}


def ours(flag: str) -> tuple[str, ...]:
    """The field that is meant by a flag of vLLM's, as a tuple of one; (): none is known."""
    if flag in AXES:
        return ("mesh",)
    name = RENAMED.get(flag, "").split("=")[0].removeprefix("--").removeprefix("no-")
    return (name.replace("-", "_"),) if name else ()


def translate(words: Sequence[str]) -> list[str]:
    """The words of a command line, with our flags in place of vLLM's. Raises: UsageError for one that can't be followed."""
    done: list[str] = []
    axes: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        flag, mark, value = word.partition("=")
        if flag in AXES:
            axes[AXES[flag]] = value if mark else _next_value(flag, left)
        elif flag in ALWAYS:
            _check_always(flag, value if mark else _value_if_any(flag, left))
        elif flag in REMEDIES:
            raise UsageError(f"{flag} is not an option here: {REMEDIES[flag]}.")
        else:
            done.append(RENAMED.get(flag, flag) + mark + value)
    return [*done, *_mesh_words(axes, done)]


def _next_value(flag: str, left: list[str]) -> str:
    if not left:
        raise UsageError(f"{flag} must be followed by a number of devices, got nothing: write {flag} 2.")
    return left.pop(0)


def _value_if_any(flag: str, left: list[str]) -> str:
    return left.pop(0) if flag == "--scheduling-policy" and left else ALWAYS[flag][0]


def _check_always(flag: str, value: str) -> None:
    if value not in ALWAYS[flag]:
        choices = " or ".join(dict.fromkeys(each.lower() for each in ALWAYS[flag]))
        raise UsageError(f"{flag} can only be {choices} here, got {value}: {REMEDIES[flag]}.")


def _mesh_words(axes: dict[str, str], words: Sequence[str]) -> list[str]:
    mesh = ",".join(f"{axis}={axes[axis]}" for axis in dict.fromkeys(AXES.values()) if axes.get(axis, "1") != "1")
    if mesh and any(word.split("=")[0] == "--mesh" for word in words):
        raise UsageError(f"Sizes per axis are --mesh {mesh} here, got --mesh besides: leave out one of them.")
    return ["--mesh", mesh] if mesh else []
