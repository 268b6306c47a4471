"""The configuration: every key with its type, range and meaning. The values are in config.yaml and presets/.

The comments of config.yaml, docs/configuration.md and docs/config.schema.json are generated from these descriptions
(`picollm config-docs`). Only the Snakefile and the `picollm` command import this module: a rule's script gets its
resolved section, so that an edit here makes nothing stale. No key has a default, because DVC would not see it.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from picollm.engine.grid import BACKENDS
from picollm.engine.grid import OUTPUTS as GRAPH_OF_OUTPUT
from picollm.errors import PicollmError
from picollm.yaml12 import parse_yaml, read_yaml

OUTPUTS = tuple(GRAPH_OF_OUTPUT)
SEEDS = 1 << 31  # seeds are below this: every generator accepts them
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
if TYPE_CHECKING:  # type checkers don't follow a computed list of names
    BackendName = OutputName = Capability = str
else:
    BackendName, OutputName, Capability = Literal[BACKENDS], Literal[OUTPUTS], Literal[CAPABILITIES]


def key(description: str, **limits: Any) -> Any:
    """Declares a required key; `limits` are arguments of pydantic's Field."""
    return Field(description=description, **limits)


class Section(BaseModel):
    """A section; the docstring of each subclass gives its purpose and the rules that read it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Corpus(Section):
    """The text: prepare_corpus, final_report"""

    source: Literal["enwiki-sample", "wikitext-103", "local", "grammar"] = key(
        "enwiki-sample (106 articles from a Python package, no network) | wikitext-103 (from the hub) | local | grammar"
    )
    path: str | None = key("local: a folder, archive or file (docs/data.md lists the formats); grammar: its YAML file")
    hub: str = key("wikitext-103 only: hub repository, or a local copy of it")
    revision: str = key("wikitext-103 only: commit of the hub repository")
    fraction: float = key("share of the training articles to keep: whole articles, in order", gt=0, le=1)
    held_out_articles: int = key("articles for validation, and as many for test; unused if the corpus has splits", gt=0)

    @model_validator(mode="after")
    def source_has_path(self) -> Corpus:
        if self.source == "local" and not self.path:
            raise ValueError("corpus.path must name a folder, zip archive or file when corpus.source is local")
        if self.source == "grammar" and not self.path:
            raise ValueError("corpus.path must name a YAML file when corpus.source is grammar")
        return self


class Tokens(Section):
    """Packed token rows: tokenize_pack"""

    context: int = key("tokens per row, which is the model's context length", ge=8, le=8192)
    shard_rows: int = key("rows per shard file; a row has context + 1 tokens of 2 bytes", gt=0)
    slices: int = key("cluster jobs that tokenize the training split; the bytes do not depend on it", ge=1, le=1000)


class Compute(Section):
    """Hardware: every rule that runs the model"""

    device: Literal["auto", "cpu", "cuda"] = key("auto | cpu | cuda")
    threads: int = key(
        "CPU threads (the attention rules use one); equal threads give equal bytes on one machine", ge=1, le=256
    )


class Model(Section):
    """The architecture: pretrain"""

    d_model: int = key("width; a multiple of 2 x n_heads", gt=0)
    n_layers: int = key("transformer blocks", gt=0)
    n_heads: int = key("attention heads per layer", gt=0)
    d_ff: int = key("width of the SwiGLU layer", gt=0)
    dropout: float = key("rate on the embedding and on each sublayer's output, not on attention weights", ge=0, le=0.9)
    tied: bool = key("embedding and output layer share one matrix")
    rope_theta: float = key("base of the rotary position frequencies", gt=1)
    rope_cache: int = key("longest sequence that the model accepts", gt=0)
    checkpoint: str | None = key(
        "folder of a trained model, picollm's or of transformers (docs/training.md); null: train one"
    )

    @model_validator(mode="after")
    def heads_divide_width(self) -> Model:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"model.d_model = {self.d_model} must be a multiple of 2 x model.n_heads = {2 * self.n_heads} (RoPE)"
            )
        return self


class Pretrain(Section):
    """The training run: pretrain, nsys_capture"""

    length: int = key("length of training, in `unit`", gt=0)
    unit: Literal["steps", "epochs"] = key("steps | epochs")
    batch_rows: int = key("rows per optimizer step, over all processes", gt=0)
    accumulate: int = key("parts into which a process splits its rows; more parts need less memory", gt=0)
    processes: int = key("processes in all, one per GPU (torchrun); docs/scaling.md", ge=1, le=1024)
    loading: Literal["gather", "workers", "resident"] = key(
        "gather | workers (DataLoader) | resident (all rows on the device); same batches"
    )
    optimizer: Literal["adamw", "muon"] = key("adamw | muon (the blocks' matrices; AdamW for the rest)")
    lr: float = key("peak learning rate of AdamW", gt=0, le=10)
    muon_lr: float = key("peak learning rate of Muon", gt=0, le=10)
    weight_decay: float = key("weight decay of AdamW's matrices, including the embedding", ge=0, le=10)
    muon_weight_decay: float = key("weight decay of Muon's matrices; a large one keeps heads uniform", ge=0, le=10)
    warmup: float = key("share of the steps during which the learning rate rises", ge=0, le=1)
    final_lr: float = key("final learning rate as a share of the peak", ge=0, le=1)
    clip: float = key("maximum norm of the gradient", gt=0)
    head_common: int = key("most frequent tokens that the training loss always includes", ge=0)
    head_sampled: int = key("other tokens in the training loss, resampled each step; 0: the whole vocabulary", ge=0)
    autocast: Literal["auto", "all", "head", "none"] = key(
        "bf16 for all | head (output layer and loss) | none; auto: none if bf16 is emulated"
    )
    compile: Literal["auto", "all", "head", "none"] = key(
        "torch.compile for all | head | none; auto: head if it runs in bf16"
    )
    validate_every: int = key("steps between validations, each on the whole split", gt=0)
    patience: int = key("validations without improvement before training stops; 0: never", ge=0)
    checkpoint_every: int = key("steps between the checkpoints that an interrupted run resumes from", gt=0)
    checkpoint_minutes: float = key("minimum minutes between two checkpoints; 0: no minimum", ge=0)
    snapshots: bool = key("keep weights at steps 0, 1, 2, 4, ... for the emergence analysis")
    seed: int = key("seed of weights, batches and dropout", ge=0, lt=SEEDS)


class Attention(Section):
    """Test sentences: extract_attention, probe_heads"""

    sentences: str = key("YAML or JSON file with the categories; edit it, or use your own")
    style: Literal["plain", "wikitext"] = key("plain | wikitext (spaced punctuation and @-@ joins, as in that corpus)")
    apart: bool = key("run each category as a separate cluster job; the bytes do not depend on it")


class Heads(Section):
    """Classes of heads: classify_heads, state_findings"""

    kappa: float = key(
        "minimum chance-corrected mass of a diagonal or local head (others: attention/labels.py)", ge=0, le=1
    )
    content: float = key("minimum content share of a content-based head", ge=0, le=1)
    broad: float = key("minimum broad share of a global head", ge=0, le=1)
    sink: float = key("a head with less non-sink mass is a sink head", ge=0, le=1)
    window: int = key("offsets 1 to window count as local", ge=1, le=64)
    bootstraps: int = key("resamplings of sentences, within categories", ge=100, le=100_000)
    null_models: int = key("untrained models that get the same analysis", ge=3, le=100)
    seed: int = key("seed of resampling and untrained models", ge=0, lt=SEEDS)


class Clusters(Section):
    """Clusters of heads: cluster_heads"""

    max_k: int = key("largest number of clusters to try", ge=2, le=50)
    bootstraps: int = key("resamplings that measure a cluster's stability", ge=1, le=100_000)
    seed: int = key("seed of resampling and permutations", ge=0, lt=SEEDS)


class Mechanisms(Section):
    """Ablation, induction scores and probes: ablate_heads, score_mechanisms, probe_heads"""

    windows: int = key("validation windows on which heads are ablated; below 6 no p can be < .05", ge=6, le=100_000)
    mean_windows: int = key("training windows on which a head's mean output is computed", gt=0)
    slices: int = key("cluster jobs that ablate heads; the bytes do not depend on it", ge=1, le=1000)
    null_models: int = key("untrained models that get the same scores and probes", ge=1, le=100)
    seed: int = key("seed of sequences, resampling and untrained models", ge=0, lt=SEEDS)


class Engine(Section):
    """Inference engines: trt_compile, trt_benchmark"""

    backends: list[BackendName] = key("RUNTIME-PRECISION; docs/engines.md lists them", min_length=1)
    outputs: list[OutputName] = key("timed: last (logits of the last position) | full (of all) | loss", min_length=1)
    grid: Literal["listed", "full"] = key(
        "listed | full (all backends, outputs and batch sizes, whole validation split)"
    )
    emulated: bool = key("also build and time precisions that this processor only emulates")
    compute_capabilities: list[Capability] = key(
        f"GPUs for which TensorRT-RTX compiles without one: {' '.join(CAPABILITIES)}", min_length=1
    )
    max_batch: int = key("largest batch that engines accept", gt=0)
    calibration_rows: int = key("training rows that calibrate int8 and fp8", gt=0)
    seed: int = key("seed of the calibration rows", ge=0, lt=SEEDS)


class Benchmark(Section):
    """Timing and accuracy of engines: trt_benchmark"""

    batches: list[Annotated[int, Field(gt=0)]] = key("batch sizes", min_length=1)
    rounds: int = key("interleaved rounds, in random order", ge=3, le=1000)
    block_seconds: float = key("time that a backend runs in one round", gt=0, le=3600)
    warmup_seconds: float = key("time that a backend runs untimed before the first round", gt=0, le=3600)
    gate_rows: int = key("validation rows of the accuracy gate", gt=0)
    noise_limit: float = key(
        "a result is noisy if the baseline or the fastest backend differs from its second copy by more", gt=0, le=1
    )
    cold_start: bool = key("also start each backend in a new process")
    seed: int = key("seed of the order and the inputs", ge=0, lt=SEEDS)


class Profile(Section):
    """Profile of training: nsys_capture"""

    tool: Literal["auto", "nsys", "torch.profiler"] = key("auto | nsys | torch.profiler")
    steps: int = key("profiled training steps, after 3 warm-up steps", ge=3, le=10_000)


class Report(Section):
    """The report: draw_figures, final_report"""

    title: str = key("title of the page")
    sentences: int = key("sentences per category in the page's explorer, as many as fit", ge=0)
    examples: int = key("sentences per category shown as heat maps", ge=1, le=20)
    figure_size: float = key("scale of the figures; their text keeps its size", ge=0.5, le=2)
    palette: Literal["picollm", "colorblind", "deep", "muted"] = key(
        "colours of the classes of heads: picollm (safe for colour-blind readers) | one of seaborn's"
    )
    seeds: str | None = key("file of `picollm seeds`, whose spread is shown next to the classes' shares; null: none")


class Config(Section):
    """picollm's configuration"""

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
    """Returns the validated sections. Raises PicollmError with one line: the key, its value and what is allowed."""
    if not isinstance(values, dict):
        raise PicollmError(f"{source}: must hold sections ({', '.join(Config.model_fields)}), each with its keys")
    try:
        return Config.model_validate(values).model_dump()
    except ValidationError as error:
        # A misspelt key is also a missing one: report the first error, which shows the typo.
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
        return f"{key} is missing; every key must be listed (`picollm preset default` writes a complete file)"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].replace("Input should be", "must be")
    return f"{key} = {value!r} ({type(value).__name__}): {message}"


def keys_beside(section: list[str]) -> dict:
    """Returns the keys allowed at the top level or inside a section."""
    of = cast(type[Section], Config.model_fields[section[0]].annotation) if section else Config
    return of.model_fields


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """Reads and checks a config file. Raises PicollmError if it is missing, not YAML, or wrong."""
    try:
        return check(read_yaml(path), str(path))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: git checkout {path}, or picollm preset default") from None


def variant(config: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Returns the config with the values in a file's name: comma-separated SECTION__KEY~VALUE.

    Raises PicollmError like `check`.
    """
    values = {section: dict(keys) for section, keys in config.items()}
    for part in name.split(","):
        path, _, value = part.partition("~")
        section, _, key = path.partition("__")
        if key not in values.get(section, {}) or not value:
            raise PicollmError(f"{part}: must be SECTION__KEY~VALUE, for example pretrain__lr~0.01")
        values[section][key] = parse_yaml(value, part)
    return check(values, name)


def refuse_overrides(given: dict[str, Any], path: str = "config.yaml") -> None:
    """Raises PicollmError if Snakemake was given values by --config or --configfile.

    Both tools record config.yaml's values, so a run with other values would be recorded under wrong ones.
    """
    if given:
        raise PicollmError(
            f"--config and --configfile are refused, because DVC records {path}: "
            f"edit {path}, or run `picollm preset NAME`"
        )
