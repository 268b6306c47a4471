"""The one exception that is meant for a person: its text is the whole message, one line, no traceback."""


class PicollmError(Exception):
    """What is wrong, where, what is allowed and what to do, in one line."""

    exit_code = 1


def one_line(error: object) -> str:
    """The text of somebody else's error without its line breaks."""
    return " ".join(str(error).split())
