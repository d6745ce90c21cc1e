"""What `serve` says when it is ready: a small table, or the same as one JSON object."""

from typing import TYPE_CHECKING, Any

from sarathi_jax import __version__

if TYPE_CHECKING:
    from sarathi_jax.serve.front import Front

GIB = 2**30


def summary(front: "Front", url: str) -> dict[str, Any]:
    """The facts of a server that is ready. kv_tokens, full_requests: of all replicas together."""
    facts, limits = front.facts, front.facts.limits
    num_pages = limits.num_pages * facts.num_replicas
    return {
        "version": __version__,
        "url": f"{url}/v1",
        "page": f"{url}/",
        "model": facts.model,
        "served_model_names": list(front.model_names),
        "dtype": facts.dtype,
        "weights_gib": facts.weight_bytes / GIB,
        "devices": facts.devices,
        "mesh": facts.mesh,
        "replicas": facts.num_replicas,
        "kv_gib": facts.kv_bytes / GIB,
        "kv_tokens": num_pages * limits.page_size,
        "max_model_len": limits.max_model_len,
        "full_requests": num_pages * limits.page_size / limits.max_model_len,
        "policy": facts.policy,
        "token_budget": limits.token_budget,
        "max_num_seqs": limits.max_num_seqs,
        "tbt_slo_ms": facts.tbt_slo_ms,
        "programs": facts.num_programs,
        "programs_from_cache": facts.num_cache_hits,
        "compile_s": facts.compile_s,
        "api_keys": front.num_keys,
    }


def table(said: dict[str, Any]) -> str:
    """As people read it."""
    kinds = sorted(set(said["devices"]))
    devices = ", ".join(f"{said['devices'].count(kind)} x {kind}" for kind in kinds)
    names = ", ".join(said["served_model_names"])
    goal = "" if said["tbt_slo_ms"] is None else f", TBT goal {said['tbt_slo_ms']:g} ms"
    rows = {
        "page": said["page"],
        "model": f"{said['model']}, asked for as {names}" if names != said["model"] else names,
        "weights": f"{_gib(said['weights_gib'])}, {said['dtype']}",
        "devices": devices
        + ("" if said["mesh"] is None else f", mesh {said['mesh']}")
        + (f", {said['replicas']} replicas" if said["replicas"] > 1 else ""),
        "KV cache": f"{said['kv_tokens']:,} tokens, {_gib(said['kv_gib'])}: {said['full_requests']:.1f} requests of "
        f"{said['max_model_len']:,} tokens",
        "schedule": f"{said['policy']}, {said['token_budget']} tokens a step, {said['max_num_seqs']} requests at a time{goal}",
        "programs": f"{said['programs']}, {said['programs_from_cache']} of them from the cache, {said['compile_s']:.1f} s",
        "keys": str(said["api_keys"] or "none: whoever reaches this address may ask"),
    }
    head = f"sarathi-jax {said['version']} serves {said['served_model_names'][0]} at {said['url']}"
    return "\n".join([head, *(f"  {name:<10}{text}" for name, text in rows.items())])


def _gib(size: float) -> str:
    return f"{size:.2f} GiB" if size >= 0.1 else f"{size * 1024:.1f} MiB"
