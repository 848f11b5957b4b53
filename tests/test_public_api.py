"""The public names and signatures, and what importing them does: nothing but registering models.

The console script answers what it can before it imports them.
"""

import inspect
import json
import subprocess
import sys

import flatten_transformer
from flatten_transformer.cli import overview

PUBLIC = [
    "FlattenVisionTransformer",
    "FocusedLinearAttention",
    "GridAttention",
    "MultiheadAdapter",
    "Run",
    "attention_layer",
    "create_attention",
    "evaluate",
    "focused_linear_attention",
    "linearize",
    "list_attentions",
    "load_model",
    "register_attention",
    "train",
]


def test_the_public_names_are_pinned() -> None:
    assert flatten_transformer.__all__ == PUBLIC
    for name in PUBLIC:
        assert inspect.getdoc(getattr(flatten_transformer, name))


LINEARIZE = """
import importlib, pickle
import flatten_transformer.linearize
from flatten_transformer.linearize import LinearMixer, linearize
from flatten_transformer.linearize.errors import block_errors
import flatten_transformer.linearize.errors
importlib.import_module("flatten_transformer.linearize.keep")
assert flatten_transformer.linearize is linearize
assert callable(linearize)
assert pickle.loads(pickle.dumps(LinearMixer)) is LinearMixer
assert pickle.loads(pickle.dumps(flatten_transformer.linearize)) is linearize
"""


def test_linearize_is_a_function_of_the_package_although_a_package_below_has_its_name() -> None:
    done = python(LINEARIZE)
    assert done.returncode == 0, done.stderr


def test_the_signature_of_linearize_is_pinned() -> None:
    assert str(inspect.signature(flatten_transformer.linearize)).replace("'", "") == (
        "(model: Model, attention: str = focused, *, keep: Keep = (), images: Tensor | None = None, "
        "attention_args: Mapping[str, Any] | None = None, center_keys: bool = False, convolve_queries_keys: bool = False, "
        "local_window: int | None = None, windows: Windows = map, grid_size: Sequence[int] | None = None, "
        "num_prefix_tokens: int | None = None) -> Model"
    )


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
        "context_grid_size: Sequence[int] | None = None, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor"
    )


LIGHT = """
import json, sys
import flatten_command
for argv in json.loads(sys.argv[1]):
    sys.argv = ["flatten", *argv]
    flatten_command.main()
    assert not {"torch", "timm", "jsonargparse", "rich"} & sys.modules.keys(), argv
"""
LISTS = [["--help"], [], ["--version"], ["benchmark"], ["benchmark", "--help"], ["recipes"], ["recipes", "digits", "flatten"]]
WRONG = {"fitt": "no command 'fitt'", "benchmark opp": "no command 'benchmark opp'", "recipes digts": "no recipe fits 'digts'"}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_and_wrong_commands_need_neither_torch_nor_a_parser() -> None:
    done = python(LIGHT, json.dumps([*LISTS, *(command.split() for command in WRONG)]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(overview() * 2 + f"flatten {flatten_transformer.__version__}\n" + overview("benchmark ") * 2)
    for line, said in zip(done.stderr.splitlines(), WRONG.values(), strict=True):
        assert line.startswith(f"flatten: error: {said}: ")


IMPORTING = """
import json, random, sys, warnings
import torch, timm
import flatten_command
sys.argv = ["flatten", "--help"]
flatten_command.main()
def state():
    return [
        str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().sum().item(), hash(random.getstate()), len(warnings.filters),
        str(torch.get_default_device()), torch.is_autocast_enabled("cpu"),
    ]
before, loaded = state(), set(sys.modules)
assert not timm.list_models("flatten_*")
import flatten_transformer.cli
flatten_transformer.cli.run_package()  # as before `flatten fit`
assert timm.is_model("flatten_swin_tiny_patch4_224")
layer = flatten_transformer.FocusedLinearAttention(32, 2, (5, 7), device=torch.device("meta"))
new = sorted({".".join(name.split(".")[:2]) for name in set(sys.modules) - loaded})
print(json.dumps({"same": before == state(), "new": new}))
"""


def test_importing_registers_the_models_loads_what_timm_loads_and_changes_no_global_state() -> None:
    done = python(IMPORTING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(overview())  # and nothing else was printed
    found = json.loads(done.stdout.removeprefix(overview()))
    assert found["same"]
    assert "flatten_transformer.ops" in found["new"]
    known = {"flatten_transformer", "timm", *sys.stdlib_module_names}
    assert {name for name in found["new"] if name.partition(".")[0] not in known} <= {"torch.utils"}  # its count of FLOPs
