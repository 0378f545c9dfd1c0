"""TPU slices: their names, the public figures of their chips, and the least time that a program can take on one.

That is a roofline: S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model, CACM
2009.
"""

import math
import re
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """One TPU chip, which JAX shows as one device.

    Attributes:
        name: of the generation, such as 'v5e'.
        peak_flops: bfloat16 operations a second, at most.
        memory_bytes: of HBM, as sold.
        usable_bytes: of HBM, what the compiler lets a program have.
        memory_bandwidth: of HBM, bytes a second.
        link_bandwidth: of a link to a neighbouring chip, bytes a second in one direction.
        cores: TensorCores.
        dimensions: of the grid that chips are wired in.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    usable_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    cores: int
    dimensions: int


_GIB = 2**30

# Peak, memory and its bandwidth: the specifications in https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (v4's
# bandwidth is 1,200 GB/s there, and 1,228 in table 4 of Jouppi et al., ISCA 2023). Links: 6 x 50 GB/s for v4 in the
# same table; for the others, the pages' bidirectional bandwidth a chip (400, 1,200 and 800 GB/s) over twice the number
# of links (4, 6 and 4). Usable: what libtpu 0.0.42 names in its error for a program that is too large.
CHIPS = {
    "v4": Chip("v4", 275e12, 32 * _GIB, 30.75 * _GIB, 1228e9, 50e9, 2, 3),
    "v5e": Chip("v5e", 197e12, 16 * _GIB, 15.75 * _GIB, 819e9, 50e9, 1, 2),
    "v5p": Chip("v5p", 459e12, 95 * _GIB, 95.74 * _GIB, 2765e9, 100e9, 2, 3),
    "v6e": Chip("v6e", 918e12, 32 * _GIB, 31.25 * _GIB, 1638e9, 100e9, 1, 2),
}

# The shapes of slices of so many chips, of https://cloud.google.com/tpu/docs/v4 (3 dimensions) and v5e (2).
_SHAPES: dict[int, dict[int, tuple[int, ...]]] = {
    2: {
        1: (1, 1),
        4: (2, 2),
        8: (2, 4),
        16: (4, 4),
        32: (4, 8),
        64: (8, 8),
        128: (8, 16),
        256: (16, 16),
    },
    3: {
        4: (2, 2, 1),
        8: (2, 2, 2),
        16: (2, 2, 4),
        32: (2, 4, 4),
        64: (4, 4, 4),
        128: (4, 4, 8),
        256: (4, 8, 8),
        512: (8, 8, 8),
        1024: (8, 8, 16),
        2048: (8, 16, 16),
    },
}
# Products of float32 that ask for all of its precision are six products of bfloat16 on a TPU.
_PASSES = {"bfloat16": 1, "float32": 6}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6lite": "v6e"}


class Slice(NamedTuple):
    """Chips that are wired together and used as one.

    Attributes:
        name: as it is sold, such as 'v5e-16'; the compiler's where it is sold under none.
        chip: of what kind.
        shape: of the grid, in chips.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """The compiler's name, such as 'v5e:4x4'."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def topology_options(self) -> dict[str, Any]:
        """What `jax.experimental.topologies.get_topology_desc` takes beside the name to show a chip as one device."""
        if self.num_chips == 1:
            return {"chips_per_host_bounds": [1, 1, 1], "num_slices": 1}
        return {"chip_config_name": "megacore"} if self.chip.name == "v4" else {}

    @property
    def exchange_bandwidth(self) -> float:
        """Bytes a second that a chip at a corner can send: a link along each axis with several chips, 0 for one chip.

        Exchanges wait for the slowest chip. Links that close a ring, which the largest slices have, do not count.
        """
        return self.chip.link_bandwidth * sum(side > 1 for side in self.shape)


def find(name: str) -> Slice:
    """The slice of a name: 'v5e-16', 'v5litepod-16', 'v4-32' (32 TensorCores, 16 chips), or 'v4:2x2x4' (chips).

    Raises:
        ValueError: there is no such slice; the message says which there are.
    """
    match = re.fullmatch(r"(v\d+\w*?)(?:-(\d+)|:(\d+(?:x\d+)+))", name.strip().lower())
    generation = _ALIASES.get(match[1], match[1]) if match else ""
    if match is None or generation not in CHIPS:
        raise ValueError(f"--topology={name} is no slice that is known here: {_examples()}")
    chip = CHIPS[generation]
    if match[2]:
        shape = _SHAPES[chip.dimensions].get(int(match[2]) // chip.cores if int(match[2]) % chip.cores == 0 else 0)
        if shape is None:
            raise ValueError(f"--topology={name}: {generation} slices are {', '.join(names(chip))}")
        return Slice(_sold_as(chip, math.prod(shape)), chip, shape)
    shape = tuple(map(int, match[3].split("x")))
    if len(shape) != chip.dimensions or math.prod(shape) == 0:
        example = "x".join(map(str, _SHAPES[chip.dimensions][16]))
        raise ValueError(
            f"--topology={name}: {generation} is wired in {chip.dimensions} dimensions: {generation}:{example}"
        )
    if _SHAPES[chip.dimensions].get(math.prod(shape)) == shape:
        return Slice(_sold_as(chip, math.prod(shape)), chip, shape)
    return Slice(f"{generation}:{'x'.join(map(str, shape))}", chip, shape)


def names(chip: Chip) -> list[str]:
    """The names of a generation's slices, from small to large."""
    return [_sold_as(chip, count) for count in _SHAPES[chip.dimensions]]


def _sold_as(chip: Chip, num_chips: int) -> str:
    return f"{chip.name}-{num_chips * chip.cores}"


def _examples() -> str:
    return "; ".join(f"{', '.join(names(chip)[:4])}, …" for chip in CHIPS.values()) + "; or as v5e:4x4, in chips"


class Estimate(NamedTuple):
    """Seconds of one run of a program; an estimate, of the program at its best.

    Attributes:
        compute: of the operations at the chip's peak.
        memory: of the bytes moved at the memory's full bandwidth.
        exchange: of the bytes sent at the full bandwidth of the links, without their latency.
        total: the larger of the first two, as they overlap, and the third, taken not to.
    """

    compute: float
    memory: float
    exchange: float
    total: float


def estimate(flops: float, moved_bytes: float, sent_bytes: float, piece: Slice, dtype: str) -> Estimate:
    """The roofline of one chip's part of a program.

    Args:
        flops, moved_bytes, sent_bytes: of one chip, in one run.
        piece: the slice.
        dtype: of the products, 'bfloat16' or 'float32'.
    """
    compute = flops * _PASSES[dtype] / piece.chip.peak_flops
    memory = moved_bytes / piece.chip.memory_bandwidth
    exchange = sent_bytes / piece.exchange_bandwidth if piece.num_chips > 1 else 0.0
    return Estimate(compute, memory, exchange, max(compute, memory) + exchange)
