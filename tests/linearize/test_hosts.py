"""Every supported model: its linear form against the literal formula, at other sizes, copied, saved and trained."""

from __future__ import annotations

import copy
import hashlib
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer import list_attentions
from flatten_transformer.layers.attention.layout import merge_heads
from flatten_transformer.linearize import LinearMixer, block_errors, softmax_attentions
from flatten_transformer.linearize.errors import compared
from flatten_transformer.ops import reference
from tests.linearize.hosts import HOSTS, Host

pytestmark = pytest.mark.filterwarnings("ignore:the linear SwinTransformer loses:UserWarning")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


def fingerprint(model: nn.Module) -> str:
    """Return a digest of names, weights and classes."""
    digest = hashlib.sha256(repr([(name, type(part)) for name, part in model.named_modules()]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_softmax_in_the_place_of_softmax_gives_the_teachers_outputs(host: Host) -> None:
    teacher = host.teacher()
    before = fingerprint(teacher)
    student = host.student(teacher, "softmax", windows="own")
    for x in host.inputs():
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-10, atol=1e-12)
    assert max(block_errors(teacher, student, x).values()) < 1e-20
    assert fingerprint(teacher) == before


@pytest.mark.parametrize("centred", [True, False], ids=["centred keys", "keys as they are"])
def test_a_block_is_the_literal_formula_on_the_teachers_own_queries_keys_and_values(
    host: Host, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heads.append((q, k, v))
        return softmax(q, k, v, *args, **kwargs)

    softmax = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    teacher = host.teacher()
    for part in teacher.modules():
        if hasattr(part, "fused_attn"):
            setattr(part, "fused_attn", True)  # noqa: B010
    student = host.student(teacher, center_keys=centred, windows="own")
    mixers = [part for part in student.modules() if isinstance(part, LinearMixer)]
    came: list[Tensor] = []
    for mixer in mixers:
        mixer.register_forward_hook(lambda module, args, output: came.append(output))
    with compared(teacher, student, lambda name, wanted, output: None):
        teacher(host.inputs()[0])
    assert len(came) == len(softmax_attentions(teacher))
    for (q, k, v), output, mixer in zip(heads, came, mixers, strict=False):  # SigLIP pools by one more attention
        k = k - k.mean(dim=2, keepdim=True) if centred else k
        wanted = reference.focused_linear_attention(q, k, v, temperature=mixer.attention.temperature())
        torch.testing.assert_close(output, merge_heads(wanted), rtol=1e-10, atol=1e-10)


def test_a_student_is_trained_copied_pickled_and_loaded_and_takes_other_sizes(host: Host) -> None:
    options = {"convolve_queries_keys": True, "local_window": None if host is HOSTS["pvt_v2"] else 3}
    student = host.student(host.teacher(), **options)
    a, b = host.inputs()
    (student(a).square().sum() + student(b).square().sum()).backward()
    unused = [name for name, parameter in student.named_parameters() if ".mixer." in name and parameter.grad is None]
    assert not unused
    for parameter in student.parameters():
        parameter.data.add_(0.01)
    outputs = [student(x).detach() for x in (a, b)]
    fresh = host.student(host.teacher(), **options)
    fresh.load_state_dict(student.state_dict())
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student)), fresh):
        for x, wanted in zip((b, a), outputs[::-1], strict=True):
            assert torch.equal(other(x), wanted)


def test_keeping_all_gives_the_teachers_outputs_bit_for_bit(host: Host) -> None:
    teacher = host.teacher()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = host.student(teacher, keep=range(len(softmax_attentions(teacher))))
    for x in host.inputs():
        assert torch.equal(student(x), teacher(x))


def test_tokens_before_the_grid_are_known() -> None:
    of_timm = {"vit": 1, "deit with distillation token": 2, "vit with registers and normed queries": 4, "siglip": 0, "dinov3": 5}
    others = {
        "transformers dinov2": 3,
        "transformers clip": 1,
        "transformers siglip": 0,
        "torchvision": 1,
        "swin": 0,
        "pvt_v2": 0,
    }
    counts = {**of_timm, **others, "flatten_deit softmax": 0}
    for name, count in counts.items():
        student = HOSTS[name].student(HOSTS[name].teacher())
        assert {part.attention.num_prefix_tokens for part in student.modules() if isinstance(part, LinearMixer)} == {count}


@pytest.mark.parametrize("name", list_attentions())
def test_every_attention_starts_as_its_bare_formula(name: str) -> None:
    host = HOSTS["vit"]
    teacher = host.teacher()
    student = host.student(teacher, name)
    x = host.inputs()[0]
    captured: list[tuple[Any, Tensor]] = []
    for part in student.modules():
        if isinstance(part, LinearMixer):
            part.attention.register_forward_hook(lambda module, args, output: captured.append((module, args[0], output)))  # type: ignore[arg-type]
    student(x)
    assert len(captured) == 2
    for module, projected, output in captured:  # type: ignore[misc]
        parts = module.decompose_projected(*projected)
        bare = parts._replace(convolved=None, gate=None)
        torch.testing.assert_close(output, bare.output(), rtol=1e-10, atol=1e-12)
