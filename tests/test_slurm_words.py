"""Messages of Slurm 22.05 and its plugin, as recorded, and their explanations."""

import pytest

from picollm.cluster.slurm import reason_ended

REFUSED = "SLURM sbatch failed. The error message was '{}'.\n    sbatch call:\n        sbatch --parsable ...\n"
STATE = (
    "SLURM-job '3' failed, SLURM status is: '{}'. Detailed failure reason unavailable (status command is not 'sacct')."
)


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", "no such partition: `sinfo`"),
        ("sbatch: error: Invalid generic resource (gres) specification", "no such GPU here: `sinfo -o %G`"),
        ("sbatch: error: Memory specification can not be satisfied", "more memory than any node has"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "no node has"),
        ("sbatch: error: something new", "sbatch: error: something new"),
    ],
)
def test_a_refusal(said, ours):
    found = reason_ended(REFUSED.format(said), [])
    assert found.startswith(f"Slurm refused the job: {ours}") and "\n" not in found


@pytest.mark.parametrize(
    ("log", "state", "ours"),
    [
        ("slurmstepd-two: error: Exceeded job memory limit", "FAILED", "took more than its memory: raise mem_mb"),
        ("slurmstepd: error: *** JOB 5 ON two CANCELLED AT 2026-11-27T15:48:55 DUE TO TIME LIMIT ***", "TIMEOUT",
         "took longer than its time: raise runtime"),
        ("slurmstepd: error: *** JOB 1 ON one CANCELLED AT 2026-11-27T16:06:00 ***", "CANCELLED", "was cancelled"),
        ("", "NODE_FAIL", "its node was lost"),
        ("Error in rule cluster_heads", "FAILED", None),
    ],
)  # fmt: skip
def test_an_end_by_the_jobs_log_or_its_state(tmp_path, log, state, ours):
    file = tmp_path / "5.log"
    file.write_text(f"rule cluster_heads:\n{log}\n")
    found = reason_ended(STATE.format(state), [str(file), str(tmp_path / "none.log")])
    assert found is None if ours is None else found.startswith(ours)
