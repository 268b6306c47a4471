"""The one exception that is meant for a person: its text is the whole message, one line, no traceback."""


class PicollmError(Exception):
    """What is wrong, where, what is allowed and what to do, in one line."""
