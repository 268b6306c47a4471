"""Runs a complete training run, in this process or in several under torchrun; its last checkpoint is the result.

    torchrun --nproc-per-node 2 -m picollm.model.pretraining run.json

run.json has the fields of `Run`. Each process trains its share of every step; the first one writes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, TypedDict

import numpy as np
import torch

from picollm.data.loading import open_manifest, open_split
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import sha256, write_json
from picollm.model.checkpoints import Checkpoints
from picollm.model.costs import flops_per_token
from picollm.model.device import lacks_memory, set_up, set_up_to_train
from picollm.model.distributed import world
from picollm.model.folders import is_foreign_folder
from picollm.model.foreign import Examined, ForeignModel
from picollm.model.foreign_folder import load_foreign_model
from picollm.model.huggingface import load_foreign
from picollm.model.interruption import Interruption, Stopped
from picollm.model.loss import evaluate
from picollm.model.training import Trainer, TrainingConfig, train
from picollm.model.transformer import ModelConfig, Transformer

log = logging.getLogger(__name__)

# The training loss of the original notebook, as it reports: 11 to 5, to 4.2, to 3.8 - 4.0 at the end.
ORIGINAL_PHASES = ((11.0, 5.0), (5.0, 4.2), (4.2, 3.8))
LAUNCHER = "PICOLLM_TORCHRUN"
LOG, SAID = "torchrun.log", "picollm: "
ENDED = "picollm ended: "  # followed by the error of a torchrun process, as JSON
# torchrun's agent, run on each node of a Slurm allocation; `srun` sets these variables. The agents meet at the first
# node's address, at a port specific to the job.
AGENT = """
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$first" | grep -o "NodeAddr=[^ ]*" | cut -d = -f 2)
exec {python} -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node $(({processes} / SLURM_NNODES)) \\
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$address:$((20000 + SLURM_JOB_ID % 10000))" "$@"
"""


@dataclass(frozen=True)
class Run:
    """Inputs of a run, JSON-ready: the config's sections, the manifest of the tokens, a fingerprint of the code."""

    model: dict
    pretrain: dict
    compute: dict
    tokens: str
    code: str
    folder: str = "checkpoints"

    def shape(self) -> ModelConfig:
        manifest = open_manifest(self.tokens)
        return ModelConfig(vocab_size=manifest["vocab_size"], context=manifest["context"], **self.model)

    def checkpoints(self) -> Checkpoints:
        """Returns the checkpoints, keyed by all but the number of processes: a run may resume with more or fewer."""
        identity = asdict(self) | {"tokens": sha256(self.tokens), "torch": torch.__version__}
        identity["pretrain"] = {key: value for key, value in self.pretrain.items() if key != "processes"}
        del identity["folder"]
        return Checkpoints(Path(self.folder), identity)


@dataclass
class Result:
    """Models in evaluation mode on the CPU, and the measurements of their training."""

    best: Examined
    last: Examined
    curve: list[dict]
    summary: dict


def pretrain(run: Run) -> Result:
    """Trains, from the run's newest checkpoint if there is one. Raises PicollmError and Stopped as `train` does."""
    if run.pretrain["processes"] == 1:
        work(run)
    else:
        launch(run)
    return result(run)


def work(run: Run) -> None:
    """Trains this process's share: everything, without torchrun."""
    with world(set_up_to_train(**run.compute)) as (own, device):
        if own.size != run.pretrain["processes"]:
            raise PicollmError(
                f"{own.size} processes were started, but pretrain.processes is {run.pretrain['processes']}: make them "
                "equal"
            )
        rows, validation_rows = (open_split(run.tokens, split) for split in ("train", "validation"))
        try:
            trainer = Trainer(run.shape(), TrainingConfig(**run.pretrain), rows, device, own)
            if own.rank == 0:
                announce(trainer)
            train(trainer, validation_rows, run.checkpoints())
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise PicollmError(
                f"out of memory ({one_line(error)[:120]}): raise pretrain.accumulate (parts of a step, "
                f"now {run.pretrain['accumulate']}) or lower pretrain.batch_rows ({run.pretrain['batch_rows']})"
            ) from None


def imported(run: Run, folder: Path) -> Result:
    """Returns a model trained elsewhere, possibly of another family, unchanged, as a run's result.

    Raises PicollmError if it does not fit.
    """
    device = set_up(**run.compute)
    model = of_another_family(run, folder) if is_foreign_folder(folder) else load_foreign(folder, run.shape())
    loss = evaluate(model.to(device), open_split(run.tokens, "validation"), device)
    counts = model.parameter_counts()
    log.info("%s parameters from %s, nothing is trained", f"{counts['total']:,}", folder)
    return Result(
        best=model,
        last=model,
        curve=[],
        summary={
            "parameters": counts["total"],
            "parameters_non_embedding": counts["non_embedding"],
            "imported": str(folder),
            "steps": 0,
            "tokens": 0,
            "validation_loss": loss,
            "validation_perplexity": math.exp(loss),
        },
    )


def of_another_family(run: Run, folder: Path) -> ForeignModel:
    """Loads a transformers model for rows of the tokens' length. Raises PicollmError if it can't read them."""
    manifest, model = open_manifest(run.tokens), load_foreign_model(folder)
    if model.config.context < manifest["context"]:
        raise PicollmError(
            f"{folder} reads {model.config.context} tokens at once, tokens.context is {manifest['context']}: lower it"
        )
    if model.config.vocab_size < manifest["vocab_size"]:
        raise PicollmError(
            f"{folder}: the tokenizer has {manifest['vocab_size']:,} ids, the model's vocabulary is "
            f"{model.config.vocab_size:,}: they don't belong together"
        )
    model.config = replace(model.config, context=manifest["context"])
    return model


def announce(trainer: Trainer) -> None:
    counts, context = trainer.model.parameter_counts(), trainer.model.config.context
    log.info(
        "%s parameters (%s without embedding), %d steps of %d tokens, loss by %s",
        f"{counts['total']:,}", f"{counts['non_embedding']:,}", trainer.steps, trainer.config.batch_rows * context,
        trainer.objective.how,
    )  # fmt: skip


def launcher(processes: int) -> list[str]:
    """Returns torchrun for this machine, or for all nodes of a Slurm allocation if this process is not a step of it.

    PICOLLM_TORCHRUN overrides it, for other clusters.
    """
    if own := os.environ.get(LAUNCHER):
        return shlex.split(own)
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ:
        agent = AGENT.format(python=shlex.quote(sys.executable), processes=processes)
        return ["srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1", "sh", "-c", agent, "torchrun"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def launch(run: Run) -> None:
    """Starts the processes under torchrun, without passing signals on: it would kill them 30 s after the first signal.

    A file asks the processes to stop instead.
    """
    store, count = run.checkpoints(), run.pretrain["processes"]
    folder = store.folder
    write_json(folder / "run.json", asdict(run))
    store.stop.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*launcher(count), "-m", "picollm.model.pretraining", folder / "run.json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(run.compute["threads"])},
        start_new_session=True,  # a terminal's Ctrl-C must reach only this process
    )
    ended: list[dict] = []
    relaying = threading.Thread(target=relay, args=(process.stderr, folder / LOG, ended), daemon=True)
    relaying.start()
    try:
        with Interruption() as interruption:
            while (code := process.poll()) is None:
                if interruption.asked and not store.stop.exists():
                    store.stop.touch()
                time.sleep(0.2)
    finally:
        process.terminate()  # it still runs only if the wait was interrupted
    relaying.join(timeout=5)  # a leftover process would hold the pipe open
    if ended:
        raise (Stopped if ended[0]["stopped"] else PicollmError)(ended[0]["error"])
    if code and interruption.asked:
        raise Stopped("stopped by a signal before anything could be saved: run again to resume at the last checkpoint")
    if code:
        raise PicollmError(f"one of {count} training processes ended (torchrun's exit code {code}): see {folder / LOG}")


def relay(stream: IO[str], path: Path, ended: list[dict]) -> None:
    """Copies all output of torchrun and its processes to a file, logs lines meant for people, and collects errors.

    A full disk does not stop it: the processes would otherwise wait forever for space in the pipe.
    """
    with open(path, "w", encoding="utf-8") as file:
        for line in stream:
            with suppress(OSError):
                file.write(line)
                file.flush()
            if line.startswith(SAID):
                log.info(line.removeprefix(SAID).rstrip())
            if line.startswith(ENDED):
                ended.append(json.loads(line.removeprefix(ENDED)))


def result(run: Run) -> Result:
    """Loads the result from the run's last checkpoint."""
    newest = run.checkpoints().newest()
    if newest is None:
        raise PicollmError(f"{run.checkpoints().folder} holds no complete checkpoint: {rerun('pretrain')}")
    tensors, state = newest
    shape, curve = run.shape(), state["curve"]
    models = []
    for name in ("best", "model"):
        model = Transformer(shape)
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        model.load_state_dict(own, strict=False)  # a tied head is stored once
        models.append(model.eval())
    best, last = models
    return Result(best, last, curve, summary(shape, run, state, best.parameter_counts()))


def summary(shape: ModelConfig, run: Run, state: dict, counts: dict[str, int]) -> dict:
    """Summarises a run. Throughput is the median over steps, so that compilation in the first one does not count."""
    curve, best = state["curve"], state["best"]
    tail = [row["loss"] for row in curve[-max(1, len(curve) // 20) :]]
    flops = flops_per_token(shape, TrainingConfig(**run.pretrain).head_rows)
    speed = median(row["tokens_per_second"] for row in curve)
    return {
        "imported": None,
        "parameters": counts["total"],
        "parameters_non_embedding": counts["non_embedding"],
        "steps": len(curve),
        "tokens": curve[-1]["tokens"],
        "first_loss": curve[0]["loss"],
        "train_loss": sum(tail) / len(tail),
        "validation_loss": best["loss"],
        "validation_perplexity": math.exp(best["loss"]),
        "best_step": best["step"],
        "last_validation_loss": curve[-1]["validation_loss"],
        "tokens_per_second": speed,
        "flop_per_second": speed * flops,
        "data_wait_share": median(row["data_wait"] for row in curve),
        "peak_memory_mib": state["peak_memory_mib"],
        "resumed_at": state["resumed_at"],
        "loss_path": state["loss_path"],
        "phases": phases(curve),
    }


Phase = TypedDict("Phase", {"from": float, "to": float, "tokens": int | None})


def phases(curve: list[dict]) -> list[Phase]:
    """Returns the tokens after which the training loss, a mean over 2 % of steps, first reached each phase's end."""
    window = max(1, len(curve) // 50)
    smooth = np.convolve([row["loss"] for row in curve], np.full(window, 1 / window), "valid")
    reached: list[Phase] = []
    for start, end in ORIGINAL_PHASES:
        at = np.flatnonzero(smooth <= end)
        tokens = curve[int(at[0]) + window - 1]["tokens"] if len(at) else None
        reached.append({"from": start, "to": end, "tokens": tokens})
    return reached


def main() -> None:
    """Runs as one of torchrun's processes."""
    path = Path(sys.argv[1])
    first = os.environ.get("RANK", "0") == "0"  # the others would log the same
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format=f"{SAID}%(message)s")
    try:
        work(Run(**json.loads(path.read_text())))
    except (PicollmError, OSError) as error:
        failure = {"error": one_line(error), "stopped": isinstance(error, Stopped)}
        os.write(2, f"{ENDED}{json.dumps(failure)}\n".encode())  # in one write: the others share the pipe
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
