"""The one exception that people see: what is wrong, where, and what to do, in one line."""


class BadInput(ValueError):
    """Input that cannot be used. The command line prints its message as one line and exits with code 2."""
