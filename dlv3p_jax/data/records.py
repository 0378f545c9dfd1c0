"""What a prepared data set looks like on disk, and how to open one.

A record holds `id`, `image` and `label` (files as bytes); position i of a split is the i-th picture that was listed.
In a split without labels, such as the test pictures of a benchmark, every `label` is empty (0 bytes).
metadata.json beside the records holds, under the names of `METADATA`, what training needs to know before it reads any.
metadata.sha256 has the digests of this and the other JSON files, as `sha256sum -c` reads them, by which a change is
noticed; records have checksums of their own.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from dlv3p_jax.data import cloud_bucket, downloads, opening
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.runtime import disk_errors, files, local_paths, text

VERSION = "1.0.0"  # of data sets that are prepared now; whatever version is there is read
VERSIONS = {"toy_streets": "2.0.0"}  # where the pictures themselves have changed since 1.0.0
METADATA = {
    "description": "str",
    "synthetic": "bool: drawn by a program",
    "class_names": "list of str, class 0 first",
    "palette": "list of [red, green, blue], a colour for every class",
    "ignore_label": "int, the label of pixels that count nowhere",
    "class_pixels": "{split: [pixels of every class]}; all 0 where a split has no labels, as are its ignored_pixels",
    "ignored_pixels": "{split: pixels of the ignore label}",
    "sizes": "{split: [[height, width, how many pictures in a row], …]}",
    "notes": "{what was changed on the way into the records: how many pictures}",
}
OPTIONAL_METADATA = {  # what data sets that were prepared by older revisions lack
    "digests": "{split: what `digests.Digest` makes of its records, in order}",
    "picture_range": "[low, high] that became 0 and 255 in pictures of more than 8 bits, where `prepare` was told",
}

_DIGESTS = "metadata.sha256"
TFDS, HF = "tfds:", "hf:"  # how names of data sets of TFDS and Hugging Face begin, as `prepare` takes them

local_paths.mend()


def features() -> tfds.features.FeaturesDict:
    """A record's fields; `image` is an 8-bit RGB or grey JPEG or PNG, `label` an 8-bit grey PNG of class indices."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    `metadata` is described by `METADATA` and `OPTIONAL_METADATA`; `origin` is the URL that it was copied from, if any.
    """

    name: str
    folder: pathlib.Path
    metadata: dict[str, Any]
    builder: Any = dataclasses.field(repr=False)  # a tfds.core.DatasetBuilder
    origin: str | None = None

    @property
    def title(self) -> str:
        """The name as people should read it: what a program drew is said to be so."""
        return f"{self.name} (synthetic)" if self.metadata["synthetic"] else self.name

    @property
    def class_names(self) -> list[str]:
        return self.metadata["class_names"]

    @property
    def picture_range(self) -> tuple[float, float] | None:
        """The values that became 0 and 255 in pictures of more than 8 bits; None: nobody said."""
        low_high = self.metadata.get("picture_range")
        return None if low_high is None else (low_high[0], low_high[1])

    @property
    def palette(self) -> list[list[int]]:
        return self.metadata["palette"]

    @property
    def ignore_label(self) -> int:
        return self.metadata["ignore_label"]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.metadata["sizes"])

    def num_pictures(self, split: str) -> int:
        return sum(count for _, _, count in self.metadata["sizes"][self._known(split)])

    def has_labels(self, split: str) -> bool:
        """Whether a split has labels; where it has none, it is for prediction only."""
        return any(self.metadata["class_pixels"][self._known(split)]) or self.metadata["ignored_pixels"][split] > 0

    def require_labels(self, split: str) -> None:
        """Raises DatasetError if the split has no labels."""
        if not self.has_labels(split):
            labelled = ", ".join(name for name in self.splits if self.has_labels(name))
            raise DatasetError(
                f'split "{split}" of {self.name} has no labels, so nothing can be learnt from it or measured on it; '
                f"with labels: {labelled}"
            )

    def sizes(self, split: str) -> list[tuple[int, int]]:
        """(height, width) of every picture, by position."""
        runs = self.metadata["sizes"][self._known(split)]
        return [(height, width) for height, width, count in runs for _ in range(count)]

    def digest(self, split: str) -> dict[str, str]:
        """What tells this split from another under its name: SHA-256 in hex, by what it is of.

        'sizes' is of the pictures' sizes by position, 'class_pixels' of how many pixels every class and the ignored
        label have, 'lengths' of how many records each file holds, and 'content', which data sets of older programs
        lack, of all pictures and labels. No record is read for it.

        Raises:
            DatasetError: no such split.
        """
        pixels, ignored = self.metadata["class_pixels"][self._known(split)], self.metadata["ignored_pixels"][split]
        parts = {
            "sizes": self.sizes(split),
            "class_pixels": [list(pixels), ignored],
            "lengths": list(self.builder.info.splits[split].shard_lengths),
        }
        digests = {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}
        content = self.metadata.get("digests", {}).get(split)
        return digests if content is None else digests | {"content": content}

    def source(self, split: str) -> Sequence[dict[str, bytes]]:
        """Random access by position to {'id', 'image', 'label'}, undecoded.

        Raises:
            DatasetError: no such split, or its files are damaged.
        """
        lengths = self.builder.info.splits[self._known(split)].shard_lengths
        source = _Source(self, split)
        # Files are opened when they are first read, and stay open: one that is removed from now on is still read.
        for end in itertools.accumulate(lengths):
            _ = source[max(end - 1, 0)]
        return source

    def damaged(self, split: str, index: int, reason: str, picture_id: bytes = b"") -> DatasetError:
        """The error of a record that cannot be used: which it is, in which file, why, and what to do."""
        split_info = self.builder.info.splits[split]
        ends = list(itertools.accumulate(split_info.shard_lengths))
        shard = bisect.bisect_right(ends, index)
        number = index - (ends[shard - 1] if shard else 0)
        picture = f", picture {picture_id.decode()}," if picture_id else ""
        return DatasetError(
            f"{split}: record {index}{picture} cannot be read: number {number} in {split_info.filepaths[shard]} is "
            f"damaged or gone ({reason}); {_mend(self.name, self.folder, self.origin)}"
        )

    def _known(self, split: str) -> str:
        if split not in self.splits:
            raise DatasetError(f'data set {self.name} has no split "{split}"; it has {", ".join(self.splits)}')
        return split


class _Source(Sequence[dict[str, bytes]]):
    """A split's records; what array_record, protobuf and TFDS say to one that is damaged becomes a DatasetError."""

    def __init__(self, dataset: Dataset, split: str):
        self._dataset, self._split = dataset, split
        self._records = self._open()

    def _open(self):
        decoders = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
        return self._dataset.builder.as_data_source(self._split, decoders=decoders)

    def _read(self, index: int) -> dict[str, bytes]:
        try:
            return self._records[index]
        except Exception as error:
            if disk_errors.passing(error) is not None:
                self._records = self._open()  # a reader that has failed fails ever after
            raise

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes]:  # type: ignore[override]  # nobody takes slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = disk_errors.patiently(lambda: self._read(index))
        except Exception as error:  # they raise whatever their parsers do
            if words := disk_errors.passing(error):
                where = f"record {index} of {self._split} in {self._dataset.folder}"
                raise DatasetError(f"{where} cannot be read now: {words}") from error
            reason = text.first_line(error)
            raise self._dataset.damaged(self._split, index, reason) from error
        if not record["id"] or not record["image"] or record["label"] is None:  # of a file that lost its end
            raise self._dataset.damaged(self._split, index, "it is empty")
        return record


def open_dataset(dataset: str, data_dir: str | os.PathLike) -> Dataset:
    """Opens the newest version of what `prepare` wrote below data_dir/dataset, without the code that wrote it.

    If `data_dir` is a URL, such as gs://BUCKET/data, what is there is first copied to this host (`cloud_bucket`).

    Raises:
        DatasetError: not prepared (it says how to), unfinished or damaged, or it cannot be copied.
    """
    origin = os.fspath(data_dir) if cloud_bucket.is_remote(data_dir) else None
    folder = newest(data_dir, dataset) if origin is None else cloud_bucket.fetch(dataset, origin)
    if folder is None:
        prepared = _prepared(data_dir) if origin is None else cloud_bucket.names(origin)
        raise DatasetError(
            f'data set "{dataset}" is not prepared in {data_dir} ({", ".join(prepared) or "nothing"} is); run\n'
            f"  {prepare_command(dataset, data_dir)}{_how_to_get(dataset)}"
        )

    def damaged(reason: str) -> DatasetError:
        what = f"{folder} is unfinished, damaged or not of this program ({reason})"
        return DatasetError(f"{what}; {_mend(dataset, folder, origin)}")

    try:
        changed = disk_errors.patiently(lambda: _changed(folder))
        builder = disk_errors.patiently(lambda: tfds.builder_from_directory(folder))
        metadata = dict(builder.info.metadata or {})
        paths = [path for split in builder.info.splits.values() for path in split.filepaths]
    except Exception as error:  # TFDS raises whatever its parsers do
        if words := disk_errors.passing(error):
            raise DatasetError(f"{folder} cannot be read now: {words}") from error
        raise damaged(str(error) or type(error).__name__) from error
    if changed:
        raise damaged(
            f"{', '.join(changed)}: not as prepare wrote it; where it was changed on purpose, remove "
            f"{folder / _DIGESTS}"
        )
    lacking = [key for key in METADATA if key not in metadata]
    if lacking:
        raise damaged(f"its metadata lacks {', '.join(lacking)}")
    missing = [path for path in paths if not opening.is_file(path)]
    if missing or not paths:
        raise damaged(f"{missing[0].name if missing else 'its records'} missing")
    opened = Dataset(dataset, folder, metadata, builder, origin)
    for split in opened.splits:
        stored, listed = sum(builder.info.splits[split].shard_lengths), opened.num_pictures(split)
        if stored != listed:
            raise damaged(f"{split}: {stored} records, {listed} in metadata.json")
    return opened


def write_digests(folder: pathlib.Path) -> None:
    """Writes down the digests of a data set's JSON files, once all is written."""
    lines = [f"{digest}  {name}\n" for name, digest in _digests(folder).items()]
    files.write(folder / _DIGESTS, "".join(lines))


def _digests(folder: pathlib.Path) -> dict[str, str]:
    # What begins with a dot is `cloud_bucket`'s.
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _changed(folder: pathlib.Path) -> list[str]:
    """The JSON files of a data set that are not as `write_digests` saw them; none where an older program wrote it."""
    try:
        text = (folder / _DIGESTS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    now = _digests(folder)
    then = dict(line.split("  ", 1)[::-1] for line in text.splitlines() if "  " in line)
    return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))


def local_name(dataset: str) -> str:
    """What a data set is called once it is prepared, if nobody says: a word that tells where it comes from.

    tfds:NAME/CONFIG is tfds_NAME__CONFIG, hf:OWNER/NAME and hf:FOLDER/NAME are hf_NAME, others are as before.
    """
    if dataset.startswith(HF):
        name = dataset.removeprefix(HF).partition(":")[0].rstrip("/").rpartition("/")[2]
        return f"hf_{re.sub(r'[^A-Za-z0-9_]', '_', name)}"
    if dataset.startswith(TFDS):
        return f"tfds_{dataset.removeprefix(TFDS).partition(':')[0].replace('/', '__')}"
    return dataset


def prepare_command(dataset: str, data_dir: str | os.PathLike) -> str:
    """The command that makes a data set, to be pasted into a shell."""
    flags = "" if dataset == "toy_streets" else " --source=FOLDER"
    if dataset.startswith("tfds_"):
        dataset, flags = f"{TFDS}{dataset.removeprefix('tfds_').replace('__', '/')}", " --label_key=KEY"
    elif dataset.startswith("hf_"):
        dataset, flags = f"{HF}PATH_OR_NAME", f" --name={dataset} --label_key=KEY"
    elif dataset not in ("toy_streets", "image_folder", "coco", "ultralytics", *downloads.HOW_TO):
        dataset, flags = "image_folder", f" --name={dataset} --source=FOLDER"
    return f"python -m dlv3p_jax.prepare --dataset={dataset}{flags} --data_dir={shlex.quote(os.fspath(data_dir))}"


def _how_to_get(dataset: str) -> str:
    return f"\n{textwrap.indent(downloads.HOW_TO[dataset], '  ')}" if dataset in downloads.HOW_TO else ""


def _mend(dataset: str, folder: pathlib.Path, origin: str | None) -> str:
    again = f"prepare it again:\n  {prepare_command(dataset, origin or folder.parent.parent)} --overwrite"
    return again if origin is None else f"remove this copy, which comes again from {origin}, or {again}"


def _prepared(data_dir: str | os.PathLike) -> list[str]:
    root = pathlib.Path(data_dir).expanduser()
    return sorted(path.name for path in root.iterdir() if newest(root, path.name)) if root.is_dir() else []


def newest(data_dir: str | os.PathLike, dataset: str) -> pathlib.Path | None:
    """The folder of a data set's highest version; None if there is none."""
    folder = pathlib.Path(data_dir).expanduser() / dataset
    if not dataset or not folder.is_dir():
        return None
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    versions = sorted(tfds.core.Version(name) for name in names if tfds.core.Version.is_valid(name))
    return folder / str(versions[-1]) if versions else None
