"""The error that every part of the data code raises for what a user can mend."""


class DatasetError(ValueError):
    """A data set, or the files it is made of, cannot be used; the message names the file, the value and what to do."""
