"""Pickles that do harm where they are unpickled, for the tests of what reads files of weights."""

import struct


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


NEW = call("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"C\x01b")
TOUCH = text(b"touch SENTINEL")
OPEN = text(b"open('SENTINEL', 'w')")

# Each makes the file SENTINEL if it is run.
RUNNING = {
    "os.system": call("os", "system", TOUCH),
    "posix.system": call("posix", "system", TOUCH),
    "eval": call("builtins", "eval", OPEN),
    "python 2's eval": b"\x80\x02" + call("__builtin__", "eval", OPEN),
    "exec": call("builtins", "exec", OPEN),
    "subprocess": call("subprocess", "getoutput", TOUCH),
    "nested os": b"\x8c\x02os\x8c\x06system\x93(" + TOUCH + b"tR",
    "dotted name": b"\x8c\x06shutil\x8c\x09os.system\x93(" + TOUCH + b"tR",
    "INST": b"(" + TOUCH + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + TOUCH + b"o",
    "array beside": NEW + b"0" + call("os", "system", TOUCH),
    "getattr": call("builtins", "getattr", call("builtins", "__import__", text(b"os")), text(b"system"))
    + b"("
    + TOUCH
    + b"tR",
    "map": call("builtins", "list", call("builtins", "map", b"cos\nsystem\n", b"(" + TOUCH + b"t")),
}


def aimed_at(attack: bytes, sentinel: bytes) -> bytes:
    """The attack with a file's name in place of SENTINEL."""
    return attack.replace(TOUCH, text(b"touch " + sentinel)).replace(OPEN, text(b"open('%s', 'w')" % sentinel))
