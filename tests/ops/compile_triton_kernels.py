"""Compile every Triton kernel for a GPU that need not be there: prints one line for each. A script, as Triton must not interpret.

What the interpreter lets pass shows here: tiles of a wrong size, products that are too small, and methods called on an
integer argument that is 1, which the compiler takes for a constant.
"""

import warnings
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flatten_transformer.ops.triton import convolution, keys, norms, queries

KERNELS = (
    norms.norms_kernel,
    keys.keys_forward_kernel,
    norms.means_kernel,
    queries.queries_forward_kernel,
    queries.context_backward_kernel,
    queries.queries_backward_kernel,
    keys.values_backward_kernel,
    keys.keys_backward_kernel,
    convolution.convolution_backward_kernel,
)
TILES = {"D": 24, "E": 16, "PAD_D": 32, "PAD_E": 16, "GROUPS": 8, "ROWS": 16, "KERNEL_HEIGHT": 1, "KERNEL_WIDTH": 3}
TOKENS = ("key", "value", "query", "grad", "out", "of_key", "of_value", "of_query", "means", "pulls")
FLOATS = ("eps", "exponent")
OPTIONS = ("weights", "encoding", "temperature", "conv_weight", "conv_bias", "of_temperature", "row_sizes")
NUMBERS = {
    "keys",
    "queries",
    "heads",
    "samples",
    "splits",
    "split_size",
    "split_groups",
    "blocks",
    "query_blocks",
    "key_blocks",
    "query_programs",
    "norms_total",
    "prefix",
    "height",
    "width",
}


def source(kernel: Any, dtype: str, sizes: dict[str, Any], ones: bool) -> ASTSource:
    """Return what Triton would compile at a launch; with ``ones`` every integer is 1 and every option None."""
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name], constants[(index,)] = "constexpr", sizes[name]
        elif name.endswith("_strides"):
            signature[name] = ("i64", "i32") if name == "encoding_strides" else ("i64", "i32", "i32")
        elif name in TOKENS:
            signature[name] = f"*{dtype}"
        elif name in FLOATS:
            signature[name] = "fp32"
        elif ones and name in OPTIONS:
            signature[name], constants[(index,)] = "constexpr", None
        elif ones and name in NUMBERS:
            signature[name], constants[(index,)] = "constexpr", 1
        else:
            signature[name] = "i32" if name in NUMBERS else "*fp32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants)


def main() -> None:
    warnings.simplefilter("ignore")
    for kernel in KERNELS:
        for dtype, ones, joint, whole, block in (("bf16", True, True, 3, 32), ("fp32", False, False, 0, 16)):
            sizes = {**TILES, "BLOCK": block, "JOINT": joint, "WHOLE": whole, "PARTS": 2 if dtype == "bf16" else 1}
            compile_kernel(source(kernel, dtype, sizes, ones), target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        print(kernel.__name__, "compiles")  # noqa: T201


if __name__ == "__main__":
    main()
