"""The answer of `plan`: as one JSON object, and as text for people."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarathi_jax.lab.plan import Layout, MemoryEstimate, StepEstimate
    from sarathi_jax.lab.plan_compile import CompiledSteps
    from sarathi_jax.lab.plan_task import Planned, PlanTask
    from sarathi_jax.lab.step_report import StepReport
    from sarathi_jax.lab.traffic import Traffic

PART_NAMES = {
    "linear_s": "weight products",
    "other_s": "norms and the like",
    "attention_prefill_s": "attention, chunk",
    "attention_decode_s": "attention, decodes",
    "all_reduce_s": "all-reduces",
    "head_s": "head",
    "send_s": "to the next stage",
}
MAX_KINDS = 8  # of collectives that are listed apart


def plan_json(task: "PlanTask", planned: "Sequence[Planned]") -> dict[str, Any]:
    """Seconds, bytes, tokens, operations; memory and steps are of one device, tokens a second of all."""
    deployment = task.deployment
    return {
        "model": task.engine.model,
        "device": deployment.device.name,
        "constants": dict(deployment.device.bases),
        "topology": {"num_hosts": deployment.num_hosts, "gpus_per_host": deployment.gpus_per_host},
        "system": {
            "name": deployment.system.name,
            "about": deployment.system.about,
            "links": dict(deployment.system.bases),
        },
        "rules": task.engine.rules,
        "dtype": task.options.dtype,
        "kv_dtype": task.options.kv_dtype,
        "load": asdict(task.load),
        "notes": notes(task, planned),
        "layouts": [_layout_json(each) for each in planned],
    }


def _layout_json(planned: "Planned") -> dict[str, Any]:
    layout, compiled = planned.layout, planned.compiled
    placement = layout.placement
    return {
        "mesh": {axis: getattr(placement, axis) for axis in ("data", "stage", "expert", "tensor")},
        "why_not": layout.why_not,
        "memory": layout.memory and asdict(layout.memory),
        "decode": layout.decode and asdict(layout.decode),
        "full": layout.full and asdict(layout.full),
        "compiled": compiled and asdict(compiled),
        "tick_s_as_compiled": planned.ticks_s,
    }


def notes(task: "PlanTask", planned: "Sequence[Planned]") -> list[str]:
    """What a reader has to know before believing the numbers."""
    from sarathi_jax.lab.described_gpus import INSTALL_HINT

    found = []
    compiled = [each.compiled for each in planned if each.compiled is not None]
    if any(not each.is_described for each in compiled):
        found.append(
            f"Compiled for the host's CPU, which stands in for {task.deployment.device.name}: weights, KV, and which collectives there are hold; a CPU computes in 32 bits, so"
            f" their bytes and times don't; temporary memory is estimated, and kernels are not a GPU's. {INSTALL_HINT}"
        )
    if any(message.is_in_loop for each in compiled for step in (each.decode, each.full) for message in step.traffic):
        found.append("Collectives in the body of a loop are counted once, however often it runs.")
    system = {
        name: basis
        for name, basis in task.deployment.system.bases.items()
        if name != "network" or task.deployment.num_hosts > 1
    }
    guessed = [name for name, basis in (*task.deployment.device.bases.items(), *system.items()) if basis != "fitted"]
    if guessed:
        found.append(
            f"Estimates, not fits to measurements (docs/plan.md): the rates of {', '.join(guessed).replace('_', '-')}."
        )
    if task.unpriced_axes:
        cut = ", ".join(f"{axis} over {' x '.join(axes)}" for axis, axes in task.unpriced_axes.items())
        found.append(f"The cost model takes for whole what the rules cut: {cut}.")
    return found


# ---- text ----


def describe_plan(task: "PlanTask", planned: "Sequence[Planned]") -> str:
    """All of it, in lines. Several meshes are a table, best first."""
    lines = [*_heading(task), ""]
    if len(planned) == 1:
        lines += _one(task, planned[0])
    else:
        lines += _table(planned)
    written = notes(task, planned)
    return "\n".join([*lines, *([""] if written else []), *(f"note: {note}" for note in written)])


def _heading(task: "PlanTask") -> list[str]:
    deployment, load = task.deployment, task.load
    hosts = f"{deployment.num_hosts} host{'s' * (deployment.num_hosts > 1)} of {deployment.gpus_per_host} {deployment.device.name}"
    return [
        f"{task.engine.model} in {task.options.dtype} on {hosts}, rules {task.engine.rules}",
        f"links: {deployment.system.name}. {deployment.system.about}",
        *([f"network: {deployment.system.network.about}"] if deployment.num_hosts > 1 else []),
        f"load: {load.batch_size} requests decode at {load.context:,} tokens each; steps of up to {load.token_budget:,} tokens",
    ]


def _one(task: "PlanTask", planned: "Planned") -> list[str]:
    layout = planned.layout
    lines = [f"mesh {layout.placement.describe()}"]
    if layout.memory:
        lines += _memory_lines(task, layout.memory)
    if layout.why_not:
        lines.append(f"  this can't be: {layout.why_not}")
    if layout.decode and layout.full:
        lines += ["", *_step_lines(planned, layout.decode, layout.full)]
    return lines + (_compiled_lines(planned.compiled, layout) if planned.compiled else [])


def _memory_lines(task: "PlanTask", memory: "MemoryEstimate") -> list[str]:
    total = task.deployment.device.memory_bytes
    return [
        f"  of each GPU's {_size(total)} the engine uses {_size(memory.limit_bytes)}: weights {_size(memory.weight_bytes)}, temporary {_size(memory.temp_bytes)},",
        f"  KV {memory.kv_tokens:,} tokens a replica, {memory.kv_token_bytes / 1024:.1f} KiB of each on a GPU",
    ]


def _step_lines(planned: "Planned", decode: "StepEstimate", full: "StepEstimate") -> list[str]:
    """Two columns: a step of decodes alone, and one of the full budget."""
    num_stages = planned.layout.placement.stage
    step = "a step" if num_stages == 1 else "a tick"
    rows = [("", "decodes", "full budget")]
    rows.append(("tokens of a microbatch", f"{decode.num_tokens:,}", f"{full.num_tokens:,}"))
    for name, title in PART_NAMES.items():
        if decode.parts[name] or full.parts[name]:
            rows.append((f"  {title}", _ms(decode.parts[name]), _ms(full.parts[name])))
    rows.append(("  host code, meanwhile", _ms(decode.host_s), _ms(full.host_s)))
    rows.append((step, _ms(decode.tick_s), _ms(full.tick_s)))
    if planned.ticks_s:
        decode_s, full_s = planned.ticks_s.values()
        rows.append((f"{step}, talk as compiled", _ms(decode_s), _ms(full_s)))
    if num_stages > 1:
        rows.append((f"a token: {num_stages} ticks", _ms(decode.latency_s), _ms(full.latency_s)))
    rows.append(("tokens a second, all GPUs", f"{decode.tokens_per_s:,.0f}", f"{full.tokens_per_s:,.0f}"))
    for title, read in (("TFLOP a GPU", _flop), ("GB moved a GPU", _moved)):
        rows.append((title, read(decode), read(full)))
    return [_row(*row) for row in rows]


def _flop(step: "StepEstimate") -> str:
    return f"{step.flop / 1e12:.3g}, {step.flop_share:.0%} of peak"


def _moved(step: "StepEstimate") -> str:
    return f"{step.hbm_bytes / 1e9:.3g}, {step.bandwidth_share:.0%} of peak"


def _row(title: str, first: str, second: str) -> str:
    return f"  {title:<30}{first:>22}{second:>22}"


def _compiled_lines(compiled: "CompiledSteps", layout: "Layout") -> list[str]:
    for_whom = "for the GPU" if compiled.is_described else "for a stand-in"
    lines = []
    for name, report, estimate in (
        ("decodes", compiled.decode, layout.decode),
        ("full budget", compiled.full, layout.full),
    ):
        lines += [
            "",
            f"collectives of a step, {name} ({report.bucket}, compiled {for_whom}): {_ms(report.talk_s)} in all",
        ]
        if estimate:
            lines[-1] += f" where the cost model has {_ms(estimate.talk_s)}"
        lines += [f"  {_message(message)}" for message in report.traffic[:MAX_KINDS]]
        if len(report.traffic) > MAX_KINDS:
            rest = report.traffic[MAX_KINDS:]
            lines.append(f"  and {len(rest)} more kinds, {_ms(sum(message.total_s for message in rest))}")
        lines += [f"  {_program(report)}"] if compiled.is_described else []
    return lines


def _message(message: "Traffic") -> str:
    axes = "no axis of the mesh" if message.axes is None else " x ".join(message.axes)
    where = "between hosts" if message.num_hosts > 1 else "within a host"
    loop = ", in a loop" if message.is_in_loop else ""
    return f"{message.count:>4} {message.kind} over {axes}, {where}{loop}: {_size(message.num_bytes)}, {_ms(message.seconds)} each, {_ms(message.total_s)}"


def _program(report: "StepReport") -> str:
    in_place = "all" if report.alias_bytes == report.state_bytes else "NOT all"
    return (
        f"temporary {_size(report.temp_bytes)}; {in_place} of the state in place; {report.num_page_copies} copies of KV pages,"
        f" {report.num_weight_copies} of weights; {report.num_graphs} CUDA graphs"
    )


def _table(planned: "Sequence[Planned]") -> list[str]:
    rows = [("mesh", "weights", "KV tokens", "decode", "full step", "tokens/s", "all-reduce")]
    failed = []
    for each in planned:
        layout = each.layout
        if layout.why_not or not (layout.memory and layout.decode and layout.full):
            failed.append(f"  {layout.placement.describe()}: {layout.why_not}")
            continue
        rows.append(
            (
                layout.placement.describe(),
                _size(layout.memory.weight_bytes),
                f"{layout.memory.kv_tokens:,}",
                _ms(layout.decode.latency_s),
                _ms(layout.full.latency_s),
                f"{layout.full.tokens_per_s:,.0f}",
                f"{layout.decode.talk_s / layout.decode.tick_s:.0%}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [
        "",
        "decode, full step: latency of a token among decodes alone, and in steps of the full budget; tokens/s: of full steps, all GPUs;",
    ]
    lines += ["all-reduce: share of a decode step that goes into talk between GPUs."]
    return lines + (["", "These can't be:", *failed] if failed else [])


def _size(num_bytes: float) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.2f} MiB" if num_bytes >= 2**17 else f"{num_bytes:,.0f} bytes"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.01 else f"{seconds * 1e3:.1f} ms"
