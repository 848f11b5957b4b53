"""The Triton kernels equal the oracle: on a GPU compiled, elsewhere in Triton's interpreter, which is why shapes are small."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer import focused_linear_attention
from flatten_transformer.ops import reference
from flatten_transformer.ops.checks import Arguments, Norm
from flatten_transformer.ops.triton import backend, why_not
from tests.helpers import attention_terms, output_and_gradients, relative_error

pytest.importorskip("triton", reason="Triton is not installed: it has no wheels for this platform")

import triton
import triton.language as tl
from triton.runtime import interpreter

from flatten_transformer.ops.triton import sizes
from flatten_transformer.ops.triton.convolution import tokens_of_block

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")  # interpreters before Triton 3.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("query", "key", "value", "temperature", "key_encoding", "conv_weight", "conv_bias")
# Relative errors allowed; measured over PROBLEMS, at worst: 7.8e-7, 3.8e-4, 9e-3 (the interpreter cuts bfloat16 off
# where a GPU rounds it).
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill what nobody has written yet with NaN, refuse what adds up in no fixed order: PyTorch's mode for both."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def _languages_replaced_once_a_launch() -> Iterator[None]:
    """Spare the interpreter a third of its time: at each call of a device function it replaces Triton's functions anew."""
    replace: Any = getattr(interpreter, "_patch_lang", None)  # not of its public interface

    def replace_unless_done(function: Any) -> Any:
        languages = [each for each in (tl, tl.core) if any(value is each for value in function.__globals__.values())]
        return replace(function) if any(tl.core.is_builtin(each.load) for each in languages) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", replace_unless_done, raising=False)
        yield


@dataclass(frozen=True)
class Problem:
    """Sizes and options of one attention, from which its tensors are drawn."""

    batch: int = 1
    heads: int = 2
    queries: int = 40
    keys: int = 40
    key_channels: int = 16
    value_channels: int = 16
    focusing_factor: float = 3.0
    norm: Norm = "joint"
    masked: bool = False
    temperature: bool = False
    encoding: bool = False
    grid: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    bias: bool = True
    eps: float = 1e-6
    dtype: torch.dtype = torch.float32
    options_dtype: torch.dtype = torch.float32
    vanishing: bool = False  # gradients cancel so far that their rounding is measured against what cancels

    def draw(self, step: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(step)).to(DEVICE)

    def inputs(self) -> dict[str, Tensor]:
        """Return query, key and value in ``dtype``, and the options in ``options_dtype``."""
        lead, d, e = (self.batch, self.heads), self.key_channels, self.value_channels
        tensors = {
            "query": self.draw(1, *lead, self.queries, d).to(self.dtype),
            "key": self.draw(2, *lead, self.keys, d).to(self.dtype),
            "value": self.draw(3, *lead, self.keys, e).to(self.dtype),
        }
        if self.temperature:
            tensors["temperature"] = self.draw(4, self.heads, d).sigmoid() + 0.5
        if self.encoding:
            tensors["key_encoding"] = self.draw(5, self.keys, self.heads, d).transpose(0, 1)  # as the layer has it
        if self.kernel:
            tensors["conv_weight"] = self.draw(6, e, 1, *self.kernel)
            if self.bias:
                tensors["conv_bias"] = self.draw(7, e)
        return {name: tensor if name in NAMES[:3] else tensor.to(self.options_dtype) for name, tensor in tensors.items()}

    def mask(self) -> Tensor | None:
        if not self.masked:
            return None
        mask = self.draw(8, self.batch, 1, 1, self.keys) < 0.5
        mask[..., 0] = True
        return mask

    def upstream(self) -> Tensor:
        return self.draw(9, self.batch, self.heads, self.queries, self.value_channels).to(self.dtype)

    def run(self, attention: Callable[..., Tensor], inputs: dict[str, Tensor], **settings: Any) -> dict[str, Tensor]:
        """Return the output of ``attention`` and the gradient of each input, by name."""

        def call(*tensors: Tensor) -> Tensor:
            named = dict(zip(inputs, tensors, strict=True))
            grid = {"grid_size": self.grid} if self.kernel else {}
            norm: dict[str, Any] = {"focusing_factor": self.focusing_factor, "norm": self.norm, "eps": self.eps}
            return attention(attn_mask=self.mask(), **named, **grid, **norm, **settings)

        results = output_and_gradients(call, list(inputs.values()), self.upstream())
        return dict(zip(("output", *inputs), results, strict=True))

    def sizes_that_cancel(self) -> dict[str, float]:
        """Return the norms of the numerator's part of each gradient: see attention_terms."""
        if not self.vanishing:
            return {}
        inputs = {name: tensor.double() for name, tensor in self.inputs().items() if name in NAMES[:5]}
        inputs["value"] = inputs["value"].abs()

        def terms(key: Tensor, key_encoding: Tensor | None = None, **others: Any) -> Tensor:
            others.pop("grid_size", None)
            return attention_terms(key=key if key_encoding is None else key + key_encoding, **others)

        return {name: float(tensor.norm()) for name, tensor in self.run(terms, inputs).items()}


def errors(problem: Problem) -> dict[str, float]:
    """Return the relative errors of the output and of every gradient against the float64 oracle."""
    inputs = problem.inputs()
    came = problem.run(focused_linear_attention, inputs, backend="triton")
    wanted = problem.run(reference.focused_linear_attention, {name: tensor.double() for name, tensor in inputs.items()})
    cancels = problem.sizes_that_cancel()
    result = {}
    for name, other in wanted.items():
        error = relative_error(came[name], other)
        larger = cancels.get(name, 0.0) / float(other.norm().clamp_min(1e-300))
        result[name] = error / max(1.0, larger)
    return result


HALF, BFLOAT = torch.float16, torch.bfloat16
PLANE: dict[str, Any] = {"grid": (5, 8), "kernel": (3, 3)}
EVERYTHING: dict[str, Any] = {"masked": True, "temperature": True, "encoding": True, **PLANE}
FEW: dict[str, Any] = {**EVERYTHING, "queries": 12, "keys": 12, "grid": (3, 4)}
PROBLEMS = {
    "plain": Problem(),
    "two samples, more keys": Problem(batch=2, heads=1, queries=33, keys=70),
    "more queries than keys": Problem(queries=95, keys=31, heads=1),
    "63 tokens": Problem(queries=63, keys=63, heads=1, temperature=True),
    # two stretches, the second one shorter
    "150 tokens": Problem(queries=150, keys=150, heads=1, temperature=True),
    "150 tokens, bfloat16": Problem(queries=150, keys=150, heads=1, encoding=True, dtype=BFLOAT),
    "one query": Problem(queries=1, keys=50, temperature=True),
    "one key": Problem(queries=50, keys=1, temperature=True, encoding=True, vanishing=True),
    "one of each": Problem(queries=1, keys=1, heads=1, vanishing=True),
    "wide values": Problem(key_channels=16, value_channels=40),
    "wide keys": Problem(key_channels=72, value_channels=24, temperature=True),
    "narrow heads": Problem(key_channels=8, value_channels=9, **PLANE),
    "128 channels, float16": Problem(heads=1, key_channels=128, value_channels=128, dtype=HALF),
    "64 channels, bfloat16": Problem(key_channels=64, value_channels=64, dtype=BFLOAT, **EVERYTHING),
    "everything": Problem(batch=2, **EVERYTHING),
    "everything, few tokens": Problem(**FEW),
    "everything, heads apart": Problem(norm="per_head", **EVERYTHING),
    "everything, float16": Problem(heads=3, dtype=HALF, **EVERYTHING),
    "everything, bfloat16": Problem(norm="per_head", dtype=BFLOAT, **EVERYTHING),
    "everything, all in bfloat16": Problem(dtype=BFLOAT, options_dtype=BFLOAT, **EVERYTHING),
    "prefix tokens": Problem(queries=43, keys=43, **EVERYTHING),
    "kernel 5, prefix, no bias": Problem(queries=38, keys=38, grid=(5, 7), kernel=(5, 5), bias=False, dtype=HALF),
    "kernel 5, larger than the grid": Problem(queries=4, keys=4, grid=(2, 2), kernel=(5, 5)),
    "oblong kernel": Problem(grid=(8, 5), kernel=(3, 5), encoding=True),
    "one axis": Problem(queries=39, keys=39, grid=(38,), kernel=(5,), masked=True),
    "no focusing": Problem(focusing_factor=1.0, temperature=True),
    "p = 2, heads apart": Problem(focusing_factor=2.0, norm="per_head", temperature=True, dtype=HALF),
    "p = 2.5": Problem(focusing_factor=2.5, masked=True, temperature=True),
    "p = 11": Problem(focusing_factor=11.0, temperature=True),
    "p = 6.5, float16": Problem(focusing_factor=6.5, heads=3, encoding=True, dtype=HALF),
    "an eps that matters": Problem(eps=0.3, **FEW),
    "an eps that matters, bfloat16": Problem(eps=0.3, heads=3, norm="per_head", dtype=BFLOAT, **FEW),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_output_and_every_gradient_equal_the_oracle(name: str) -> None:
    problem = PROBLEMS[name]
    for tensor, error in errors(problem).items():
        assert error <= TOLERANCES[problem.dtype], tensor


@pytest.mark.parametrize("programs", [1, 10**6])
def test_stretches_of_tokens_add_up(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_TARGET_PROGRAMS", programs)
    monkeypatch.setattr(sizes, "_MIN_STRETCH", 32)  # one block
    monkeypatch.setattr(sizes, "_MAX_STRETCH", 96)  # three blocks
    for tensor, error in errors(Problem(queries=200, keys=230, heads=1, temperature=True, masked=True)).items():
        assert error <= TOLERANCES[torch.float32], tensor


def test_heads_of_different_sizes_keep_their_precision_in_float16() -> None:
    """With a joint norm the small head's features are 1e-9 of the large one's: none of it may be lost in half precision."""
    problem = Problem(queries=50, keys=60, eps=1e-30, dtype=HALF)
    inputs = problem.inputs()
    for name in ("query", "key"):
        inputs[name][:, 1] *= 1e-3
    came = problem.run(focused_linear_attention, inputs, backend="triton")
    wanted = problem.run(reference.focused_linear_attention, {name: tensor.double() for name, tensor in inputs.items()})
    for name, other in wanted.items():
        for head in range(2):
            assert relative_error(came[name][:, head], other[:, head]) <= TOLERANCES[HALF], (name, head)


def test_values_with_a_large_mean_keep_the_gradient_of_the_query() -> None:
    """It is a difference of means of the values: rounding those to bfloat16 would leave nothing of it."""
    problem = Problem(queries=200, keys=200, heads=1, dtype=BFLOAT)
    inputs = problem.inputs()
    inputs["value"] += 8
    came = problem.run(focused_linear_attention, inputs, backend="triton")
    wanted = problem.run(reference.focused_linear_attention, {name: tensor.double() for name, tensor in inputs.items()})
    for name in ("output", "query", "key", "value"):
        assert relative_error(came[name], wanted[name]) <= TOLERANCES[BFLOAT], name


def test_packed_projections_are_read_where_they_lie() -> None:
    problem = Problem(batch=2, queries=12, keys=12, grid=(3, 4), kernel=(3, 3))
    packed = problem.draw(1, 2, 12, 3, 2, 16)  # [B, N, 3, H, D]
    options = {name: tensor for name, tensor in problem.inputs().items() if name in NAMES[3:]}
    results = []
    for contiguous in (False, True):
        leaf = packed.clone().requires_grad_()
        tensors = leaf.permute(2, 0, 3, 1, 4).unbind(0)
        query, key, value = (x.contiguous() for x in tensors) if contiguous else tensors
        out = focused_linear_attention(query, key, value, grid_size=problem.grid, backend="triton", **options)  # type: ignore[arg-type]
        results.append((out.detach(), *torch.autograd.grad(out, leaf, problem.upstream())))
        assert out.transpose(1, 2).is_contiguous()  # the projection behind it needs no copy
    for strided, wanted in zip(*results, strict=True):
        assert torch.equal(strided, wanted)


def test_two_runs_give_the_same_bits() -> None:
    problem = PROBLEMS["everything, bfloat16" if DEVICE == "cuda" else "an eps that matters, bfloat16"]
    one, other = (problem.run(focused_linear_attention, problem.inputs(), backend="triton") for _ in range(2))
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_an_expanded_gradient_is_accepted() -> None:
    problem = Problem()
    query, key, value = (tensor.requires_grad_() for tensor in problem.inputs().values())
    gradients = []
    for name in ("triton", "portable"):
        out = focused_linear_attention(query, key, value, backend=name)
        gradients.append(torch.autograd.grad(out.sum(), value)[0])
    assert relative_error(*gradients) < TOLERANCES[torch.float32]


def test_no_query_gives_no_output_and_zero_gradients() -> None:
    problem = Problem(queries=0, temperature=True)
    results = problem.run(focused_linear_attention, problem.inputs(), backend="triton")
    assert results["output"].shape == (1, 2, 0, 16)
    assert all((results[name] == 0).all() for name in NAMES[:4])


@pytest.mark.parametrize("masked", [False, True], ids=["all kept", "all masked"])
def test_a_sample_without_keys_attends_to_nothing(masked: bool) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in Problem(batch=2).inputs().values())
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool, device=DEVICE)
    mask[1] = not masked
    out = focused_linear_attention(query, key, value, mask, backend="triton")
    gradients = torch.autograd.grad(out.sum(), (query, key, value))
    assert (out[1].abs().max() == 0) == masked
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[2][1].abs().max() == 0) == masked


# Every dtype with every magnitude; powers, dead tokens and norms take turns.
MAGNITUDES = [1e-3, 1.0, 50.0, 1e3, 3e4]
LOUD = [
    (dtype, magnitude, power, bool((row + column + turn) % 2), norm)
    for turn, powers in enumerate([(3, 32, 2, 8, 16), (8, 3, 16, 2.5, 32)])
    for row, dtype in enumerate(TOLERANCES)
    for column, (magnitude, power) in enumerate(zip(MAGNITUDES, powers[row:] + powers[:row], strict=True))
    for norm in (("joint", "per_head")[(row + column // 2 + turn) % 2],)
]


@pytest.mark.parametrize(("dtype", "magnitude", "power", "dead", "norm"), LOUD, ids=str)
def test_outputs_and_gradients_are_finite(dtype: torch.dtype, magnitude: float, power: float, dead: bool, norm: Norm) -> None:
    problem = Problem(queries=7, keys=5, key_channels=16, value_channels=8, focusing_factor=power, norm=norm, dtype=dtype)
    inputs = {name: (tensor * magnitude).clamp(-6e4, 6e4) for name, tensor in problem.inputs().items()}
    if dead:
        for name in ("query", "key"):
            inputs[name][:, :, ::3] = -inputs[name][:, :, ::3].abs()
    inputs["temperature"] = torch.full((2, 16), 0.6931, device=DEVICE)
    results = problem.run(focused_linear_attention, inputs, backend="triton")
    for name, result in results.items():
        assert result.isfinite().all(), name
    assert results["output"].abs().max() > 0


def test_the_encoding_is_the_key_gradient_of_all_samples() -> None:
    problem = Problem(batch=2, encoding=True)
    results = problem.run(focused_linear_attention, problem.inputs(), backend="triton")
    assert relative_error(results["key"].sum(0), results["key_encoding"]) < 1e-6


@triton.jit
def _list_tokens(out, prefix, height, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    block = tl.program_id(0)
    tokens, inside = tokens_of_block(block, prefix, height, width, BLOCK)
    tl.store(out + block * BLOCK + tl.arange(0, BLOCK), tl.where(inside, tokens, -1))


@pytest.mark.parametrize("grid", [(0, 1, 7), (0, 5, 4), (3, 5, 9), (1, 7, 7), (5, 2, 6)], ids=str)
def test_groups_of_neighbours_hold_each_token_once(grid: tuple[int, int, int]) -> None:
    """A token that two programs write is a race, which the interpreter, one program after the other, does not show."""
    prefix, height, width = grid
    tokens = prefix + height * width
    blocks = 1 + tokens  # more than enough
    out = torch.zeros(blocks * 16, dtype=torch.int64, device=DEVICE)
    _list_tokens[(blocks,)](out, prefix, height, width, 16)
    assert sorted(out[out >= 0].tolist()) == list(range(tokens))


# What PyTorch asks of an operator -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck itself reads it
@pytest.mark.parametrize(
    ("dtype", "batch", "heads"), [(torch.float32, 2, 1), (HALF, 1, 2)], ids=["everything", "everything in float16"]
)
def test_pytorch_accepts_the_operator(dtype: torch.dtype, batch: int, heads: int) -> None:
    plane: dict[str, Any] = {"queries": 6, "keys": 6, "grid": (3, 2), "kernel": (1, 3)}
    problem = Problem(batch=batch, heads=heads, temperature=True, encoding=True, dtype=dtype, options_dtype=dtype, **plane)
    inputs = {name: tensor.requires_grad_() for name, tensor in problem.inputs().items()}
    weights = torch.full((batch, 6), 1 / 6, device=DEVICE)
    extras = [inputs.get(name) for name in ("key_encoding", "temperature", "conv_weight", "conv_bias")]
    tokens = [inputs[name] for name in NAMES[:3]]
    given, settings = (*tokens, weights, *extras), (list(problem.grid), 3.0, True, 1e-6)
    operator, gradient = (getattr(torch.ops.flatten_transformer, f"triton_attention{end}") for end in ("", "_backward"))
    torch.library.opcheck(operator, (*given, *settings))

    with torch.no_grad():
        out, *saved = operator(*given, *settings)
    torch.library.opcheck(gradient, (out, *given, *saved, *settings), test_utils=("test_schema", "test_faketensor"))


def test_compiled_it_is_one_node_with_the_same_bits() -> None:
    problem = PROBLEMS["everything, few tokens"]
    nodes: list[str] = []

    def look(graph: Any, _: Sequence[Any]) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    compiled: Any = torch.compile(focused_linear_attention, fullgraph=True, backend=look)
    inputs = problem.inputs()
    came = problem.run(compiled, inputs, backend="triton")
    wanted = problem.run(focused_linear_attention, inputs, backend="triton")
    assert all(torch.equal(came[name], wanted[name]) for name in wanted)
    assert sum("triton_attention" in node for node in nodes) == 1


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_it_on_new_numbers() -> None:
    problem = Problem(key_channels=64, value_channels=64, dtype=BFLOAT, **EVERYTHING)
    inputs = problem.inputs()

    def call() -> Tensor:
        return focused_linear_attention(attn_mask=None, grid_size=problem.grid, backend="triton", **inputs)  # type: ignore[arg-type]

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = call()
    inputs["value"].copy_(inputs["value"].flip(2))
    graph.replay()
    assert torch.equal(out, call())


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.ops.compile_triton_kernels"]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if "Cannot find ptxas" in done.stderr:
        pytest.skip("this Triton comes without NVIDIA's assembler")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiles") == 9


# Where it cannot run ------------------------------------------------------------------------------------------------


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(device: str = DEVICE, channels: tuple[int, int] = (16, 16), dtype: torch.dtype = HALF, **options: Any) -> str:
        query, value = (torch.empty(1, 2, 4, width, dtype=dtype, device=device) for width in channels)
        return str(why_not(Arguments(query, query, value, **options)))

    assert reason() == "None"
    assert reason(channels=(8, 128)) == "None"
    assert "query is torch.float64" in reason(dtype=torch.float64)
    assert "7 key and 16 value channels; it takes 8 to 128" in reason(channels=(7, 16))
    assert "16 key and 129 value channels; it takes 8 to 128" in reason(channels=(16, 129))
    assert "one or two axes, not (1, 2, 2)" in reason(grid_size=(1, 2, 2))
    assert "tensors are on meta" in reason(device="meta")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in reason(device="cpu")
    monkeypatch.setattr(backend, "_INSTALLED", False)
    assert "pip install triton" in reason()
    query = torch.empty(1, 2, 4, 7, device=DEVICE)
    with pytest.raises(RuntimeError, match='"triton" cannot run here: heads have 7 key'):
        focused_linear_attention(query, query, query, backend="triton")


@pytest.mark.parametrize("tokens", [1, 31, 64, 65, 3136, 10**6])
@pytest.mark.parametrize("programs", [1, 24, 4096])
def test_stretches_cover_the_tokens_and_are_short(tokens: int, programs: int) -> None:
    splits, stretch = sizes.split(tokens, 64, programs)
    assert stretch % 64 == 0
    assert splits == math.ceil(tokens / stretch)
    assert stretch < sizes._MAX_STRETCH + 64
    assert splits == 1 or stretch >= sizes._MIN_STRETCH / 2
    assert splits * programs >= min(sizes._TARGET_PROGRAMS / 2, programs * math.ceil(tokens / sizes._MIN_STRETCH) / 2)
