"""What every test of bad input asks of an error that is meant for a person."""

import pytest

from picollm.errors import PicollmError


def refusal(action, *arguments, **keywords) -> str:
    """The message of the PicollmError that the call raises; it must be one line."""
    with pytest.raises(PicollmError) as caught:
        action(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def said(text: str) -> str:
    """Of a command's output, the one line that is meant for a person."""
    lines = [line for line in text.splitlines() if line.startswith("picollm: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]
