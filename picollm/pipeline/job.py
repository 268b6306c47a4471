"""What every workflow script runs inside: its log file, and one clear line when it fails.

    with job(snakemake):
        ...

Everything logged or warned goes to the rule's log and, from INFO up, to the console; a traceback goes to the log alone.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from picollm.errors import PicollmError


@contextmanager
def job(snakemake) -> Iterator[None]:
    """Exit code 1 after one line `rule: reason (log: path)`; what the rule had written is removed by Snakemake."""
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    console, file = logging.StreamHandler(sys.stderr), logging.FileHandler(path, mode="w", encoding="utf-8")
    console.setFormatter(logging.Formatter(f"{snakemake.rule}: %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False  # warnings of libraries: to the log, not to the person
    logging.getLogger("py.warnings").addHandler(file)
    try:
        yield
    except (PicollmError, OSError) as error:
        file.stream.write(traceback.format_exc())
        fail(snakemake.rule, str(error), path)
    except Exception as error:
        file.stream.write(traceback.format_exc())
        fail(snakemake.rule, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", path)


def fail(rule: str, reason: str, log: Path) -> None:
    logging.getLogger().error("FAILED: %s (log: %s)", reason, log)
    sys.exit(1)
