"""Every configuration key once: its type, its range and what it means. The values in force stand in config.yaml.

Only the Snakefile and the `picollm` command read this module: a rule's script gets its resolved section, so that an
edit here makes nothing stale. config.yaml lists every key for the same reason: DVC would not see a default here.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from picollm.data.archives import linked_folders, text_files
from picollm.engine.grid import BACKENDS, OUTPUTS
from picollm.errors import PicollmError
from picollm.yaml12 import read_yaml

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=10)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Corpus(Section):
    source: Literal["enwiki-sample", "wikitext-103", "local"]
    path: str | None  # of a local corpus: folder, zip archive or file
    hub: str  # hub repository or a local folder with its layout
    revision: str  # commit of the hub repository
    fraction: Annotated[float, Field(gt=0, le=1)]  # of the training articles, in order
    held_out_articles: Positive  # for validation, and as many for test, where the corpus has no splits

    @model_validator(mode="after")
    def local_needs_a_path(self) -> Corpus:
        if self.source == "local" and not self.path:
            raise ValueError("corpus.path must name a folder, zip archive or file when corpus.source is local")
        return self


class Tokens(Section):
    context: Annotated[int, Field(ge=8, le=8192)]  # tokens a row
    shard_rows: Positive  # rows a shard
    slices: Annotated[int, Field(ge=1, le=1000)]  # jobs that tokenize the training split


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=1, le=256)]  # of the CPU


class Model(Section):
    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    d_ff: Positive
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    tied: bool
    rope_theta: Annotated[float, Field(gt=1)]
    rope_cache: Positive  # positions
    checkpoint: str | None  # folder of a trained model to take instead of training one

    @model_validator(mode="after")
    def heads_divide_width(self) -> Model:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"model.d_model = {self.d_model} must be a multiple of 2 x model.n_heads = {2 * self.n_heads} (RoPE)"
            )
        return self


class Pretrain(Section):
    length: Positive  # in `unit`
    unit: Literal["steps", "epochs"]
    batch_rows: Positive  # rows a step, of all processes
    accumulate: Positive  # parts that a process computes its rows in
    processes: Annotated[int, Field(ge=1, le=1024)]  # of torchrun, in all
    loading: Literal["gather", "workers", "resident"]
    optimizer: Literal["adamw", "muon"]
    lr: Rate  # AdamW's peak
    muon_lr: Rate  # Muon's peak
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    muon_weight_decay: Annotated[float, Field(ge=0, le=10)]
    warmup: Share  # of the steps
    final_lr: Share  # of the peak
    clip: Annotated[float, Field(gt=0)]  # gradient norm
    head_common: Count  # commonest tokens that the training loss always compares
    head_sampled: Count  # of the others, drawn anew each step; 0: the whole vocabulary
    autocast: Literal["auto", "all", "head", "none"]
    compile: Literal["auto", "all", "head", "none"]
    validate_every: Positive  # steps
    patience: Count  # validations without a better one before it stops; 0: never
    checkpoint_every: Positive  # steps
    snapshots: bool
    seed: Count


class Attention(Section):
    sentences: str  # path of the YAML file
    style: Literal["plain", "wikitext"]  # how the training text is written


class Heads(Section):
    kappa: Share
    content: Share
    broad: Share
    sink: Share
    window: Annotated[int, Field(ge=1, le=64)]  # offsets
    bootstraps: Annotated[int, Field(ge=100, le=100_000)]
    null_models: Annotated[int, Field(ge=3, le=100)]
    seed: Count


class Clusters(Section):
    max_k: Annotated[int, Field(ge=2, le=50)]
    bootstraps: Annotated[int, Field(ge=1, le=100_000)]
    seed: Count


class Mechanisms(Section):
    windows: Annotated[int, Field(ge=6, le=100_000)]  # of fewer no head could have p < .05
    mean_windows: Positive
    null_models: Annotated[int, Field(ge=1, le=100)]
    seed: Count


class Engine(Section):
    backends: Annotated[list[Literal[BACKENDS]], Field(min_length=1)]
    outputs: Annotated[list[Literal[tuple(OUTPUTS)]], Field(min_length=1)]  # what is timed
    grid: Literal["listed", "full"]  # full: every backend, output and batch size, and the whole validation split
    emulated: bool  # also build and time what this processor only emulates
    compute_capabilities: Annotated[
        list[Literal["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]], Field(min_length=1)
    ]  # of TensorRT-RTX, ahead of time
    max_batch: Positive
    calibration_rows: Positive  # training rows that int8 and fp8 are calibrated on
    seed: Count  # of their choice


class Benchmark(Section):
    batches: Annotated[list[Positive], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=3, le=1000)]
    block_seconds: Seconds
    warmup_seconds: Seconds
    gate_rows: Positive
    noise_limit: Annotated[float, Field(gt=0, le=1)]  # of |baseline against itself - 1|; above it a row is marked
    cold_start: bool  # also start each backend in a fresh process
    seed: Count


class Profile(Section):
    tool: Literal["auto", "nsys", "torch.profiler"]
    steps: Annotated[int, Field(ge=3, le=10_000)]


class Report(Section):
    title: str
    examples: Annotated[int, Field(ge=1, le=20)]  # sentences a category


class Config(Section):
    corpus: Corpus
    tokens: Tokens
    compute: Compute
    model: Model
    pretrain: Pretrain
    attention: Attention
    heads: Heads
    clusters: Clusters
    mechanisms: Mechanisms
    engine: Engine
    benchmark: Benchmark
    profile: Profile
    report: Report

    @model_validator(mode="after")
    def context_fits(self) -> Config:
        if self.model.rope_cache < self.tokens.context:
            raise ValueError(
                f"model.rope_cache = {self.model.rope_cache} must be at least tokens.context = {self.tokens.context}"
            )
        return self

    @model_validator(mode="after")
    def batches_fit(self) -> Config:
        batches, most = self.benchmark.batches, self.engine.max_batch
        if max(batches) > most:
            raise ValueError(f"benchmark.batches = {batches} must not exceed engine.max_batch = {most}")
        return self


def check(values: Any, source: str = "config.yaml") -> dict[str, dict[str, Any]]:
    """The validated sections. Raises PicollmError with one line: the key, its value and what is allowed."""
    if not isinstance(values, dict):
        raise PicollmError(f"{source}: must hold sections ({', '.join(Config.model_fields)}), each with its keys")
    try:
        return Config.model_validate(values).model_dump()
    except ValidationError as error:
        # A misspelt key is also a missing one: say the first, which shows the typo.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise PicollmError(f"{source}: {explain(first)}") from None


def explain(error: ErrorDetails) -> str:
    path = [str(part) for part in error["loc"]]
    key, value = ".".join(path), error["input"]
    if error["type"] == "extra_forbidden":
        known = list(keys_beside(path[:-1]))
        close = get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(known)}"
        return f"{key} = {value!r} is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing; every key must be listed (copy the line from a file in presets/)"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].replace("Input should be", "must be")
    return f"{key} = {value!r} ({type(value).__name__}): {message}"


def keys_beside(section: list[str]) -> dict:
    """The keys that are allowed at the top level, or inside a section."""
    return Config.model_fields[section[0]].annotation.model_fields if section else Config.model_fields


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read and check a config file. Raises PicollmError where it is missing, not YAML, or wrong."""
    try:
        return check(read_yaml(path), str(path))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: git checkout {path}, or cp presets/smoke.yaml {path}") from None


def corpus_source(corpus: dict[str, Any]) -> str | None:
    """The file or folder of the `corpus` section that lies on this machine; None where there is none."""
    path = {"local": corpus["path"], "wikitext-103": corpus["hub"]}.get(corpus["source"])
    return path if path and (corpus["source"] == "local" or Path(path).is_dir()) else None


def corpus_dependencies(corpus: dict[str, Any]) -> list[str]:
    """What DVC hashes of `corpus_source`: it, and each linked folder in it, as DVC follows no link on its way."""
    source = corpus_source(corpus)
    return [source, *map(str, linked_folders(Path(source)))] if source else []


def corpus_files(corpus: dict[str, Any]) -> list[str]:
    """The files that are read of `corpus_source`: both tools must see an edit of one.

    Raises PicollmError where a local corpus has none, or one has a name that the tools can't write down.
    """
    source = corpus_source(corpus)
    if source is None:
        return []
    files = [str(file) for file in text_files(Path(source))]
    if not files:
        raise PicollmError(
            f"corpus.path = {source}: no such file or folder, or an empty one; put the text there or change "
            "corpus.source"
        )
    return refuse_names("corpus.path", [source, *files])[1:]


def model_files(model: dict[str, Any]) -> list[str]:
    """The files of model.checkpoint, for the same reason. Raises PicollmError where one is missing."""
    folder = model["checkpoint"]
    if folder is None:
        return []
    files = [Path(folder) / name for name in ("model.safetensors", "config.json")]
    for file in files:
        if not file.is_file():
            raise PicollmError(
                f"model.checkpoint = {folder}: {file} is missing; name a folder on this machine with both (weights in "
                "several files and pytorch_model.bin are not read, nor is a name on a hub), or null to train a model"
            )
    return refuse_names("model.checkpoint", [str(file) for file in files])


def refuse_names(key: str, paths: list[str]) -> list[str]:
    """The paths. Raises PicollmError for the first that has another meaning in dvc.yaml or in a rule, or none."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise PicollmError(f"{key}: the name {path!r} is not UTF-8: rename it") from None
        if found := set(path) & set("{}$*?[]") or [c for c in path if not c.isprintable()]:
            raise PicollmError(f"{key}: the name {path!r} holds {', '.join(map(repr, sorted(found)))}: rename it")
    return paths


def refuse_overrides(given: dict[str, Any], path: str = "config.yaml") -> None:
    """Raises PicollmError where Snakemake was given values by --config or --configfile.

    Both tools record config.yaml's values, so a run with others would be filed under a wrong name.
    """
    if given:
        raise PicollmError(
            f"--config and --configfile are refused, because DVC records {path}: "
            f"edit {path}, or cp presets/X.yaml {path}"
        )
