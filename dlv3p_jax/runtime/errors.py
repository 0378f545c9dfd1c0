"""The error of what a user can mend, which ends a command in one line."""


class UserError(ValueError):
    """The command, a file or a value is wrong; the message names it and says what to do. See `cli.run`."""
