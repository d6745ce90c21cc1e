"""Collectives in a compiled program's optimized HLO: what kind, how many bytes, among which devices, along which axes of the mesh. Text in, numbers out.

Devices are numbered by their place in the mesh's order, as XLA's partitions are. Groups are written in four ways: as lists, `{{0,1},{2,3}}`; as a range
folded and transposed, `[2,4]<=[4,2]T(1,0)`; as axes of a mesh, `mesh['a'=2,'b'=4] {'b'}`, whose names are XLA's and need not be ours; and, of permutes, as
pairs. A collective in the body of a loop counts once, however often the loop runs, and is marked.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4} | {
    f"{kind}{bits}": bits for kind in ("s", "u", "f", "bf") for bits in (8, 16, 32, 64)
}

_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Collective:
    """One in the program.

    shape: of what comes out, without layouts, as in "f32[64,16]". num_bytes: of the whole message on a device: reduced, gathered, before it is scattered, or sent.
    groups: devices that take part together; of a permute, pairs of sender and receiver. count: places it is called from. is_in_loop: it runs more often than it counts.
    """

    kind: str
    shape: str
    num_bytes: int
    groups: Groups
    count: int = 1
    is_in_loop: bool = False


def read_collectives(text: str, num_devices: int) -> list[Collective]:
    """Each one that the program runs, in the order of the text. Raises: ValueError if a group is written in a way that is not known."""
    program = _Program(text)
    found = []
    for computation, line in program.lines:
        match = _INSTRUCTION.match(line)
        if match and program.num_calls(computation):
            kind, groups = match[2], _groups(line, num_devices)
            shape = _result(_LAYOUT.sub("", match[1]), kind, is_start=match[3] is not None)
            num_bytes = _num_bytes(shape) * (len(groups[0]) if kind == "reduce-scatter" else 1)
            is_in_loop = computation in program.in_loops
            found.append(Collective(kind, shape, num_bytes, groups, program.num_calls(computation), is_in_loop))
    return found


def axes_of(collective: Collective, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """The mesh axes that it runs along, or None if its groups are no cut of the mesh. mesh: axis -> size, in order."""
    ids = np.arange(int(np.prod([*mesh.values()]))).reshape(tuple(mesh.values()))
    names = [name for name, size in mesh.items() if size > 1]
    if collective.kind == "collective-permute":
        places = {int(device): place for place, device in np.ndenumerate(ids)}
        moved = {
            name
            for sender, receiver in collective.groups
            for name, before, after in zip(mesh, places[sender], places[receiver], strict=True)
            if before != after
        }
        return tuple(name for name in names if name in moved)
    wanted = {frozenset(group) for group in collective.groups}
    for axes in (axes for size in range(len(names) + 1) for axes in itertools.combinations(names, size)):
        dimensions = [list(mesh).index(axis) for axis in axes]
        cut = np.moveaxis(ids, dimensions, range(-len(axes), 0)) if axes else ids[..., None]
        rows = cut.reshape(-1, int(np.prod([mesh[axis] for axis in axes])))
        if {frozenset(map(int, row)) for row in rows} == wanted:
            return axes
    return None


class _Program:
    """Which computation each line stands in, how often each of them is called, and which are part of a loop."""

    def __init__(self, text: str) -> None:
        self.lines: list[tuple[str, str]] = []
        self._callers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._entry = ""
        callees, bodies, current = defaultdict[str, set[str]](set), set[str](), ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = header[2]
                self._entry = current if header[1] else self._entry
                continue
            self.lines.append((current, line))
            for role, names in _CALLED.findall(line):
                for name in re.findall(r"[\w.-]+", names):
                    self._callers[name][current] += 1
                    callees[current].add(name)
                    if role == "body":
                        bodies.add(name)
        self.in_loops = _reachable(bodies, callees)
        self.num_calls = cache(self._num_calls)

    def _num_calls(self, computation: str) -> int:
        """From the entry, along every way; text without an entry is all taken as run once."""
        if computation == self._entry or not self._entry:
            return 1
        return sum(count * self.num_calls(caller) for caller, count in self._callers[computation].items())


def _reachable(start: set[str], callees: Mapping[str, set[str]]) -> set[str]:
    found, left = set[str](), list(start)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += callees.get(name, ())
    return found


# ---- shapes ----


def _result(shape: str, kind: str, *, is_start: bool) -> str:
    """What comes out. A start's tuple holds what goes in, what comes out, and may hold more; but an all-reduce's may hold just what comes out."""
    parts = list(_parts(shape))
    if not is_start or len(parts) < 2:
        return shape
    has_operands = parts[0].startswith("(") or kind in ("all-gather", "collective-permute", "reduce-scatter")
    return parts[1] if has_operands else shape


def _parts(shape: str) -> Iterator[str]:
    """The elements of a tuple's shape; nothing of an array's."""
    if not shape.startswith("("):
        return
    depth, begin = 0, 1
    for index, letter in enumerate(shape):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if (letter == "," and depth == 1) or depth == 0:
            yield shape[begin:index].strip()
            begin = index + 1


def _num_bytes(shape: str) -> int:
    bits = 0
    for kind, sizes in _ARRAY.findall(shape):
        number = 1
        for size in sizes.split(",") if sizes else ():
            number *= int(size)
        bits += number * ITEM_BITS[kind]
    return bits // 8


# ---- groups ----

_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_FOLDED = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_AXIS = re.compile(r"'?([^',=]+?)'?(?::\((\d+)\)(\d+))?$")


def _groups(line: str, num_devices: int) -> Groups:
    if match := _MESH.search(line):
        return _mesh_groups(*match.groups())
    if match := _LISTS.search(line):
        groups = tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1]))
        return groups or (tuple(range(num_devices)),)
    _, has_groups, written = line.partition("replica_groups=")
    if has_groups and (match := _FOLDED.match(written)):
        return _rows(_folded(*match.groups()))
    raise ValueError(
        f"groups of a collective must be lists, a folded range or axes of a mesh, got {line.strip()[:300]!r}"
    )


def _mesh_groups(axes: str, device_ids: str | None, along: str) -> Groups:
    sizes = dict(part.rsplit("=", 1) for part in axes.split(","))
    names, shape = [name.strip("' ") for name in sizes], [int(size) for size in sizes.values()]
    ids = np.arange(int(np.prod(shape)))
    if device_ids:
        match = _FOLDED.search(device_ids)
        ids = _folded(*match.groups()) if match else np.array(_numbers(device_ids))
    # Every axis becomes three, of which a part of an axis is the middle one.
    split, chosen = [(1, size, 1) for size in shape], []
    for part in filter(None, (each.strip() for each in along.split(","))):
        name, before, size = _AXIS.fullmatch(part).groups()  # pyright: ignore[reportOptionalMemberAccess]
        index = names.index(name)
        if before:
            split[index] = (int(before), int(size), shape[index] // (int(before) * int(size)))
        chosen.append(3 * index + 1)
    cut = ids.reshape([size for each in split for size in each])
    return _rows(
        np.moveaxis(cut, chosen, range(-len(chosen), 0)).reshape(-1, int(np.prod([cut.shape[each] for each in chosen])))
    )


def _folded(shape: str, folded: str, order: str | None) -> np.ndarray:
    """i64[shape]: numbers from 0 on, folded, transposed, and folded anew."""
    sizes = _numbers(folded)
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(_numbers(shape))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
