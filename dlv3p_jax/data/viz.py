"""Label maps as people can read them: colours, overlays, palette PNGs, contact sheets. On the host, in NumPy."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from dlv3p_jax.data import fonts, pictures

IGNORED = (255, 255, 255)  # the colour of ignored pixels; no class of `palette` has it
_INK, _PAPER, _OUTLINE = (20, 20, 20), (246, 246, 246), (150, 150, 150)
_MARGIN = 12

Palette = Sequence[Sequence[int]] | np.ndarray


def palette(num_classes: int) -> np.ndarray:
    """Pascal VOC's colour map, uint8 `[num_classes, 3]`.

    Bits 0, 3, 6 of the index become the high bits of red, bits 1, 4, 7 of green, bits 2, 5 of blue; class 0 is black.
    """
    if not 0 < num_classes <= 256:
        raise ValueError(f"num_classes = {num_classes}: a palette has 1 to 256 colours")
    index = np.arange(num_classes)[:, None]
    channel = np.arange(3)
    return np.add.reduce([(index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)]).astype(np.uint8)


def class_colors(num_classes: int, known: Mapping[int, Sequence[int]] | None = None) -> list[list[int]]:
    """The `known` colours of classes, by index, black for class 0 if it has none, and others that are told apart.

    Each further one is, of colours neither pale nor dark nor glaring, that which lies farthest in CIELAB from white,
    black, the known and those before it: 45 for 12 classes and 36 for 24, where `palette` has 12 and 9.
    """
    colors = {index: list(map(int, color)) for index, color in (known or {}).items()}
    if 0 not in colors and [0, 0, 0] not in colors.values():
        colors[0] = [0, 0, 0]
    candidates, lightness, chroma = _candidates()
    candidates = candidates[(lightness >= 35) & (lightness <= 90) & (chroma <= 90)]
    places, taken = _lab(candidates), _lab([IGNORED, (0, 0, 0), *colors.values()])
    distances = np.linalg.norm(places[:, None] - taken, axis=-1).min(axis=1)
    for index in range(num_classes):
        if index not in colors:
            farthest = int(distances.argmax())
            colors[index] = candidates[farthest].tolist()
            distances = np.minimum(distances, np.linalg.norm(places - places[farthest], axis=-1))
    return [colors[index] for index in range(num_classes)]


def free_colors(palette: Palette, number: int) -> list[tuple[int, ...]]:
    """Glaring colours for what is no class; each lies farthest in CIELAB from the palette, white, those before it."""
    candidates, lightness, chroma = _candidates()
    candidates = candidates[(lightness >= 45) & (lightness <= 90) & (chroma >= 60)]
    places, taken, found = _lab(candidates), _lab([IGNORED, *np.asarray(palette).tolist()]), []
    for _ in range(number):
        farthest = int(np.linalg.norm(places[:, None] - taken, axis=-1).min(axis=1).argmax())
        found.append(tuple(candidates[farthest].tolist()))
        taken = np.concatenate([taken, places[farthest : farthest + 1]])
    return found


def _candidates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours to choose from, `[N, 3]` in 0..255, and how light they are and how far from grey, in CIELAB."""
    colors = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *hue = _lab(colors).T
    return colors, lightness, np.hypot(*hue)


def _lab(colors) -> np.ndarray:
    """sRGB colours of 0..255, `[..., 3]`, in CIELAB (white point D65)."""
    linear = np.asarray(colors) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.transpose(to_xyz) / (0.95047, 1.0, 1.08883)
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colorize(label: np.ndarray, palette: Palette) -> np.ndarray:
    """The classes' colours, `IGNORED` outside the palette: integers `[..., H, W]` to uint8 `[..., H, W, 3]`."""
    label = np.asarray(label)
    table = np.concatenate([_as_table(palette), _as_table([IGNORED])])
    ignored = len(table) - 1
    return table[np.where((label >= 0) & (label < ignored), label, ignored)]


def overlay(image: np.ndarray, label: np.ndarray, palette: Palette, alpha: float = 0.5) -> np.ndarray:
    """(1 - alpha) image + alpha colour, rounded; the image itself where the label is outside the palette.

    uint8 `[H, W, 3]` and integers `[H, W]` to uint8 `[H, W, 3]`. Raises ValueError where `alpha` is not in 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}: it is the share of the classes' colours, 0 to 1")
    image, label = np.asarray(image), np.asarray(label)
    if image.shape[:2] != label.shape:
        raise ValueError(f"image {image.shape} and label {label.shape} differ in height or width")
    blend = np.round((1 - alpha) * image + alpha * colorize(label, palette)).astype(np.uint8)
    is_class = (label >= 0) & (label < len(palette))
    return np.where(is_class[..., None], blend, image)


def label_png(label: np.ndarray, palette: Palette) -> Image.Image:
    """A mode "P" image: its pixels are the class indices, and viewers show them in the palette's colours.

    Raises:
        ValueError: if a value of the label, integers `[H, W]`, does not fit into 0..255.
    """
    label = np.asarray(label)
    if label.min() < 0 or label.max() > 255:
        raise ValueError(f"labels {label.min()}..{label.max()} do not fit into an 8-bit PNG, which holds 0..255")
    colors = np.tile(_as_table([IGNORED]), (256, 1))
    colors[: len(palette)] = _as_table(palette)
    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette(colors.tobytes())
    return image


def marks_png(marks: np.ndarray, ignored: np.ndarray, colors: Palette) -> bytes:
    """A PNG to lie over a picture: transparent where `marks` is 0, `colors[i - 1]` where it is i, pale where ignored.

    `marks` are integers and `ignored` booleans, both `[H, W]`.
    """
    table = [(0, 0, 0), *map(tuple, colors), IGNORED]
    image = Image.fromarray(np.where(ignored, len(table) - 1, marks).astype(np.uint8))
    image.putpalette([value for color in table for value in color])
    return pictures.encode(image, transparency=bytes([0, *[255] * len(colors), 140]))


def contact_sheet(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    palette: Palette,
    ignore_label: int = 255,
    cell_width: int = 400,
) -> Image.Image:
    """Picture, label, prediction and errors side by side, a row for each picture, with a legend of the classes.

    Ignored pixels are white in label and errors. The errors show the picture in grey, and in a colour that no class has
    (`free_colors`) where a pixel is wrong.

    Args:
        images: uint8 `[H, W, 3]` each; sizes may differ from picture to picture.
        labels: integers `[H, W]` each.
        predictions: integers `[H, W]` each.
        class_names: C names.
        palette: at least C colours.
        ignore_label: the label that is ignored.
        cell_width: pictures are scaled to this width.
    """
    if len(palette) < len(class_names):
        raise ValueError(f"{len(palette)} colours for {len(class_names)} classes: give one for each")
    font, heading_font = fonts.font(13), fonts.font(15)
    colors = _as_table(palette)[: len(class_names)]
    (wrong,) = free_colors(colors, 1)
    rows = []
    for image, label, prediction in zip(images, labels, predictions, strict=True):
        label = np.where(np.asarray(label) == ignore_label, -1, np.asarray(label, np.int32))
        pictures = (
            image,
            colorize(label, colors),
            colorize(prediction, colors),
            _errors(image, label, prediction, wrong),
        )
        size = (cell_width, max(round(cell_width * image.shape[0] / image.shape[1]), 1))
        smooth, crisp = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
        rows.append(
            [Image.fromarray(p).resize(size, f) for p, f in zip(pictures, (smooth, crisp, crisp, crisp), strict=True)]
        )

    headings = ("picture", "label", "prediction", "errors")
    entries = [
        *zip(fonts.drawable_names(class_names), colors.tolist(), strict=True),
        ("ignored", IGNORED),
        ("wrong", wrong),
    ]
    line_height, swatch = 26, 18
    entry_width = swatch + 8 + max(int(np.ceil(font.getlength(name))) for name, _ in entries) + 18
    width = len(headings) * (cell_width + _MARGIN) + _MARGIN
    per_line = max((width - _MARGIN) // entry_width, 1)
    legend_height = -(-len(entries) // per_line) * line_height
    height = _MARGIN + line_height + sum(row[0].height + _MARGIN for row in rows) + legend_height + _MARGIN

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [_MARGIN + column * (cell_width + _MARGIN) for column in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left + cell_width / 2, _MARGIN + line_height / 2), heading, _INK, heading_font, anchor="mm")
    top = _MARGIN + line_height
    for row in rows:
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, top))
            draw.rectangle((left - 1, top - 1, left + cell.width, top + cell.height), outline=_OUTLINE)
        top += row[0].height + _MARGIN
    for i, (name, color) in enumerate(entries):
        left, y = _MARGIN + i % per_line * entry_width, top + i // per_line * line_height + line_height // 2
        box = (left, y - swatch // 2, left + swatch, y + swatch // 2)
        draw.rectangle(box, fill=tuple(color), outline=_OUTLINE)
        draw.text((left + swatch + 8, y), name, _INK, font, anchor="lm")
    return sheet


def _errors(image, label, prediction, wrong):
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None] // 2 + np.uint8(64)
    marked = np.where((label != prediction)[..., None], _as_table([wrong]), grey)
    return np.where((label == -1)[..., None], _as_table([IGNORED]), marked)


def _as_table(palette):
    table = np.asarray(palette)
    if table.ndim != 2 or table.shape[1] != 3 or len(table) > 256 or table.min() < 0 or table.max() > 255:
        raise ValueError(f"a palette holds up to 256 colours (red, green, blue) in 0..255, not {palette!r}")
    return table.astype(np.uint8)
