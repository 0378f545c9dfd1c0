"""The TFDS builder behind all our data sets: it reads and counts pictures and labels, and refuses what is useless."""

import collections
import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from dlv3p_jax.data import ranges, records, viz
from dlv3p_jax.data.classes import IGNORED
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example, Pair, Problem
from dlv3p_jax.data.label_map import LabelMap, suggest
from dlv3p_jax.datasets.digests import Digest, digest_contents
from dlv3p_jax.datasets.file_names import leave_out_no_text, printable
from dlv3p_jax.datasets.palettes import Color, Palettes
from dlv3p_jax.datasets.repeats import Repeats, every_pair
from dlv3p_jax.datasets.workers import ordered_map
from dlv3p_jax.runtime import disk_errors

_PICTURES_A_SHARD = 512
_MEND = "\nMend these, or leave them out with --skip_bad"


class PictureBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """Writes pictures and labels as records in the given order, and counts what it writes.

    It streams: a GeneratorBasedBuilder that keeps the order holds a whole split in memory.
    """

    VERSION = tfds.core.Version(records.VERSION)
    code_path = (
        None  # where TFDS looks for checksums of downloads; finding it takes a package that TFDS does not install
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__(skip_registration=True)

    def __init__(
        self,
        data_dir: str | os.PathLike,
        splits: Mapping[str, Collection[Any]],
        read: Callable[[Any], Example | Problem],
        *,
        name: str | None = None,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        colors: Mapping[int, Color] | None = None,
        ignore_label: int = IGNORED,
        description: str,
        synthetic: bool = False,
        problems: Sequence[Problem] = (),
        remarks: Sequence[str] = (),
        apart: Sequence[tuple[str, str]] | None = None,
        as_published: bool = False,
        label_map: LabelMap | None = None,
        picture_range: ranges.Range | None = None,
        workers: int = 1,
        skip_bad: bool = False,
    ):
        """What to make of which items, and how strictly.

        Args:
            data_dir: where TFDS makes NAME/VERSION.
            splits: what `read` takes, by split.
            read: makes a record's contents of one item; it is pickled, and run in worker processes.
            name: what the data set is called; None: as its class is.
            class_names, ignore_label, description, synthetic: see `records.METADATA`.
            palette: the colours of all classes; None: what `viz.class_colors` makes of `colors`.
            colors: those of classes, by index, that count over the ones that palette labels have.
            problems: what is known to be wrong already.
            remarks: what the user should hear about the items.
            apart: pairs of splits that should have no picture in common; None: all pairs.
            as_published: a benchmark's own files, of which every one counts: a picture with two labels is no problem.
            label_map: what `read` applies; colours that it lacks are suggested beside those that it has.
            picture_range: the values that `read` makes 0 and 255 of, in pictures of more than 8 bits; None: it goes by
                their files.
            workers: number of processes; 1 runs everything in this one.
            skip_bad: leave out what has a problem and list it in skipped.txt, instead of failing.

        Raises:
            DatasetError: there are problems, and they are not to be skipped.
        """
        if name is not None:
            self.name = name
            self.VERSION = tfds.core.Version(records.VERSIONS.get(name, records.VERSION))
        if palette is None:
            palette = viz.class_colors(len(class_names), colors)
        self._items, self._read = {}, functools.partial(_read_and_digest, read)
        self._problems, self._remarks = dict.fromkeys(problems), tuple(remarks)
        for split, items in splits.items():
            # Others than sequences are read whenever one goes over them, and have names of their own.
            self._items[split], no_text = leave_out_no_text(items) if isinstance(items, Sequence) else (items, [])
            self._problems |= dict.fromkeys(no_text)
        self._workers, self._skip_bad, self._label_map = workers, skip_bad, label_map
        self._metadata = tfds.core.MetadataDict(
            description=printable(description),
            synthetic=synthetic,
            class_names=list(class_names),
            palette=[list(map(int, color)) for color in palette],
            ignore_label=ignore_label,
            class_pixels={split: [0] * len(class_names) for split in splits},
            ignored_pixels=dict.fromkeys(splits, 0),
            sizes={split: [] for split in splits},
            notes=collections.Counter(),
            digests=dict.fromkeys(splits, ""),
        )
        if picture_range is not None:
            self._metadata["picture_range"] = list(picture_range)
        self._palettes, self._colors = Palettes(), dict(colors or {})
        self._ranges = ranges.Seen()
        self._repeats = Repeats(every_pair(splits) if apart is None else apart, as_published)
        self._digests = {split: Digest() for split in splits}
        if self._problems and not skip_bad:  # before anything is read
            raise DatasetError(self.describe_problems() + _MEND)
        super().__init__(data_dir=data_dir, file_format="array_record")

    @property
    def problems(self) -> list[Problem]:
        """What could not be used, each once, however many splits hold it."""
        return list(self._problems)

    @property
    def remarks(self) -> list[str]:
        """What the user should hear about the pictures, as far as they have been read."""
        return [*self._remarks, *self._repeats.remarks()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._metadata["description"],
            features=records.features(),
            metadata=self._metadata,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        return {
            split: [
                functools.partial(self._records, split, min(_PICTURES_A_SHARD, len(items) - start))
                for start in range(0, len(items), _PICTURES_A_SHARD)
            ]
            for split, items in self._items.items()
        }

    def _records(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of the next `count` items; shards are written one after the other, from one iterator."""
        for item, (result, contents) in itertools.islice(self._results, count):
            problem = result if isinstance(result, Problem) else self._compare(split, item, result, contents)
            if problem is not None:
                self._problems[problem] = None
            elif self._skip_bad or not self._problems:
                self._count(split, result)
                self._digests[split].add(result.id.encode(), contents)
                record = {"id": result.id, "image": result.image, "label": result.label}
                yield result.id, record
                record.clear()  # it is written by now, but TFDS holds what was yielded until the shard is complete

    def _compare(self, split: str, item: Any, example: Example, contents: tuple[bytes, bytes]) -> Problem | None:
        """Holds a picture against those before it."""
        files = (item.image, item.label or "") if isinstance(item, Pair) else (example.id, example.id)
        self._palettes.add(files[1], example.colors)
        if example.values and example.taken_for:
            self._ranges.add(files[0], example.values, example.taken_for)
        try:
            self._repeats.add(split, example.id, contents, files, has_label=bool(example.label))
        except DatasetError as error:
            return Problem(example.id, str(error))
        return None

    def _count(self, split: str, example: Example) -> None:
        pixels = self._metadata["class_pixels"][split]
        pixels[:] = [total + int(count) for total, count in zip(pixels, example.class_pixels, strict=True)]
        self._metadata["ignored_pixels"][split] += example.ignored_pixels
        self._metadata["notes"].update(example.notes)
        runs = self._metadata["sizes"][split]
        if runs and tuple(runs[-1][:2]) == example.size:
            runs[-1][2] += 1
        else:
            runs.append([*example.size, 1])

    def _download_and_prepare(self, dl_manager, download_config=None):
        with self._reading():
            super()._download_and_prepare(dl_manager, download_config)
        self.refuse_contradictions()
        if self.problems and not self._skip_bad:
            raise DatasetError(self.describe_problems() + _MEND)
        self.refuse_useless_data()
        if self.problems:
            lines = "".join(f"{printable(problem.message)}\n" for problem in self.problems)
            pathlib.Path(self.data_dir, "skipped.txt").write_text(lines, encoding="utf-8")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Has the workers read every item, for `_records` to take, under a progress bar."""
        total = sum(map(len, self._items.values()))
        items, again = itertools.tee(itertools.chain.from_iterable(self._items.values()))
        with (
            contextlib.closing(ordered_map(self._read, items, self._workers)) as results,
            tqdm(results, total=total, unit=" pictures", desc=self.name, disable=total == 0) as progress,
        ):
            self._results = zip(again, progress, strict=True)
            yield
            next(self._results, None)  # nothing is left; this completes the progress bar
        self._metadata["palette"] = self._palettes.palette(
            len(self._metadata["class_names"]), self._metadata["palette"], self._colors
        )
        self._metadata["digests"].update({split: digest.hexdigest() for split, digest in self._digests.items()})

    def survey(self, folder: str | os.PathLike) -> records.Dataset:
        """Reads everything as if to write it, writes nothing, and gathers all `problems`, if made with `skip_bad`.

        Args:
            folder: where the items come from.

        Returns:
            What would have been written, without its records.
        """
        with self._reading():
            for split, items in self._items.items():
                collections.deque(self._records(split, len(items)), maxlen=0)
        return records.Dataset(self.name, pathlib.Path(folder), dict(self._metadata), self)

    def describe_problems(self, most: int = 10, with_remarks: bool = True) -> str:
        """The first problems, what is to be known beside them, and a label map for all colours that have no class."""
        lines = [describe_problems(self.problems, most)]
        lines += [f"  note: {remark}" for remark in self.remarks] if with_remarks else []
        counts: collections.Counter[tuple[int, int, int]] = collections.Counter()
        for problem in self.problems:
            counts.update(dict(problem.colors))
        if counts:
            table = suggest(self._label_map, counts, self._metadata["ignore_label"])
            lines.append(f"  for the colours of all labels: {table}")
        if complaint := self._ranges.complaint():
            lines.append(f"  and {complaint}")
        return "\n".join(lines)

    def refuse_contradictions(self) -> None:
        """Raises DatasetError where palettes say that the values of labels are no classes, when all has been read."""
        self._palettes.refuse_contradictions()

    def refuse_useless_data(self) -> None:
        """Raises DatasetError on what only shows when everything has been read.

        A split or the labels are empty, or pictures of 16 bits hold 12 and would be nearly black.
        """
        if complaint := self._ranges.complaint():
            raise DatasetError(complaint)
        for split, runs in self._metadata["sizes"].items():
            if not runs:
                raise DatasetError(f"nothing is left of the {split} split; " + describe_problems(self.problems))
        pixels = [sum(counts) for counts in zip(*self._metadata["class_pixels"].values(), strict=True)]
        ignored, ignore_label = sum(self._metadata["ignored_pixels"].values()), self._metadata["ignore_label"]
        present = [index for index, count in enumerate(pixels) if count]
        if ignored and len(present) <= 1:
            share = ignored / (ignored + sum(pixels))
            message = (
                f"the labels hold {f'class {present[0]} and nothing else' if present else 'no class at all'}, and "
                f"{ignore_label}, the value to be ignored, on {share:.1%} of the pixels: nothing can be learnt"
            )
            if ignore_label == 255 and present in ([], [0]):
                message += '. For a mask of 0 and 255 give --label_map "0:0,255:1"'
            raise DatasetError(message)


def _read_and_digest(
    read: Callable[[Any], Example | Problem], item: Any
) -> tuple[Example | Problem, tuple[bytes, bytes]]:
    """What a worker does: reads an item, and hashes what it made of it; a disk that is away for a moment may be."""
    result = disk_errors.patiently(lambda: read(item))
    return result, (b"", b"") if isinstance(result, Problem) else digest_contents(result.image, result.label)


def describe_problems(problems: Sequence[Problem], most: int = 10) -> str:
    """How many there are, and the first of them, a line each."""
    lines = [f"  {printable(problem.message)}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  … and {len(problems) - most} more")
    return "\n".join([f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the data:", *lines])
