"""Capacities of Sarathi-Serve's evaluation (arXiv 2403.02310, figures 10 to 13): what each scheduler serves in each cell, and whether the paper's statements hold there."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sarathi_jax.lab.paper_setup import (
    POLICIES,
    RELAXED,
    SLOS,
    STRICT,
    Claim,
    claims,
    deploy,
    load,
    models,
    num_stages,
    paper,
    paper_budget,
    shape_of,
    tbt_slo_s,
)
from sarathi_jax.simulation.capacity import Criterion, KnownTrials, search_capacity
from sarathi_jax.simulation.lengths import FITTED
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.processes import in_processes
from sarathi_jax.simulation.rate_search import Trial

TOLERANCE = 0.15  # of a ratio that the paper's text gives, where there is no pipeline


@dataclass(frozen=True, slots=True)
class Task:
    """One search. label: the scheduler, by the name under which its capacity is looked up; shape: the model's; options: of `deploy`."""

    model: str
    lengths: str
    slo: str
    label: str
    policy: str
    num_requests: int
    shape: ModelShape
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> tuple[object, ...]:
        """What is the same for tasks that differ in nothing but the SLO."""
        return self.model, self.lengths, self.policy, self.num_requests, repr(sorted(self.options.items()))


@dataclass(frozen=True, slots=True)
class Row:
    """requests_per_s: the capacity. at: the trial at it, None if no rate held."""

    model: str
    lengths: str
    slo: str
    label: str
    requests_per_s: float
    at: Trial | None
    num_trials: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Check:
    """A statement, by its number in this project's list where it has one; what was wanted and what was got."""

    name: str
    wanted: str
    got: str
    is_met: bool


def grid_tasks(num_requests: int, only_models: Sequence[str] | None = None) -> list[Task]:
    """The sixteen cells for three schedulers, and what figures 12 and 13 have beside them; the longest ones first. only_models: of these alone."""
    tasks = [task for task in _all_tasks(num_requests) if only_models is None or task.model in only_models]
    return sorted(tasks, key=lambda task: (task.policy == "sarathi", num_stages(task.model) == 1))


def _all_tasks(num_requests: int) -> list[Task]:
    tasks = [
        Task(model, lengths, slo, policy, policy, num_requests, shape_of(model), _budget(policy, model, slo))
        for model in models()
        for lengths in FITTED
        for slo in SLOS
        for policy in POLICIES
    ]
    for model in (each for each in models() if num_stages(each) == 1):
        other = {STRICT: RELAXED, RELAXED: STRICT}
        tasks += [
            Task(
                model,
                "sharegpt",
                slo,
                f"sarathi {slo_of} budget",
                "sarathi",
                num_requests,
                shape_of(model),
                _budget("sarathi", model, slo_of),
            )
            for slo, slo_of in other.items()
        ]
        tasks += [
            Task(
                model,
                "sharegpt",
                STRICT,
                f"vllm batch {batch}",
                "vllm",
                num_requests,
                shape_of(model),
                {"max_num_seqs": batch},
            )
            for batch in (32, 64)
        ]
    tasks += [
        Task(
            "falcon-180b",
            "sharegpt",
            slo,
            "vllm tensor=8",
            "vllm",
            num_requests,
            shape_of("falcon-180b"),
            {"mesh": {"tensor": 8, "stage": 1}},
        )
        for slo in SLOS
    ]
    return tasks


def _budget(policy: str, model: str, slo: str) -> dict[str, Any]:
    return {"token_budget": paper_budget(model, slo)} if policy == "sarathi" else {}


def search(task: Task, known: KnownTrials | None = None) -> Row:
    """The capacity of one task. known: trials of the same engine under the same load."""
    engine = deploy(task.model, task.lengths, task.policy, shape=task.shape, **task.options)
    criterion = Criterion(tbt_slo_s=tbt_slo_s(task.model, task.slo))
    guess = paper()["models"][task.model]["guess_per_s"]
    guess *= {"sharegpt": 1.0, "arxiv": 0.35}[task.lengths] * {"sarathi": 1.0, "vllm": 0.4, "orca": 0.3}[task.policy]
    found = search_capacity(engine, load(task.lengths, task.num_requests), criterion, guess=guess, known=known)
    return Row(task.model, task.lengths, task.slo, task.label, found.requests_per_s, found.at, len(found.trials))


def search_alike(tasks: Sequence[Task]) -> list[Row]:
    """The capacities of one engine under one load for several SLOs: the laxest first, whose trials tell most about the others."""
    known, rows = KnownTrials(), dict[int, Row]()
    for place in sorted(range(len(tasks)), key=lambda place: -tbt_slo_s(tasks[place].model, tasks[place].slo)):
        rows[place] = search(tasks[place], known)
    return [rows[place] for place in range(len(tasks))]


def run_grid(tasks: Sequence[Task], *, num_processes: int, on_done: Callable[[int, Row], None] | None = None) -> "Grid":
    """All of it. on_done: told of each task's number and row as they come."""
    groups = defaultdict[tuple[object, ...], list[int]](list)
    for number, task in enumerate(tasks):
        groups[task.engine].append(number)
    numbers, rows = list(groups.values()), dict[int, Row]()

    def take(group: int, found: list[Row]) -> None:
        for number, row in zip(numbers[group], found, strict=True):
            rows[number] = row
            if on_done is not None:
                on_done(number, row)

    alike = [[tasks[number] for number in group] for group in numbers]
    in_processes(search_alike, alike, num_processes=num_processes, on_done=take)
    return Grid([rows[number] for number in range(len(tasks))])


class Grid:
    """Rows by what they are of."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_key = {(row.model, row.lengths, row.slo, row.label): row for row in self.rows}
        self.models = [model for model in models() if any(row.model == model for row in self.rows)]

    def capacity(self, model: str, lengths: str, slo: str, label: str) -> float:
        """Requests a second. Raises: KeyError if that was not searched."""
        return self._by_key[model, lengths, slo, label].requests_per_s

    def ratio(self, model: str, lengths: str, slo: str, over: str) -> float:
        """Sarathi's capacity over a baseline's; infinity where the baseline keeps the SLO at no rate."""
        below = self.capacity(model, lengths, slo, over)
        return self.capacity(model, lengths, slo, "sarathi") / below if below else float("inf")

    def cells(self) -> list[tuple[str, str, str]]:
        """Model, lengths, SLO: sixteen if all models are there."""
        return [(model, lengths, slo) for model in self.models for lengths in FITTED for slo in SLOS]

    def checks(self) -> list[Check]:
        """The paper's statements about capacity."""
        return [*self._claim_checks(), self._order_check(), *self._ratio_checks(), *self._budget_checks()]

    def _claim_checks(self) -> list[Check]:
        return [self._claim_check(claim) for claim in claims() if claim.model in self.models]

    def _claim_check(self, claim: Claim) -> Check:
        got = self.ratio(claim.model, claim.lengths, claim.slo, claim.over)
        name = f"F19 {claim.model} {claim.lengths} {claim.slo}: sarathi over {claim.over} ({claim.where})"
        if (
            num_stages(claim.model) > 1
        ):  # read for its direction: what is simulated of a pipeline is said in docs/paper.md
            return Check(name, f"above 1; the paper has {claim.ratio:g}", f"{got:.2f}", got > 1)
        is_met = abs(got / claim.ratio - 1) <= TOLERANCE
        return Check(name, f"{claim.ratio:g} within {TOLERANCE:.0%}", f"{got:.2f}", is_met)

    def _order_check(self) -> Check:
        """Sarathi never below a baseline."""
        wrong = [
            "/".join(cell)
            for cell in self.cells()
            if any(self.capacity(*cell, "sarathi") < self.capacity(*cell, over) for over in ("orca", "vllm"))
        ]
        num_cells = len(self.cells())
        got = f"{num_cells - len(wrong)} of {num_cells} {', '.join(wrong)}".strip()
        return Check("F19 cells in which sarathi is at or above both baselines", f"all {num_cells}", got, not wrong)

    def _ratio_checks(self) -> list[Check]:
        wanted = [
            ("F19", "yi-34b", STRICT, "vllm", 3.0),
            ("F19", "yi-34b", STRICT, "orca", 3.0),
            ("F19", "mistral-7b", STRICT, "vllm", 2.0),
            ("F19", "yi-34b", RELAXED, "vllm", 1.3),
            ("F19", "mistral-7b", RELAXED, "vllm", 1.3),
            ("F22", "falcon-180b", RELAXED, "vllm", 1.25),
            ("F22", "falcon-180b", STRICT, "vllm", 3.0),
        ]
        checks: list[Check] = []
        for number, model, slo, over, least in (each for each in wanted if each[1] in self.models):
            got = self.ratio(model, "sharegpt", slo, over)
            name = f"{number} {model} sharegpt {slo}: sarathi over {over}"
            checks.append(Check(name, f"at least {least:g}", f"{got:.2f}", got >= least))
        return checks

    def _budget_checks(self) -> list[Check]:
        """Figure 12: what the batch size does to vllm, and a wrong budget to sarathi."""
        checks: list[Check] = []
        for model in (each for each in self.models if num_stages(each) == 1):
            cell = model, "sharegpt", STRICT
            batches = [self.capacity(*cell, label) for label in ("vllm batch 32", "vllm batch 64", "vllm")]
            got = max(batches) / min(batches) - 1 if min(batches) else float("inf")
            name = f"F20 {model}: vllm at the strict SLO with batches of 32, 64, 128"
            checks.append(Check(name, "within 10 %", f"{got:.1%}", got <= 0.1))
            vllm, orca = (self.capacity(model, "sharegpt", RELAXED, policy) for policy in ("vllm", "orca"))
            checks.append(
                Check(f"F20 {model}: vllm over orca at the relaxed SLO", "above 1", f"{vllm / orca:.2f}", vllm > orca)
            )
            share = self.capacity(*cell, "sarathi relaxed budget") / self.capacity(*cell, "sarathi")
            name = f"F21 {model}: the large budget at the strict SLO, of what the small one serves"
            checks.append(Check(name, "at most 0.5", f"{share:.2f}", share <= 0.5))
            large = self.capacity(model, "sharegpt", RELAXED, "sarathi")
            small = self.capacity(model, "sharegpt", RELAXED, "sarathi strict budget")
            name = f"F21 {model}: the large budget at the relaxed SLO, of what the small one serves"
            checks.append(Check(name, "at least 1", f"{large / small:.2f}", large >= small))
        return checks


def grid_table(grid: Grid) -> str:
    """One line a cell: capacities, ratios, and what the paper's text has."""
    said = {(each.model, each.lengths, each.slo, each.over): each.ratio for each in claims()}
    lines = [
        f"{'cell':<34}{'orca':>8}{'vllm':>8}{'sarathi':>9}{'x orca':>9}{'paper':>8}{'x vllm':>9}{'paper':>8}{'P99 TTFT':>11}{'drift':>8}"
    ]
    for cell in grid.cells():
        capacities = [grid.capacity(*cell, policy) for policy in POLICIES]
        at = next(row.at for row in grid.rows if (row.model, row.lengths, row.slo, row.label) == (*cell, "sarathi"))
        ratios = "".join(
            f"{grid.ratio(*cell, over):>9.2f}{said.get((*cell, over), '-'):>8}" for over in ("orca", "vllm")
        )
        tail = f"{at.p99_ttft_s:>10.1f}s{at.backlog_drift:>8.2f}" if at else ""
        name = f"{cell[0]} {cell[1]} {cell[2]} {tbt_slo_s(cell[0], cell[2]):g} s"
        lines.append(f"{name:<34}{capacities[0]:>8.3f}{capacities[1]:>8.3f}{capacities[2]:>9.3f}{ratios}{tail}")
    return "\n".join(lines)


def check_table(checks: Sequence[Check]) -> str:
    return "\n".join(
        f"{'ok ' if each.is_met else 'NOT'}  {each.name}: {each.got} (wanted: {each.wanted})" for each in checks
    )
