"""The configuration: every key with its type, its range and its meaning. Values are in config.yaml and presets/.

From these descriptions come the comments of config.yaml, docs/configuration.md and docs/config.schema.json
(`picollm config-docs` writes them). Only the Snakefile and the `picollm` command import this module: a rule's script
gets its resolved section, so that an edit here makes nothing stale. No key has a default, because DVC would not see it.
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
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
if TYPE_CHECKING:  # no checker follows a list of names that is computed
    BackendName = OutputName = Capability = str
else:
    BackendName, OutputName, Capability = Literal[BACKENDS], Literal[OUTPUTS], Literal[CAPABILITIES]


def key(description: str, **limits: Any) -> Any:
    """A required key; `limits` as pydantic's Field takes them."""
    return Field(description=description, **limits)


class Section(BaseModel):
    """The docstring of each: what it is for, and the rules that read it."""

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
    def local_needs_a_path(self) -> Corpus:
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
    dropout: float = key("on the embedding and on each block's output, not on attention weights", ge=0, le=0.9)
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
    accumulate: int = key("parts that a process splits its rows into; more parts need less memory", gt=0)
    processes: int = key("processes in all, one per GPU (torchrun); docs/scaling.md", ge=1, le=1024)
    loading: Literal["gather", "workers", "resident"] = key(
        "gather | workers (DataLoader) | resident (all rows on the device); same batches"
    )
    optimizer: Literal["adamw", "muon"] = key("adamw | muon (the blocks' matrices; AdamW for the rest)")
    lr: float = key("peak learning rate of AdamW", gt=0, le=10)
    muon_lr: float = key("peak learning rate of Muon", gt=0, le=10)
    weight_decay: float = key("of AdamW's matrices, the embedding among them", ge=0, le=10)
    muon_weight_decay: float = key("of Muon's matrices; a large one keeps heads uniform", ge=0, le=10)
    warmup: float = key("share of the steps with a rising learning rate", ge=0, le=1)
    final_lr: float = key("share of the peak at which the cosine ends", ge=0, le=1)
    clip: float = key("largest norm of the gradient", gt=0)
    head_common: int = key("most frequent tokens that the training loss always compares", ge=0)
    head_sampled: int = key("other tokens in the training loss, drawn anew each step; 0: the whole vocabulary", ge=0)
    autocast: Literal["auto", "all", "head", "none"] = key(
        "bf16 for all | head (output layer and loss) | none; auto: none where bf16 is emulated"
    )
    compile: Literal["auto", "all", "head", "none"] = key(
        "torch.compile for all | head | none; auto: head if it runs in bf16"
    )
    validate_every: int = key("steps between validations, each on the whole split", gt=0)
    patience: int = key("validations without improvement before training stops; 0: never", ge=0)
    checkpoint_every: int = key("steps between the checkpoints that an interrupted run resumes from", gt=0)
    checkpoint_minutes: float = key("least time between two of them, in minutes; 0: none is left out", ge=0)
    snapshots: bool = key("keep weights at steps 0, 1, 2, 4, ... for the emergence analysis")
    seed: int = key("of weights, batches and dropout", ge=0)


class Attention(Section):
    """Test sentences: extract_attention, probe_heads"""

    sentences: str = key("YAML or JSON file with the ten categories; edit it, or name your own")
    style: Literal["plain", "wikitext"] = key("plain | wikitext (spaced punctuation, @-@ joins, as in that corpus)")
    apart: bool = key("each category is a cluster job of its own; the bytes do not depend on it")


class Heads(Section):
    """Classes of heads: classify_heads, state_findings"""

    kappa: float = key("least chance-corrected mass of a diagonal or local head", ge=0, le=1)
    content: float = key("least content share of a content-based head", ge=0, le=1)
    broad: float = key("least broad share of a global head", ge=0, le=1)
    sink: float = key("a head with less non-sink mass is a sink head", ge=0, le=1)
    window: int = key("offsets 1 to window count as local", ge=1, le=64)
    bootstraps: int = key("resamplings of sentences, within categories", ge=100, le=100_000)
    null_models: int = key("untrained models that get the same analysis", ge=3, le=100)
    seed: int = key("of resampling and untrained models", ge=0)


class Clusters(Section):
    """Clusters of heads: cluster_heads"""

    max_k: int = key("largest number of clusters to try", ge=2, le=50)
    bootstraps: int = key("resamplings that measure a cluster's stability", ge=1, le=100_000)
    seed: int = key("of resampling and permutations", ge=0)


class Mechanisms(Section):
    """Ablation, induction scores and probes: ablate_heads, score_mechanisms, probe_heads"""

    windows: int = key("validation windows that heads are ablated on; below 6 no p can be < .05", ge=6, le=100_000)
    mean_windows: int = key("training windows that a head's mean output is computed on", gt=0)
    slices: int = key("cluster jobs that ablate heads; the bytes do not depend on it", ge=1, le=1000)
    null_models: int = key("untrained models that get the same scores and probes", ge=1, le=100)
    seed: int = key("of sequences, resampling and untrained models", ge=0)


class Engine(Section):
    """Inference engines: trt_compile, trt_benchmark"""

    backends: list[BackendName] = key("RUNTIME-PRECISION; docs/engines.md lists them", min_length=1)
    outputs: list[OutputName] = key("timed: last (logits of the last position) | full (of all) | loss", min_length=1)
    grid: Literal["listed", "full"] = key(
        "listed | full (all backends, outputs and batch sizes, whole validation split)"
    )
    emulated: bool = key("also build and time precisions that this processor only emulates")
    compute_capabilities: list[Capability] = key(
        f"GPUs that TensorRT-RTX compiles for without one: {' '.join(CAPABILITIES)}", min_length=1
    )
    max_batch: int = key("largest batch that engines accept", gt=0)
    calibration_rows: int = key("training rows that calibrate int8 and fp8", gt=0)
    seed: int = key("of the calibration rows", ge=0)


class Benchmark(Section):
    """Timing and accuracy of engines: trt_benchmark"""

    batches: list[Annotated[int, Field(gt=0)]] = key("batch sizes", min_length=1)
    rounds: int = key("interleaved rounds, in random order", ge=3, le=1000)
    block_seconds: float = key("time that a backend runs in one round", gt=0, le=3600)
    warmup_seconds: float = key("time that a backend runs untimed before the first round", gt=0, le=3600)
    gate_rows: int = key("validation rows of the accuracy gate", gt=0)
    noise_limit: float = key("a result is marked noisy if the baseline differs from itself by more", gt=0, le=1)
    cold_start: bool = key("also start each backend in a new process")
    seed: int = key("of the order and the inputs", ge=0)


class Profile(Section):
    """Profile of training: nsys_capture"""

    tool: Literal["auto", "nsys", "torch.profiler"] = key("auto | nsys | torch.profiler")
    steps: int = key("profiled training steps, after 3 of warm-up", ge=3, le=10_000)


class Report(Section):
    """The report: draw_figures, final_report"""

    title: str = key("title of the page")
    sentences: int = key("sentences of each category in the page's explorer, as many as fit into it", ge=0)
    examples: int = key("sentences per category shown as heat maps", ge=1, le=20)
    figure_size: float = key("of figures, in multiples of the usual one; their text keeps its size", ge=0.5, le=2)
    palette: Literal["picollm", "colorblind", "deep", "muted"] = key(
        "colours of the classes of heads: picollm (told apart by colour-blind readers) | one of seaborn's"
    )
    seeds: str | None = key("a file of `picollm seeds`, whose spread is shown next to the classes' shares; null: none")


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
        return f"{key} is missing; every key must be listed (`picollm preset default` writes a complete file)"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].replace("Input should be", "must be")
    return f"{key} = {value!r} ({type(value).__name__}): {message}"


def keys_beside(section: list[str]) -> dict:
    """The keys that are allowed at the top level, or inside a section."""
    of = cast(type[Section], Config.model_fields[section[0]].annotation) if section else Config
    return of.model_fields


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read and check a config file. Raises PicollmError if it is missing, not YAML, or wrong."""
    try:
        return check(read_yaml(path), str(path))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: git checkout {path}, or picollm preset default") from None


def variant(config: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """The config with other values, as a file is named after: SECTION__KEY~VALUE, with commas between.

    Raises PicollmError as `check` does.
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

    Both tools record config.yaml's values, so a run with others would be filed under a wrong name.
    """
    if given:
        raise PicollmError(
            f"--config and --configfile are refused, because DVC records {path}: "
            f"edit {path}, or run `picollm preset NAME`"
        )
