"""The public names and signatures, and what importing them does: nothing but registering models."""

import inspect
import json
import subprocess
import sys

import flatten_transformer

PUBLIC = [
    "FlattenVisionTransformer",
    "FocusedLinearAttention",
    "GridAttention",
    "create_attention",
    "focused_linear_attention",
    "list_attentions",
    "register_attention",
]


def test_the_public_names_are_pinned() -> None:
    assert flatten_transformer.__all__ == PUBLIC
    for name in PUBLIC:
        assert inspect.getdoc(getattr(flatten_transformer, name))


def test_the_signature_of_the_function_is_pinned() -> None:
    assert str(inspect.signature(flatten_transformer.focused_linear_attention)).replace("'", "") == (
        "(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, focusing_factor: float = 3.0, "
        "temperature: Tensor | None = None, norm: Norm = joint, eps: float = 1e-06, "
        "key_encoding: Tensor | None = None, conv_weight: Tensor | None = None, conv_bias: Tensor | None = None, "
        "grid_size: Sequence[int] | None = None, backend: Backend | None = None) -> Tensor"
    )


def test_the_signatures_of_the_layer_are_pinned() -> None:
    signature = inspect.signature(flatten_transformer.FocusedLinearAttention)
    assert str(signature).replace("'", "").partition(", *, ")[0] == "(dim: int, num_heads: int, grid_size: Sequence[int]"
    options = [parameter for parameter in signature.parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
    assert {str(option).replace("'", "") for option in options} == {
        "context_dim: int | None = None",
        "qkv_bias: bool = True",
        "proj_bias: bool = True",
        "proj_drop: float = 0.0",
        "focusing_factor: float = 3.0",
        "kernel_size: int = 5",
        "num_prefix_tokens: int = 0",
        "norm: Norm = joint",
        "key_encoding: bool = True",
        "temperature: bool = True",
        "rank_restoration: bool = True",
        "stretch: Stretch = grid",
        "projections: bool = True",
        "sr_ratio: int | None = None",
        "backend: Backend | None = None",
        "device: torch.device | None = None",
        "dtype: torch.dtype | None = None",
    }
    assert str(inspect.signature(flatten_transformer.FocusedLinearAttention.forward)).replace("'", "") == (
        "(self, x: Tensor | Projected, grid_size: Sequence[int] | None = None, *, context: Tensor | None = None, "
        "context_grid_size: Sequence[int] | None = None, attn_mask: Tensor | None = None) -> Tensor"
    )


IMPORTING = """
import json, random, sys, warnings
import torch, timm
def state():
    return [
        str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().sum().item(), hash(random.getstate()), len(warnings.filters),
        str(torch.get_default_device()), torch.is_autocast_enabled("cpu"),
    ]
before, loaded = state(), set(sys.modules)
import flatten_transformer
layer = flatten_transformer.FocusedLinearAttention(32, 2, (5, 7), device=torch.device("meta"))
new = sorted({name.partition(".")[0] for name in set(sys.modules) - loaded})
print(json.dumps({"same": before == state(), "new": new, "all": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_importing_needs_torch_and_timm_only_and_changes_no_global_state() -> None:
    done = subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-c", IMPORTING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # and nothing else was printed
    assert found["same"]
    extras = {"jsonargparse", "lightning", "matplotlib", "rich", "sklearn", "tensorboard", "torchmetrics"}
    assert not extras & set(found["new"])
    assert not extras & set(found["all"])
