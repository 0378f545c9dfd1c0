"""Picture files made byte by byte, of the kinds that Pillow reads but does not write."""

import struct
import zlib


def png(bits: int, color_type: int, rows: list[bytes], width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    *,
    bits: int = 8,
    photometric: int = 1,
    sample_format: int = 1,
    bands: int = 1,
    extra: int | None = None,
    order: str = "<",
    deflated: bool = False,
    planar: bool = False,
) -> bytes:
    """A TIFF of (height, width); photometric 0 is WhiteIsZero, 1 BlackIsZero, 2 RGB; `planar`: band after band."""
    height, width = size
    strips = [pixels]
    if planar:
        length = len(pixels) // bands
        strips = [pixels[band * length : (band + 1) * length] for band in range(bands)]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    lengths = [len(strip) for strip in strips]
    pixels = b"".join(strips)
    tags = [
        *((256, [width]), (257, [height]), (258, [bits] * bands), (259, [8 if deflated else 1])),
        *((262, [photometric]), (273, [8 + sum(lengths[:index]) for index in range(len(lengths))])),
        *((277, [bands]), (278, [height]), (279, lengths), (284, [2 if planar else 1])),
        *([] if extra is None else [(338, [extra])]),
        (339, [sample_format] * bands),
    ]
    end = 8 + len(pixels) + len(pixels) % 2
    values_at, entries, values = end + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in tags:
        data = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(data) > 4:
            data, values = struct.pack(f"{order}I", values_at + len(values)), values + data
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, end)
    folder = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return head + pixels.ljust(end - 8, b"\0") + folder + values


def pack(values, bits: int) -> bytes:
    """Rows of values below 2**bits, the first in the highest bits, each row filled up to whole bytes."""
    packed = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        packed += bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))
    return packed
