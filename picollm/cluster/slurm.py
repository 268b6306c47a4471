"""Explains why Slurm refused or ended a job, in one line that names the setting to change.

The reason is in sbatch's answer, which is the failure's message, in the job state that the plugin adds to it, or in the
job's log, where Slurm writes why it ended a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PROFILE = "profiles/slurm/profile.yaml"
SET = "under set-resources in " + PROFILE
# {part of Slurm's message: our message}; the first match counts.
REFUSED = {
    "Invalid partition name": f"no such partition: `sinfo` lists them; set slurm_partition {SET}",
    "Invalid generic resource": f"no such GPU here: `sinfo -o %G` lists them; set gpu_model, gpu or gres {SET}",
    "Memory specification": f"more memory than any node has (`sinfo -o %m`, in MB): lower mem_mb {SET}",
    "node configuration is not available": "no node has that many CPUs and GPUs and that much memory: `sinfo -Nel`; "
    f"lower compute.threads or pretrain.processes in config.yaml, or set mem_mb or gpu {SET}",
    "Invalid account": f"no such account: `sacctmgr show user -s` lists yours; set slurm_account {SET}",
    "Requested time limit is invalid": f"longer than the partition allows (`sinfo -o '%P %l'`): lower runtime {SET}",
    "Unable to contact slurm controller": "Slurm does not answer: `scontrol ping` says if its controller is up",
}
ENDED = {
    "DUE TO TIME LIMIT": f"took longer than its time: raise runtime (minutes) {SET}",
    "TIMEOUT": f"took longer than its time: raise runtime (minutes) {SET}",
    "oom-kill": f"took more than its memory: raise mem_mb {SET}",
    "OUT_OF_MEMORY": f"took more than its memory: raise mem_mb {SET}",
    "xceeded job memory limit": f"took more than its memory: raise mem_mb {SET}",
    "DUE TO NODE FAILURE": "its node was lost; the same command resumes it",
    "NODE_FAIL": "its node was lost; the same command resumes it",
    "DUE TO PREEMPTION": "gave way to another job; the same command resumes it",
    "CANCELLED": "was cancelled; the same command resumes it",
}
LAST_BYTES = 4000  # of a log that are searched


def reason_ended(message: str | None, logs: Iterable[str]) -> str | None:
    """Returns why the job failed, from the executor's message and the job's logs; None if Slurm did not end it."""
    message = message or ""
    if reason := first_of(REFUSED, message):
        return f"Slurm refused the job: {reason}"
    if "sbatch failed" in message:
        return f"Slurm refused the job: {message.partition(chr(39))[2].partition(chr(39))[0]}"
    texts = [Path(log).read_bytes()[-LAST_BYTES:].decode(errors="replace") for log in logs if Path(log).is_file()]
    return first_of(ENDED, "\n".join([message, *texts]))


def first_of(table: dict[str, str], text: str) -> str | None:
    return next((ours for theirs, ours in table.items() if theirs in text), None)
