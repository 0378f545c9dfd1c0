"""Names of TPU slices, against the tables of Google's documentation."""

import pytest

from dlv3p_jax.performance import tpu


@pytest.mark.parametrize(
    ("name", "sold_as", "topology", "chips"),
    [
        ("v4-8", "v4-8", "v4:2x2x1", 4),  # sold by TensorCores, of which a chip has two
        ("v4-32", "v4-32", "v4:2x2x4", 16),
        ("v5p-8", "v5p-8", "v5p:2x2x1", 4),
        ("v5e-1", "v5e-1", "v5e:1x1", 1),  # sold by chips
        ("v5e-16", "v5e-16", "v5e:4x4", 16),
        ("v5litepod-16", "v5e-16", "v5e:4x4", 16),
        ("V6E-8", "v6e-8", "v6e:2x4", 8),
        ("v6e:2x4", "v6e-8", "v6e:2x4", 8),
        ("v4:2x2x4", "v4-32", "v4:2x2x4", 16),
        ("v5e:8x2", "v5e:8x2", "v5e:8x2", 16),  # a shape that is not sold under a name of its own
    ],
)
def test_names(name, sold_as, topology, chips):
    piece = tpu.find(name)
    assert (piece.name, piece.topology, piece.num_chips) == (sold_as, topology, chips)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", r"--topology=v9-8 is no slice that is known here: v4-8, .*v5e-16"),
        ("16", "is no slice that is known here"),
        ("v5e-12", "v5e slices are v5e-1, v5e-4, v5e-8, v5e-16"),
        ("v4-9", "v4 slices are v4-8, v4-16"),
        ("v4-4", "v4 slices are v4-8, v4-16"),  # two chips
        ("v5e:2x2x4", "v5e is wired in 2 dimensions: v5e:4x4"),
        ("v4:0x2x2", "v4 is wired in 3 dimensions: v4:2x2x4"),
    ],
)
def test_unknown_names_end_in_a_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        tpu.find(name)
    assert "\n" not in str(error.value)


def test_every_name_leads_to_itself():
    names = [name for chip in tpu.CHIPS.values() for name in tpu.names(chip)]
    assert [tpu.find(name).name for name in names] == names
    assert [tpu.find(tpu.find(name).topology).name for name in names] == names


def test_what_the_corner_of_a_slice_sends():
    bandwidth = {name: tpu.find(name).exchange_bandwidth for name in ("v5e-1", "v5e-8", "v4-8", "v4-32", "v6e-8")}
    # One link along each axis: 50 GB/s in one direction for v4 and v5e, 100 for v6e.
    assert bandwidth == {"v5e-1": 0, "v5e-8": 100e9, "v4-8": 100e9, "v4-32": 150e9, "v6e-8": 200e9}
