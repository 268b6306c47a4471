"""Checks of error messages that are shared by all tests of bad input."""

import pytest

from picollm.errors import PicollmError


def refusal(action, *arguments, **keywords) -> str:
    """Returns the message of the PicollmError that the call raises; it must be one line."""
    with pytest.raises(PicollmError) as caught:
        action(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def said(text: str) -> str:
    """Returns the one line of a command's output that is meant for the user."""
    lines = [line for line in text.splitlines() if line.startswith("picollm: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]
