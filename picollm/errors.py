"""The one exception meant for users: its text is the complete message, on one line, without a traceback."""


class PicollmError(Exception):
    """One line with the fault, its place, what is allowed and what to do."""

    exit_code = 1


def one_line(error: object) -> str:
    """Returns the text of a third-party error without line breaks."""
    return " ".join(str(error).split())


def rerun(rule: str) -> str:
    """Returns the end of a message: the command that makes a rule's outputs again."""
    return f"run `snakemake --cores all -R {rule}`"


def reason_of(output: str) -> str:
    """Returns why a command failed, from what it printed: picollm's own line, or the last one."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if line.startswith("picollm: ")), lines[-1]).removeprefix("picollm: ")
