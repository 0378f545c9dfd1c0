"""Reads out of a compiled program's text what its devices exchange."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_TYPE_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(KINDS)}|ragged-all-to-all)(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r" while\(.*?body=%?([\w.\-]+)")
_TURNS = re.compile(r'known_trip_count\\?"?:\s*\{\\?"n\\?":\\?"(\d+)')


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """Exchanges of one kind between devices, in one run of a program.

    Attributes:
        kind: one of `KINDS`.
        count: how many.
        bytes: of their results on one device.
        sent_bytes: what a device sends, if rings are used: of a result of b bytes among n devices, 2 b (n - 1) / n for
            an all-reduce, b (n - 1) / n for an all-gather or all-to-all, b (n - 1) for a reduce-scatter, b for a
            permute.
    """

    kind: str
    count: int
    bytes: int
    sent_bytes: float


def collectives(text: str, turns: int = 1) -> list[Collective]:
    """The exchanges in the text of a compiled program (`Compiled.as_text`), summed by kind, the largest first.

    Args:
        text: of the program that one device runs.
        turns: how often a loop runs whose number of turns the text does not tell.
    """
    devices = re.search(r"num_partitions=(\d+)", text)
    num_devices = int(devices[1]) if devices else 1
    found: dict[str, list[tuple[str, int, int]]] = collections.defaultdict(list)  # (kind, bytes, group size)
    calls: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)  # (computation, how often)
    entry, computation = None, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if head := _COMPUTATION.match(line):
                computation = head[2]
                entry = computation if head[1] else entry
            continue
        if match := _INSTRUCTION.match(line):
            shape, kind, start = match.groups()
            kind = kind.removeprefix("ragged-")
            found[computation].append((kind, _result_bytes(shape, kind, bool(start)), _group_size(line, num_devices)))
        if body := _BODY.search(line):
            known = _TURNS.search(line)
            calls[computation].append((body[1], int(known[1]) if known else turns))
        elif "=%" in line or "_computations={" in line:
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"[\w.\-]+", branches)
            calls[computation] += [(name, 1) for name in called]

    totals: dict[str, tuple[int, int, float]] = {}
    for name, times in _times(entry, calls).items():
        for kind, size, group in found.get(name, ()):
            count, total, sent = totals.get(kind, (0, 0, 0.0))
            totals[kind] = (count + times, total + times * size, sent + times * _sent(kind, size, group))
    listed = [Collective(kind, *sums) for kind, sums in totals.items()]
    return sorted(listed, key=lambda collective: -collective.sent_bytes)


def _times(entry: str | None, calls: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, int]:
    """How often each computation runs in one run of `entry`; of the branches of a conditional, each counts."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for called, repeats in calls.get(name, ()):
            visit(called, count * repeats)

    if entry is not None:
        visit(entry, 1)
    return times


def _sent(kind: str, size: int, group: int) -> float:
    others = group - 1
    return {
        "all-reduce": 2 * size * others / group,
        "all-gather": size * others / group,
        "all-to-all": size * others / group,
        "reduce-scatter": size * others,
        "collective-permute": size,
    }[kind]


def _result_bytes(shape: str, kind: str, started: bool) -> int:
    """The bytes of a result; of one that is waited for later, without what stands beside it in the tuple."""
    arrays = _ARRAY.findall(shape)
    if not started or kind == "all-reduce":
        return result_bytes(shape)
    sizes = [_array_bytes(*array) for array in arrays if array != ("u32", "")]  # that are the wait's, not the data's
    return sum(sizes[len(sizes) // 2 :])  # (operands, results)


def result_bytes(shape: str) -> int:
    """The bytes of a result whose shape the text gives, such as '(f32[2,3]{1,0}, s32[])'."""
    return sum(_array_bytes(*array) for array in _ARRAY.findall(shape))


def _array_bytes(dtype: str, sides: str) -> int:
    bits = _TYPE_BITS.get(dtype)
    if bits is None:
        bits = int(re.findall(r"\d+", dtype)[0])
    count = 1
    for side in filter(None, sides.split(",")):
        count *= int(side.lstrip("<="))
    return count * bits // 8


def _group_size(line: str, num_devices: int) -> int:
    """Of how many devices each exchange is: of {{0,1},{2,3}}, of [2,4]<=[8] or of mesh['x'=4,'y'=2] {'x'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if numbered := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(numbered[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*(?:device_ids=\S+\s*)?\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        size = 1
        for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]):
            size *= int(part) if part else sizes[name]
        return size
    return num_devices
