"""Which backend runs: the one asked for, or a reason; the fused one where it can, without being asked."""

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flatten_transformer import FocusedLinearAttention, focused_linear_attention
from flatten_transformer.ops import cpp, reference
from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.cpp import build, compiler
from flatten_transformer.ops.dispatch import VARIABLE, choose_backend
from flatten_transformer.ops.linear_attention import attend as portable
from tests.helpers import output_and_gradients, relative_error

needs_cpp = pytest.mark.skipif(build.unavailable() is not None, reason=f"no compiled kernel: {build.unavailable()}")


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def chosen(backend: str | None = None, device: str = "cpu", **options: Any) -> Any:
    return choose_backend(backend, Arguments(*torch.empty(3, 1, 2, 5, 4, device=device), **options))


@needs_cpp
def test_the_compiled_kernel_runs_on_a_cpu_unasked() -> None:
    assert chosen() is cpp.attend
    assert chosen("portable") is portable
    assert chosen("cpp") is cpp.attend


def test_the_environment_forces_a_backend_and_the_argument_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    assert chosen() is portable
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match="got 'fast'"):
        chosen()
    assert chosen("portable") is portable


def test_elsewhere_the_portable_backend_runs_and_a_forced_one_says_why_it_cannot() -> None:
    assert chosen(device="meta") is portable
    with pytest.raises(RuntimeError, match='"cpp" cannot run here: it is for CPUs, and the query is on meta'):
        chosen("cpp", device="meta")
    volume = (1, 1, 5)
    assert chosen(grid_size=volume) is portable
    with pytest.raises(RuntimeError, match=r"one or two axes, grid_size is \(1, 1, 5\)"):
        chosen("cpp", grid_size=volume)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Yield an empty folder for compiled kernels; what was loaded before is forgotten, and what a test loads too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.load.cache_clear()
    build._warn.cache_clear()
    yield tmp_path / "cache"
    build.load.cache_clear()


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_the_portable_backend_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.warns(UserWarning, match="the compiled kernel of attention is off: .*no-compiler"):
        assert chosen() is portable
    with pytest.raises(RuntimeError, match=r'backend "cpp" cannot run here: .*no-compiler'):
        chosen("cpp")
    build.load.cache_clear()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler"):
        chosen("cpp")


@needs_cpp
def test_a_compiler_that_fails_is_quoted_asked_once_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    broken, compile_once, calls = tmp_path / "broken.cpp", compiler.compile_kernel, []
    broken.write_text("this is no program")
    monkeypatch.setattr(compiler, "SOURCE", broken)
    monkeypatch.setattr(build, "compile_kernel", lambda *given: calls.append(given) or compile_once(*given))  # type: ignore[func-returns-value]
    for _ in range(3):
        assert "error" in str(build.unavailable())
    assert len(calls) == 1
    assert not list(cache.rglob("*.so"))


@needs_cpp
@pytest.mark.usefixtures("cache")
def test_the_compiler_may_be_several_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"focused_{direction}_{dtype}" for direction in ("forward", "backward") for dtype in ("float", "double")]
    (tmp_path / "small.cpp").write_text("".join(f'extern "C" int {name}(void *) {{ return 0; }}' for name in names))
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "small.cpp")
    monkeypatch.setenv("CXX", f"env LANG=C {compiler.find_compiler()[0]}")
    assert build.unavailable() is None
    build.load.cache_clear()
    monkeypatch.setenv("CXX", "an 'open quote")
    assert "quotation" in str(build.unavailable())


@needs_cpp
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of that family")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
@pytest.mark.usefixtures("cache")
def test_shorter_vectors_give_the_same_numbers(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"-march=native": f"-march={processor}", "-O3": "-O1"}  # which compiles in half the time
    flags = tuple(other.get(flag, flag) for flag in compiler.FLAGS)
    monkeypatch.setattr(compiler, "FLAGS", flags)
    query, key, value = torch.randn(3, 2, 2, 35, 19, dtype=torch.float64).unbind(0)
    weight = torch.randn(19, 1, 5, 3, dtype=torch.float64)

    def attend(attention: Callable[..., torch.Tensor], **options: Any) -> list[torch.Tensor]:
        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return attention(q, k, v, conv_weight=w, grid_size=(5, 7), **options)

        return output_and_gradients(call, [query, key, value, weight], value)

    for came, wanted in zip(
        attend(focused_linear_attention, backend="cpp"), attend(reference.focused_linear_attention), strict=True
    ):
        assert relative_error(came, wanted) < 1e-13


def test_a_layer_hands_its_backend_on() -> None:
    layer = FocusedLinearAttention(32, 2, (1, 2, 2), backend="cpp")
    with pytest.raises(RuntimeError, match="one or two axes"):
        layer(torch.randn(1, 4, 32))
    with pytest.raises(ValueError, match="got 'cuda'"):
        FocusedLinearAttention(32, 2, (2, 2), backend="cuda")  # type: ignore[arg-type]


TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? key_weights, Tensor? key_encoding, Tensor? temperature, "
    "Tensor? conv_weight, Tensor? conv_bias"
)
SETTINGS = "SymInt[] grid_size, float focusing_factor, bool joint, float eps"
SCHEMAS = {
    "": f"({TENSORS}, {SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "_backward": f"(Tensor grad, {TENSORS}, Tensor context, Tensor key_sum, Tensor norms, {SETTINGS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}


@pytest.mark.parametrize("end", SCHEMAS)
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_a_schema_changes_only_with_the_name_by_which_compiled_graphs_on_disk_know_it(backend: str, end: str) -> None:
    name = f"{backend}_attention{end}"
    assert str(getattr(torch.ops.flatten_transformer, name).default._schema) == f"flatten_transformer::{name}{SCHEMAS[end]}"


@needs_cpp
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck itself reads it
@pytest.mark.parametrize("convolved", [False, True])
def test_pytorch_accepts_the_operator(convolved: bool) -> None:
    query, key, value = (torch.randn(2, 2, 12, 16).requires_grad_() for _ in range(3))
    extras: list[Any] = [None] * 5
    if convolved:
        extras = [
            torch.full((2, 12), 1 / 12),
            torch.randn(2, 12, 16),
            torch.rand(2, 16) + 0.5,
            torch.randn(16, 1, 3, 3),
            torch.randn(16),
        ]
        extras = [extras[0], *(x.requires_grad_() for x in extras[1:])]
    grid = [3, 4] if convolved else []
    operator = torch.ops.flatten_transformer.cpp_attention
    torch.library.opcheck(operator, (query, key, value, *extras, grid, 3.0, True, 1e-6))


@needs_cpp
@pytest.mark.parametrize(
    ("place", "bad", "words"),
    [
        (1, torch.ones(2, 2, 12, 8), "must agree in batch"),
        (2, torch.ones(2, 2, 12, 16).double(), "value is torch.float64"),
        (3, torch.ones(2, 11), r"key_weights must be \[batch, keys\]"),
        (5, torch.ones(2, 15), "temperature must be"),
        (6, torch.ones(16, 1, 2, 3), "odd side"),
        (7, torch.ones(15), "conv_bias must be"),
        (8, [3, 0], "positive sizes"),
        (8, [-3, -4], "positive sizes"),
        (8, [4, 4], "has 16 tokens"),
        (9, 2.0**63, "focusing_factor must be"),
        (11, 0.0, "eps must be positive"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_operator_itself_refuses_what_its_kernel_could_not_survive(place: int, bad: Any, words: str) -> None:
    given = [*(torch.randn(2, 2, 12, 16) for _ in range(3)), torch.full((2, 12), 1 / 12), torch.randn(2, 12, 16)]
    given += [torch.ones(2, 16), torch.randn(16, 1, 3, 3), torch.randn(16)]
    settings: list[Any] = [[3, 4], 3.0, True, 1e-6]
    operator, gradient = (getattr(torch.ops.flatten_transformer, f"cpp_attention{end}") for end in ("", "_backward"))
    out, *saved = operator(*given, *settings)
    changed = [bad if index == place else x for index, x in enumerate([*given, *settings])]
    with pytest.raises(ValueError, match=words):
        operator.default(*changed)
    with pytest.raises(ValueError, match=words):
        gradient.default(out, *changed[:8], *saved, *changed[8:])
    with pytest.raises(ValueError, match="grad must be"):
        gradient.default(out[:, :, 1:], *given, *saved, *settings)
    with pytest.raises(ValueError, match="context must be"):
        gradient.default(out, *given, saved[0][:, :, 1:], *saved[1:], *settings)


@needs_cpp
def test_views_of_every_kind_give_what_copies_give() -> None:
    base = torch.randn(40000, dtype=torch.float64)
    views = {
        "expanded": torch.randn(1, 1, 1, 8, dtype=torch.float64).expand(2, 2, 6, 8),
        "all of one number": torch.ones(1, dtype=torch.float64).expand(2, 2, 6, 8),
        "with an offset and far apart": base.as_strided((2, 2, 6, 8), (17000, 5003, 601, 3), 7),
        "overlapping": base.as_strided((2, 2, 6, 8), (1, 2, 3, 1), 5),
        "channels last": torch.randn(2, 2, 6, 8, dtype=torch.float64).to(memory_format=torch.channels_last),
        "conjugated": torch.randn(2, 2, 6, 8, dtype=torch.complex128).conj().imag,
    }
    weight, upstream = torch.randn(8, 1, 3, 3, dtype=torch.float64), torch.randn(2, 2, 6, 8, dtype=torch.float64)

    def run(tokens: torch.Tensor) -> list[torch.Tensor]:
        query, key, value = (tokens.detach().requires_grad_() for _ in range(3))
        out = focused_linear_attention(query, key, value, conv_weight=weight, grid_size=(2, 3), backend="cpp")
        return [out, *torch.autograd.grad(out, (query, key, value), upstream)]

    for name, view in views.items():
        for came, wanted in zip(run(view), run(view.clone(memory_format=torch.contiguous_format)), strict=True):
            assert torch.equal(came, wanted), name


@needs_cpp
@pytest.mark.parametrize("convolved", [False, True])
def test_operations_are_counted_whoever_does_them(convolved: bool) -> None:
    query, key, value = (torch.randn(2, 3, 40, 8).requires_grad_() for _ in range(3))
    options: dict[str, Any] = {"conv_weight": torch.randn(8, 1, 3, 5), "grid_size": (5, 8)} if convolved else {}
    counts = {}
    for backend in ("portable", "cpp"):
        with FlopCounterMode(display=False) as forward:
            out = focused_linear_attention(query, key, value, backend=backend, **options)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        counts[backend] = forward.get_total_flops(), backward.get_total_flops()
    assert counts["cpp"][0] == counts["portable"][0]
    assert 2 <= counts["cpp"][1] / counts["cpp"][0] <= 3  # one product of the forward pass is made again
