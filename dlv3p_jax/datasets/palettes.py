"""The colours of palette labels, over all files of a data set: they name its classes, or show that indices do not."""

import collections
from collections.abc import Mapping, Sequence

from dlv3p_jax.data import viz
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import suggest

Color = tuple[int, int, int]


class Palettes:
    """Gathers which colour each value of palette labels has.

    Programs that "optimise" a picture's colours give the values 0, 1, 2 … to the colours that this picture has, so that
    one colour has another value in each file, and every value looks like a class.
    """

    def __init__(self) -> None:
        self._colors: dict[int, tuple[Color, str]] = {}  # by value: the first colour, and the file that has it
        self._classes: dict[int, Color] = {}
        self._all: collections.Counter[Color] = collections.Counter()
        self._contradiction: str | None = None

    def add(self, file: str, colors: Sequence[tuple[int, int, Color]]) -> None:
        """Takes a label file's `Example.colors`."""
        if all(color == (value, value, value) for value, _, color in colors) and any(value for value, _, _ in colors):
            return  # a grey ramp is no choice of colours
        for value, index, color in colors:
            self._all[color] += 1
            first, first_file = self._colors.setdefault(value, (color, file))
            self._classes.setdefault(index, color)
            if first != color and self._contradiction is None:
                shown, first_shown = ("-".join(map(str, each)) for each in (color, first))
                self._contradiction = (
                    f"value {value} is the colour {first_shown} in {first_file}, but {shown} in {file}: each file has "
                    "a palette of its own, so values are no classes"
                )

    def refuse_contradictions(self) -> None:
        """Raises DatasetError where a value has two colours."""
        if self._contradiction is not None:
            raise DatasetError(
                f"{self._contradiction}. Give their colours instead: {suggest(None, self._all, -1)}. (If the values "
                "are right and the colours are not, save the labels as grey PNG.)"
            )

    def palette(
        self, num_classes: int, fallback: Sequence[Sequence[int]], given: Mapping[int, Color]
    ) -> list[list[int]]:
        """A colour for each class: the one that is given, that of the files where they agree and tell classes apart.

        Others have the fallback's.
        """
        known = {index: color for index, color in self._classes.items() if index < num_classes}
        if self._contradiction is not None or not known or len(set(known.values())) < len(known):
            return [list(color) for color in fallback]
        return viz.class_colors(num_classes, known | dict(given))
