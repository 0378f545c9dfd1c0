"""The least time that a program can take on a chip, from what it computes, moves and exchanges: a roofline.

S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model, CACM 2009.
"""

from typing import NamedTuple

# Products of float32 that ask for all of its precision are six products of bfloat16 on a TPU.
_PASSES = {"bfloat16": 1, "float32": 6}


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


def estimate(flops: float, moved_bytes: float, sent_bytes: float, piece, dtype: str) -> Estimate:
    """The roofline of one chip's part of a program.

    Args:
        flops, moved_bytes, sent_bytes: of one chip, in one run.
        piece: the `slices.Slice`.
        dtype: of the products, 'bfloat16' or 'float32'.
    """
    compute = flops * _PASSES[dtype] / piece.chip.peak_flops
    memory = moved_bytes / piece.chip.memory_bandwidth
    exchange = sent_bytes / piece.exchange_bandwidth if piece.num_chips > 1 else 0.0
    return Estimate(compute, memory, exchange, max(compute, memory) + exchange)
