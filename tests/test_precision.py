"""bfloat16 is used if the processor has it: the detector, its use by training and the benchmark, Muon."""

import logging
import os

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from picollm import precision
from picollm.config import load
from picollm.engine import build as build_module
from picollm.engine.accuracy_gate import compare_all
from picollm.engine.backends.backend import BuildContext, LoadContext
from picollm.engine.backends.pytorch import AotInductor, Eager
from picollm.engine.benchmark import Setting, benchmark
from picollm.engine.grid import REFERENCE, Grid
from picollm.engine.timing import OverBudget, Protocol, measure
from picollm.model import costs, device
from picollm.model.muon import Muon, orthogonalize
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig, Transformer
from picollm.precision import bf16_cost, emulated_bf16, fit, has_bf16

CPU = torch.device("cpu")
SHAPE = ModelConfig(500, 16, 28, 2, 7, 36, 0.0, True, 10000.0, 32)
QUICK = Protocol(rounds=3, block_seconds=0.01, warmup_seconds=0.01, seed=1)


@pytest.fixture(autouse=True)
def fresh_answers():
    """The detector measures once per process."""
    bf16_cost.cache_clear()
    has_bf16.cache_clear()
    yield
    bf16_cost.cache_clear()
    has_bf16.cache_clear()


@pytest.fixture
def without_bf16(monkeypatch):
    monkeypatch.setattr(precision, "describe_cpu", lambda: {"isa": ["avx2"]})
    monkeypatch.setattr(precision, "bf16_cost", lambda: 77.0)


@pytest.fixture
def with_bf16(monkeypatch):
    monkeypatch.setattr(precision, "describe_cpu", lambda: {"isa": ["avx2", "avx512_bf16"]})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "bf16_cost", lambda: 0.4)


def section(**edits):
    return load("config.yaml")["pretrain"] | edits


class Count(TorchDispatchMode):
    """Counts operations whose result is bfloat16."""

    def __init__(self):
        super().__init__()
        self.bf16 = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        results = out if isinstance(out, list | tuple) else [out]
        self.bf16 += any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in results)
        return out


def bf16_operations(recipe) -> int:
    """Counts bfloat16 operations in two training steps."""
    small = recipe | {"batch_rows": 2, "head_common": 64, "head_sampled": 32, "compile": "none"}
    rows = np.random.default_rng(0).integers(500, size=(8, 17)).astype(np.uint16)
    trainer = Trainer(SHAPE, TrainingConfig(**small), rows, CPU)
    with Count() as count:
        trainer.advance()
        trainer.advance()
    return count.bf16


def test_training_without_the_instructions_has_no_bf16_operation(without_bf16):
    recipe, reason = fit(section(), CPU)
    assert recipe["autocast"] == "none" and reason == "this processor emulates bf16 (77 times slower than float32)"
    assert bf16_operations(recipe) == 0


def test_training_with_the_instructions_uses_them_in_the_head(with_bf16):
    recipe, reason = fit(section(), CPU)
    assert recipe["autocast"] == "head" and reason == "this processor has bf16 instructions"
    assert bf16_operations(recipe) > 0


def test_forced_bf16_runs_with_a_warning_that_names_the_factor(without_bf16, caplog):
    with caplog.at_level(logging.WARNING):
        recipe, reason = fit(section(autocast="all"), CPU)
    assert recipe["autocast"] == "all" and bf16_operations(recipe) > 0
    assert "pretrain.autocast = all: this processor emulates bf16 (77 times slower than float32)" in caplog.text
    assert "77 times" in reason


def test_compile_follows_the_precision(with_bf16, monkeypatch):
    assert fit(section(), CPU)[0]["compile"] == "head"
    assert fit(section(compile="all"), CPU)[0]["compile"] == "all"
    assert fit(section(autocast="none"), CPU)[0]["compile"] == "none"


@pytest.mark.parametrize("facts", [{"isa": []}, {"isa": ["avx2", "avx512f"]}])
def test_a_processor_that_says_nothing_of_bf16_gets_float32(facts, with_bf16, monkeypatch):
    monkeypatch.setattr(precision, "describe_cpu", lambda: facts)
    assert not has_bf16() and fit(section(), CPU)[0]["autocast"] == "none"


def test_the_clock_overrules_a_processor_that_says_it_has_them(with_bf16, monkeypatch):
    monkeypatch.setattr(precision, "bf16_cost", lambda: 5.0)
    assert not has_bf16() and "5 times slower" in emulated_bf16()


def test_a_moment_without_a_core_makes_no_processor_one_without_bf16(monkeypatch):
    """While another process holds a core, a product of two threads takes many times its own time."""
    measured = iter([3.0, 4.0, 0.2])
    monkeypatch.setattr(precision, "ratio_of_products", lambda seconds: next(measured))
    assert bf16_cost() == 0.2
    bf16_cost.cache_clear()
    monkeypatch.setattr(precision, "ratio_of_products", lambda seconds: 6.0)
    assert bf16_cost() == 6.0


def test_the_detector_measures_a_real_product():
    assert 0.01 < bf16_cost() < 1000


def subject_of(folder, backends=()):
    torch.manual_seed(0)
    manifest = {"backends": dict(backends), "max_batch": 4, "checkpoint_sha256": "0" * 64, "files": []}
    return LoadContext(Transformer(SHAPE).eval(), manifest, folder, CPU, threads=1)


def counting(monkeypatch, cls, method, calls):
    original = getattr(cls, method)

    def counted(self, *args):
        calls.append(self.precision)
        return original(self, *args)

    monkeypatch.setattr(cls, method, counted)


@pytest.mark.parametrize("emulated", [False, True])
def test_no_backend_is_timed_in_an_emulated_precision_unless_it_is_asked_for(
    emulated, without_bf16, monkeypatch, tmp_path
):
    loads: list[str] = []
    counting(monkeypatch, Eager, "load", loads)
    how = Setting(Grid((REFERENCE, "eager-bf16"), {"last": (1,)}, 4, emulated), 4, QUICK, 0.5, cold=False)
    rows = np.random.default_rng(2).integers(500, size=(6, 17)).astype(np.uint16)
    report, _ = benchmark(subject_of(tmp_path), rows, how, tmp_path)
    assert ("bf16" in loads) == emulated
    status = report["backends"]["eager-bf16"]["status"]
    skipped = "not run: this processor emulates bf16 (77 times slower than float32); engine.emulated: true builds and"
    assert status.startswith(skipped) != emulated


def test_no_artefact_is_built_in_an_emulated_precision(without_bf16, monkeypatch, tmp_path):
    builds: list[str] = []
    counting(monkeypatch, AotInductor, "build", builds)
    ctx = BuildContext(subject_of(tmp_path).model, tmp_path, CPU, 4, np.zeros((1, 16), np.int64), ["8.9"])
    manifest = build_module.build(ctx, Grid(("aoti-bf16",), {"last": (1,)}, 4), checkpoint_sha256="0")
    assert builds == []
    assert manifest["backends"]["aoti-bf16"]["reason"].startswith("it was not built: this processor emulates bf16 (77")


class Clock:
    """A clock that advances only while something runs that is declared to take time."""

    now = 0.0

    def __call__(self):
        return self.now

    def taking(self, seconds, answer):
        def run(*inputs):
            self.now += seconds
            return answer(*inputs)

        return run


def test_a_backend_beyond_its_share_of_the_time_says_so_after_two_calls():
    clock, calls = Clock(), []
    runs = {
        "base": clock.taking(0.004, lambda ids: ids),
        "slow": clock.taking(9.0, lambda ids: calls.append(1)),
        "compiles": iter([30.0] + [0.003] * 100_000),
    }
    seconds = runs["compiles"]
    runs["compiles"] = lambda ids: clock.taking(next(seconds), lambda: ids)()
    samples, failed = measure(runs, [np.zeros((1, 2))], QUICK, clock)
    assert set(samples) == {"base", "compiles"}
    assert isinstance(failed["slow"], OverBudget) and len(calls) == 2
    assert "one call takes 9 s, so 81 s in all; the limit is 10 s" in str(failed["slow"])


def test_a_slow_machine_on_which_all_are_slow_leaves_none_out():
    clock = Clock()
    runs = {name: clock.taking(seconds, lambda ids: ids) for name, seconds in (("base", 5.0), ("slower", 15.0))}
    assert set(measure(runs, [np.zeros((1, 2))], QUICK, clock)[0]) == {"base", "slower"}


def test_the_gate_leaves_out_what_would_take_far_longer_than_the_reference(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("picollm.engine.accuracy_gate.time.perf_counter", clock)
    rows = np.zeros((40, 5), np.uint16)

    def logits(ids, positions):
        return np.ones((len(ids), len(positions), 7), np.float32)

    answers = {name: clock.taking(s, logits) for name, s in (("reference", 0.01), ("fine", 0.2), ("slow", 9.0))}
    found, failed = compare_all(answers, "reference", rows, batch=1)
    assert set(found) == {"reference", "fine"} and isinstance(failed["slow"], OverBudget)
    assert clock.now == pytest.approx(40 * 0.21 + 2 * 9.0)


@pytest.mark.parametrize("rate", [1e6, 1e9, 1e13])
def test_the_machines_own_rate_is_found_within_a_second(rate, monkeypatch):
    clock = Clock()
    shape = ModelConfig(5000, 16, 64, 1, 1, 8, 0.0, True, 10000.0, 32)

    def product(a, b, out):
        clock.now += 2 * a.shape[0] * a.shape[1] * b.shape[1] / rate + 1e-5

    monkeypatch.setattr(costs.time, "perf_counter", clock)
    monkeypatch.setattr(torch, "matmul", product)
    found = costs.gemm_rate(2048, shape, CPU, torch.float32)
    assert found == pytest.approx(rate, rel=0.9 if rate > 1e12 else 0.1)
    one_product = 2 * costs.FEWEST_TOKENS * 64 * 5056 / rate
    assert clock.now < max(1.0, one_product + 1e-3)


def exact(gradient, iterations=5):
    """Newton-Schulz in float64, from the published formula."""
    x = gradient.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm()
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


@pytest.mark.parametrize("shape", [(12, 12), (36, 12), (12, 40)])
def test_orthogonalize_is_the_published_iteration_for_each_matrix(shape):
    torch.manual_seed(1)
    gradients = torch.randn(3, *shape)
    found = orthogonalize(gradients, torch.float32)
    for one, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.double(), exact(gradient), atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(found)
    assert 0.3 < values.min() and values.max() < 1.3


def test_muon_takes_torchs_steps():
    torch.manual_seed(2)
    start = [torch.randn(6, 9), torch.randn(9, 6), torch.randn(6, 9), torch.randn(7, 7)]
    own, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizers = (
        Muon(own, lr=0.1, weight_decay=0.2, dtype=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2),
    )
    for _ in range(4):
        for a, b in zip(own, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(own, theirs, start, strict=True):
        assert (a - first).abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=0.01, rtol=0.01)  # bf16's rounding, in another order


def test_compiled_code_of_another_instruction_set_is_not_found(monkeypatch, tmp_path):
    """Inductor's cache does not distinguish AVX2 from AVX-512, and the wrong code overwrites memory."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folders = set()
    for isa, capability in ((["avx2"], "AVX2"), (["avx2", "avx512f"], "AVX512"), (["avx2", "avx512f"], "AVX2")):
        monkeypatch.setattr(device, "describe_cpu", lambda isa=isa: {"isa": isa})
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        device.keep_caches_apart()
        once = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        device.keep_caches_apart()  # in a process that this one starts
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == once and once.startswith(str(tmp_path))
        folders.add(once)
    assert len(folders) == 3
