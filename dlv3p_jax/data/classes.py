"""The classes of public data sets, and what the values of Cityscapes' label files mean.

Nothing here imports TensorFlow: worker processes run it.
"""

from typing import NamedTuple

import numpy as np

from dlv3p_jax.data import viz
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import count_values, list_counts
from dlv3p_jax.data.labels import read_label

IGNORED = 255


class Classes(NamedTuple):
    """The names and colours of a data set's classes, class 0 first."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


class Label(NamedTuple):
    """A class of Cityscapes: the value in *_labelIds.png, the index that is trained on, and the official colour."""

    name: str
    id: int
    train_id: int
    color: tuple[int, int, int]


# As defined by the authors of the data (cityscapesScripts, helpers/labels.py); IGNORED is trained and scored nowhere.
CITYSCAPES_LABELS = (
    Label("unlabeled", 0, IGNORED, (0, 0, 0)),
    Label("ego vehicle", 1, IGNORED, (0, 0, 0)),
    Label("rectification border", 2, IGNORED, (0, 0, 0)),
    Label("out of roi", 3, IGNORED, (0, 0, 0)),
    Label("static", 4, IGNORED, (0, 0, 0)),
    Label("dynamic", 5, IGNORED, (111, 74, 0)),
    Label("ground", 6, IGNORED, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, IGNORED, (250, 170, 160)),
    Label("rail track", 10, IGNORED, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, IGNORED, (180, 165, 180)),
    Label("bridge", 15, IGNORED, (150, 100, 100)),
    Label("tunnel", 16, IGNORED, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, IGNORED, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, IGNORED, (0, 0, 90)),
    Label("trailer", 30, IGNORED, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
    Label("license plate", -1, IGNORED, (0, 0, 142)),  # -1 is 255 where a file of 8 bits holds it
)
_TRAINED = sorted((label for label in CITYSCAPES_LABELS if label.train_id != IGNORED), key=lambda label: label.train_id)
CITYSCAPES = Classes(tuple(label.name for label in _TRAINED), tuple(label.color for label in _TRAINED))
_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC2012 = Classes(_VOC_NAMES, tuple(map(tuple, viz.palette(len(_VOC_NAMES)).tolist())))


def _classes(text: str) -> Classes:
    """Of "name rrggbb, name rrggbb, ..."."""
    items = [" ".join(item.split()).rsplit(" ", 1) for item in text.split(",")]
    names, colors = zip(*items, strict=True)
    return Classes(names, tuple((int(color[:2], 16), int(color[2:4], 16), int(color[4:], 16)) for color in colors))


# As MMSegmentation has them, whose published models go by them.
_ADE20K = _classes(
    """
    wall 787878, building b47878, sky 06e6e6, floor 503232, tree 04c803, ceiling 787850, road 8c8c8c, bed cc05ff,
    windowpane e6e6e6, grass 04fa07, cabinet e005ff, sidewalk ebff07, person 96053d, earth 787846, door 08ff33, table
    ff0652, mountain 8fff8c, plant ccff04, curtain ff3307, chair cc4603, car 0066c8, water 3de6fa, painting ff0633,
    sofa 0b66ff, shelf ff0747, house ff09e0, sea 0907e6, mirror dcdcdc, rug ff095c, field 7009ff, armchair 08ffd6,
    seat 07ffe0, fence ffb806, desk 0aff47, rock ff290a, wardrobe 07ffff, lamp e0ff08, bathtub 6608ff, railing ff3d06,
    cushion ffc207, base ff7a08, box 00ff14, column ff0829, signboard ff0599, chest of drawers 0633ff, counter eb0cff,
    sand a09614, sink 00a3ff, skyscraper 8c8c8c, fireplace fa0a0f, refrigerator 14ff00, grandstand 1fff00, path
    ff1f00, stairs ffe000, runway 99ff00, case 0000ff, pool table ff4700, pillow 00ebff, screen door 00adff, stairway
    1f00ff, river 0bc8c8, bridge ff5200, bookcase 00fff5, blind 003dff, coffee table 00ff70, toilet 00ff85, flower
    ff0000, book ffa300, hill ff6600, bench c2ff00, countertop 008fff, stove 33ff00, palm 0052ff, kitchen island
    00ff29, computer 00ffad, swivel chair 0a00ff, boat adff00, bar 00ff99, arcade machine ff5c00, hovel ff00ff, bus
    ff00f5, towel ff0066, light ffad00, truck ff0014, tower ffb8b8, chandelier 001fff, awning 00ff3d, streetlight
    0047ff, booth ff00cc, television receiver 00ffc2, airplane 00ff52, dirt track 000aff, apparel 0070ff, pole 3300ff,
    land 00c2ff, bannister 007aff, escalator 00ffa3, ottoman ff9900, bottle 00ff0a, buffet ff7000, poster 8fff00,
    stage 5200ff, van a3ff00, ship ffeb00, fountain 08b8aa, conveyer belt 8500ff, canopy 00ff5c, washer b800ff,
    plaything ff001f, swimming pool 00b8ff, stool 00d6ff, barrel ff0070, basket 5cff00, waterfall 00e0ff, tent 70e0ff,
    bag 46b8a0, minibike a300ff, cradle 9900ff, oven 47ff00, ball ff00a3, food ffcc00, step ff008f, tank 00ffeb, trade
    name 85ff00, microwave ff00eb, pot f500ff, animal ff007a, bicycle fff500, lake 0abed4, dishwasher d6ff00, screen
    00ccff, blanket 1400ff, sculpture ffff00, hood 0099ff, sconce 0029ff, vase 00ffcc, traffic light 2900ff, tray
    29ff00, ashcan ad00ff, fan 00f5ff, pier 4700ff, crt screen 7a00ff, plate 00ffb8, monitor 005cff, bulletin board
    b8ff00, shower 0085ff, radiator ffd600, glass 19c2c2, clock 66ff00, flag 5c00ff
    """
)
_PASCAL_CONTEXT = _classes(
    """
    background 787878, aeroplane b47878, bag 06e6e6, bed 503232, bedclothes 04c803, bench 787850, bicycle 8c8c8c, bird
    cc05ff, boat e6e6e6, book 04fa07, bottle e005ff, building ebff07, bus 96053d, cabinet 787846, car 08ff33, cat
    ff0652, ceiling 8fff8c, chair ccff04, cloth ff3307, computer cc4603, cow 0066c8, cup 3de6fa, curtain ff0633, dog
    0b66ff, door ff0747, fence ff09e0, floor 0907e6, flower dcdcdc, food ff095c, grass 7009ff, ground 08ffd6, horse
    07ffe0, keyboard ffb806, light 0aff47, motorbike ff290a, mountain 07ffff, mouse e0ff08, person 6608ff, plate
    ff3d06, platform ffc207, pottedplant ff7a08, road 00ff14, rock ff0829, sheep ff0599, shelves 0633ff, sidewalk
    eb0cff, sign a09614, sky 00a3ff, snow 8c8c8c, sofa fa0a0f, table 14ff00, track 1fff00, train ff1f00, tree ffe000,
    truck 99ff00, tvmonitor 0000ff, wall ff4700, water 00ebff, window 00adff, wood 1f00ff
    """
)
_LOVEDA = _classes(
    """
    background ffffff, building ff0000, road ffff00, water 0000ff, barren 9f81b7, forest 00ff00, agricultural ffc380
    """
)
_ISPRS = _classes(
    """
    impervious_surface ffffff, building 0000ff, low_vegetation 00ffff, tree 00ff00, car ffff00, clutter ff0000
    """
)
_ISAID = _classes(
    """
    background 000000, ship 00003f, store_tank 003f3f, baseball_diamond 003f00, tennis_court 003f7f, basketball_court
    003fbf, Ground_Track_Field 003fff, Bridge 007f3f, Large_Vehicle 007f7f, Small_Vehicle 00007f, Helicopter 0000bf,
    Swimming_pool 0000ff, Roundabout 00bf7f, Soccer_ball_field 007fbf, plane 007fff, Harbor 00649b
    """
)
_MAPILLARY = _classes(
    """
    Bird a52a2a, Ground Animal 00c000, Curb c4c4c4, Fence be9999, Guard Rail b4a5b4, Barrier 5a7896, Wall 66669c, Bike
    Lane 8040ff, Crosswalk - Plain 8c8cc8, Curb Cut aaaaaa, Parking faaaa0, Pedestrian Area 606060, Rail Track e6968c,
    Road 804080, Service Lane 6e6e6e, Sidewalk f423e8, Bridge 966464, Building 464646, Tunnel 96785a, Person dc143c,
    Bicyclist ff0000, Motorcyclist ff0064, Other Rider ff00c8, Lane Marking - Crosswalk c88080, Lane Marking - General
    ffffff, Mountain 40aa40, Sand e6a032, Sky 4682b4, Snow beffff, Terrain 98fb98, Vegetation 6b8e23, Water 00aa1e,
    Banner ffff80, Bench fa001e, Bike Rack 648cb4, Billboard dcdcdc, Catch Basin dc8080, CCTV Camera de2828, Fire
    Hydrant 64aa1e, Junction Box 282828, Mailbox 212121, Manhole 6480a0, Phone Booth 8e0000, Pothole 466496, Street
    Light d2aa64, Pole 999999, Traffic Sign Frame 808080, Utility Pole 000050, Traffic Light faaa1e, Traffic Sign
    (Back) c0c0c0, Traffic Sign (Front) dcdc00, Trash Can 8c8c14, Bicycle 770b20, Boat 9600ff, Bus 003c64, Car 00008e,
    Caravan 00005a, Motorcycle 0000e6, On Rails 005064, Other Vehicle 804040, Trailer 00006e, Truck 000046, Wheeled
    Slow 0000c0, Car Mount 202020, Ego Vehicle 780a0a, Unlabeled 000000
    """
)
# By the name of the data set here.
CLASSES = {
    "cityscapes": CITYSCAPES,
    "voc2012": VOC2012,
    "ade20k": _ADE20K,
    "pascal_context": _PASCAL_CONTEXT,
    "pascal_context_59": Classes(_PASCAL_CONTEXT.names[1:], _PASCAL_CONTEXT.palette[1:]),  # without the background
    "loveda": _LOVEDA,
    "potsdam": _ISPRS,
    "vaihingen": _ISPRS,
    "isaid": _ISAID,
    "mapillary": Classes(_MAPILLARY.names[:-1], _MAPILLARY.palette[:-1]),  # without "Unlabeled"
}
CITYSCAPES_ADVICE = (
    "Cityscapes has train ids 0..18 and 255, labelIds 0..33 and 255: take the label files as distributed"
)

_UNKNOWN = 254  # in the table below: no label has this value


def _train_id_table() -> np.ndarray:
    table = np.full(256, _UNKNOWN, np.uint8)
    for label in CITYSCAPES_LABELS:
        table[label.id % 256] = label.train_id
    return table


_TRAIN_IDS = _train_id_table()  # by labelId as stored in 8 bits
CITYSCAPES_IDS = np.array([label.id for label in _TRAINED], np.uint8)  # by train id


def to_train_ids(label_ids: np.ndarray) -> np.ndarray:
    """labelIds, integers [H, W], as train ids: uint8 [H, W] of 0..18 and 255.

    Raises:
        DatasetError: a value that no class of Cityscapes has.
    """
    train_ids = _TRAIN_IDS[np.where(label_ids > 255, _UNKNOWN, label_ids)]
    unknown = label_ids[train_ids == _UNKNOWN]
    if unknown.size:
        found = [(str(value), count) for value, count in count_values(unknown)]
        raise DatasetError(f"{list_counts(found)} outside the labelIds of Cityscapes; {CITYSCAPES_ADVICE}")
    return train_ids


def read_train_ids(path: str) -> np.ndarray:
    """The train ids, uint8 [H, W], of a *_labelIds.png; what a *_labelTrainIds.png holds, as it is.

    Raises:
        DatasetError: see `labels.decode` and `to_train_ids`.
    """
    values = read_label(path, advice=CITYSCAPES_ADVICE)
    if path.endswith("_labelTrainIds.png"):
        return values
    try:
        return to_train_ids(values)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
