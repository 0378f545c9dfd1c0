"""The error that every part of the data code raises for what a user can mend."""

from dlv3p_jax.runtime.errors import UserError


class DatasetError(UserError):
    """A data set, or the files it is made of, cannot be used; the message names the file, the value and what to do."""


class UnreadableError(DatasetError):
    """A file cannot be read now, which does not say that anything is wrong with it: the disk answered with an error."""


class UnmappedColors(DatasetError):
    """A label has colours that no class is known for; `colors` are the most frequent, with their pixels."""

    def __init__(self, message: str, colors: tuple[tuple[tuple[int, int, int], int], ...]):
        super().__init__(message)
        self.colors = colors
