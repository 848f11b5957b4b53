"""Function transforms: right numbers on every backend, whoever was asked, by the float64 oracle under the same transform."""

# B batch, H heads, N tokens, D key channels, E value channels per head.

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from flatten_transformer import FocusedLinearAttention, focused_linear_attention
from flatten_transformer.ops import reference
from flatten_transformer.ops.dispatch import VARIABLE
from tests.helpers import randomise, relative_error
from tests.layers.designs import DESIGNS, Design, call

NAMES = ("query", "key", "value", "temperature", "key_encoding", "conv_weight", "conv_bias")
# PyTorch's own rule for forward derivatives of norms is a script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")

# Measured, the worst of all transforms and inputs: 6e-15 in float64, 8e-7 in float32.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-6}

Function = Callable[..., Tensor]


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = [normal(2, 2, 6, 8) for _ in range(3)]
    return [*tokens, normal(2, 8).sigmoid() + 0.5, normal(2, 6, 8), normal(8, 1, 3, 3), normal(8)]


def attention(function: Function, masked: bool, **options: Any) -> Function:
    """Return ``function`` of the tensors alone, in the order of NAMES."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None] if masked else None

    def of_tensors(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(NAMES[3:], others, strict=True))
        return function(query, key, value, mask, grid_size=(2, 3), **named, **options)

    return of_tensors


def dual(function: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], chosen: int) -> Tensor:
    with forward_ad.dual_level():
        given = [
            forward_ad.make_dual(x, t) if i == chosen else x for i, (x, t) in enumerate(zip(inputs, directions, strict=True))
        ]
        tangent = forward_ad.unpack_dual(function(*given)).tangent
    assert tangent is not None
    return tangent


def twice(function: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], _: int) -> Tensor:
    leaves = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
    product = sum((one * two).sum() for one, two in zip(first, directions, strict=True))
    assert isinstance(product, Tensor)
    return torch.cat([x.flatten() for x in torch.autograd.grad(product, leaves)])


def batched(function: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], chosen: int) -> Tensor:
    leaves = [x.clone().requires_grad_() for x in inputs]
    upstream = torch.stack([directions[2], 2 * directions[2] + 1])
    return torch.autograd.grad(function(*leaves), leaves, upstream, is_grads_batched=True)[chosen]


def of_one(chosen: int, function: Function, inputs: Sequence[Tensor]) -> Function:
    return lambda x: function(*inputs[:chosen], x, *inputs[chosen + 1 :])


TRANSFORMS: dict[str, Callable[[Function, Sequence[Tensor], Sequence[Tensor], int], Tensor]] = {
    "jvp": lambda f, x, t, i: jvp(of_one(i, f, x), (x[i],), (t[i],))[1],
    "dual tensors": dual,
    "grad": lambda f, x, _, i: grad(lambda y: of_one(i, f, x)(y).sin().sum())(x[i]),
    "vmap": lambda f, x, t, i: vmap(of_one(i, f, x))(torch.stack([x[i], x[i] + t[i].abs()])),
    "vmap of grad": lambda f, x, t, i: vmap(grad(lambda y: of_one(i, f, x)(y).sin().sum()))(
        torch.stack([x[i], x[i] + t[i].abs()])
    ),
    "batched gradients": batched,
    "double backward": twice,
}


CASES = [
    *((backend, transform, backend == "cpp") for backend in (None, "portable", "cpp") for transform in TRANSFORMS),
    *(("triton", transform, False) for transform in ("jvp", "dual tensors", "double backward")),  # interpreted, so few
]


@pytest.mark.parametrize(("backend", "transform", "masked"), CASES)
def test_every_transform_of_every_input_is_the_oracles(backend: str | None, transform: str, masked: bool) -> None:
    inputs = tensors()
    directions = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape_as(x).sin() for x in inputs]
    dtype = torch.float32 if backend == "triton" else torch.float64
    ours = attention(focused_linear_attention, masked, backend=backend)
    oracle = attention(reference.focused_linear_attention, masked)
    for chosen, name in enumerate(NAMES[: 1 if transform == "double backward" else None]):
        came = TRANSFORMS[transform](ours, [x.to(dtype) for x in inputs], [x.to(dtype) for x in directions], chosen)
        wanted = TRANSFORMS[transform](oracle, inputs, directions, chosen)
        assert relative_error(came, wanted) < TOLERANCES[dtype], name


def test_derivatives_are_finite_differences() -> None:
    inputs = [(torch.rand(1, 2, 2, 2, dtype=torch.float64) + 0.1).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(focused_linear_attention, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(focused_linear_attention, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_the_environment_forces_no_kernel_on_a_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cpp")
    q, k, v, tangent = torch.randn(4, 1, 2, 6, 4, dtype=torch.float64).unbind(0)
    came = jvp(lambda x: focused_linear_attention(x, k, v), (q,), (tangent,))[1]
    wanted = jvp(lambda x: reference.focused_linear_attention(x, k, v), (q,), (tangent,))[1]
    assert relative_error(came, wanted) < 1e-13


def test_jacobians_and_the_hessian_of_a_layer_agree_forward_and_backward() -> None:
    layer = FocusedLinearAttention(8, 2, (2, 2)).double()
    randomise(layer)
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    assert relative_error(jacfwd(layer)(x), jacrev(layer)(x)) < 1e-12
    by_hand = torch.autograd.functional.hessian(lambda y: layer(y).sum(), x)
    assert relative_error(hessian(lambda y: layer(y).sum())(x), by_hand) < 1e-10


def test_gradients_of_samples_are_those_of_one_sample_after_the_other() -> None:
    layer = FocusedLinearAttention(8, 2, (2, 3)).double()
    randomise(layer)
    samples = torch.randn(3, 6, 8, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(layer, weights, (sample[None],))
        return out.square().sum()

    came = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for index, sample in enumerate(samples):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            assert relative_error(came[name][index], parameter.grad) < 1e-12, name


def test_a_compiled_derivative_is_the_eager_one() -> None:
    torch._dynamo.reset()
    q, k, v, tangent = torch.randn(4, 1, 2, 6, 4, dtype=torch.float64).unbind(0)

    def derivative(x: Tensor) -> Tensor:
        return jvp(lambda y: focused_linear_attention(y, k, v), (x,), (tangent,))[1]

    compiled: Any = torch.compile(derivative, fullgraph=True, backend="eager")
    assert relative_error(compiled(q), derivative(q)) < 1e-13


@pytest.mark.parametrize("name", DESIGNS)
def test_other_designs_obey_transforms_too(name: str) -> None:
    design = Design(name, 2, 5, 5, 4)
    drawn = design.draw(1)
    directions = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape_as(x).sin() for x in drawn.values()]
    ours, oracle = (call(function, list(drawn), None) for function in (design.attention, design.by_the_book))
    if name == "softmax":  # PyTorch's kernels know no second derivative and no tangents; the plain ones do
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            _compare(ours, oracle, list(drawn.values()), directions)
    else:
        _compare(ours, oracle, list(drawn.values()), directions)


def _compare(ours: Function, oracle: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
    for transform in ("jvp", "vmap of grad"):
        for chosen in range(len(inputs)):
            came, wanted = (TRANSFORMS[transform](f, inputs, directions, chosen) for f in (ours, oracle))
            assert float((came - wanted).norm()) < 1e-11 * max(1.0, float(wanted.norm())), (transform, chosen)
