"""linearize: which blocks stay softmax, what is new beside the attention, and what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers import create_attention, list_attentions
from flatten_transformer.linearize import LinearMixer, block_errors, linear_form_of, linearize
from flatten_transformer.linearize.local import LocalSoftmax
from tests.linearize.hosts import DYNAMIC, HOSTS, SMALL

GRID, PREFIX = (3, 5), 2


def heads(count: int = 3, tokens: int = 15 + PREFIX) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 2, tokens, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def mixer(name: str = "relu", **options: Any) -> LinearMixer:
    attention = create_attention(name, 8, 2, GRID, num_prefix_tokens=PREFIX, projections=False, dtype=torch.float64)
    return LinearMixer(attention, dtype=torch.float64, **options)


# which blocks stay softmax ------------------------------------------------------------------------------------------------


def kinds(model: Any) -> str:
    return "".join("L" if hasattr(block.attn, "mixer") else "S" for block in model.blocks)


@pytest.mark.parametrize(
    ("keep", "wanted"), [((), "LLLLL"), ([1, -1], "LSLLS"), ([np.int64(1)], "LSLLL"), (0, "LLLLL"), (5, "SSSSS")]
)
def test_named_blocks_stay(keep: Any, wanted: str) -> None:
    assert kinds(linearize(timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 5}), keep=keep)) == wanted


@pytest.mark.parametrize(("keep", "count"), [(1, 1), (4, 4), ("auto", 2)])
def test_a_number_of_blocks_stays_those_that_err_most(keep: Any, count: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 5}).double()
    for number, block in enumerate([3, 0, 4, 1, 2]):
        nn.init.normal_(model.blocks[block].attn.qkv.weight, std=0.2 + 0.3 * number)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    errors = list(block_errors(model, linearize(model), images).values())
    worst = sorted(range(5), key=errors.__getitem__)[-count:]
    assert kinds(linearize(model, keep=keep, images=images)) == "".join("S" if block in worst else "L" for block in range(5))
    assert kinds(model) == "SSSSS"
    assert model.training


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([2], "keep must hold indices of the 2 blocks, 0 to 1, got [2]"),
        ([True], "keep must hold indices of the 2 blocks, 0 to 1, got [True]"),
        (["x"], "keep must hold indices of the 2 blocks, 0 to 1, got ['x']"),
        (3, 'keep must be indices of blocks, a number up to 2, or "auto", got 3'),
        ("none", "keep must be indices of blocks, a number up to 2, or \"auto\", got 'none'"),
        (1, "keep=1 chooses blocks by their errors: pass images=, a batch, or name the blocks, keep=[…]"),
    ],
)
def test_wrong_blocks_are_refused(keep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        linearize(HOSTS["vit"].teacher(), keep=keep)


def test_block_errors_are_those_of_the_outputs_on_the_teachers_inputs() -> None:
    host = HOSTS["vit"]
    teacher = host.teacher().train()
    student = host.student(teacher, keep=[0])
    x, other = host.inputs()
    inputs: list[Tensor] = []
    handle = teacher.blocks[1].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))  # type: ignore[index,union-attr]
    student(other)  # the student saw another grid last
    errors = block_errors(teacher, student, x)
    handle.remove()
    student(x)
    wanted, came = (model.blocks[1].attn(inputs[0]) for model in (teacher, student))  # type: ignore[index,union-attr]
    ratios = [(a - b).square().sum() / b.square().sum() for a, b in zip(came, wanted, strict=True)]
    assert errors == {"blocks.1.attn": pytest.approx((sum(ratios) / len(ratios)).item())}
    assert teacher.training
    assert student.training
    assert not [name for name, part in teacher.named_modules() if part._forward_hooks]


# what is new beside the attention -------------------------------------------------------------------------------------------


def test_what_is_new_adds_nothing_at_first() -> None:
    plain, extended = mixer(), mixer(convolve_queries_keys=True, local_window=3)
    torch.testing.assert_close(extended(*heads()), plain(*heads()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["softmax", "agent", "efficient", "inline"])
def test_centred_keys_change_attentions_that_do_not_see_a_shift_by_rounding_only(name: str) -> None:
    centred, plain = mixer(name, center_keys=True), mixer(name)
    plain.load_state_dict(centred.state_dict())
    q, k, v = heads()
    x = torch.randn(2, 15 + PREFIX, 8, dtype=torch.float64)
    torch.testing.assert_close(centred(q, k + 3, v, x=x), plain(q, k, v, x=x), rtol=1e-12, atol=1e-14)


def test_centred_keys_hide_a_shift_from_relu_attention() -> None:
    centred, plain = mixer(center_keys=True), mixer()
    q, k, v = heads()
    torch.testing.assert_close(centred(q, k + 3, v), centred(q, k, v), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(plain(q, k + 3, v), plain(q, k, v))


def test_masked_keys_are_no_part_of_the_mean_key_nor_of_anything() -> None:
    kept = torch.tensor([True] * 12 + [False] * 5)[None, None, None]
    q, k, v = heads()
    layer = mixer(center_keys=True, convolve_queries_keys=True, local_window=3)
    for parameter in layer.parameters():
        parameter.data.normal_()
    wrong = [x.detach().masked_fill(~kept.transpose(2, 3), torch.nan) for x in (k, v)]
    right = [x.detach().masked_fill(~kept.transpose(2, 3), 7.0) for x in (k, v)]
    torch.testing.assert_close(layer(q, *wrong, kept), layer(q, *right, kept))


@pytest.mark.parametrize("which", ["dwc_q", "dwc_k"])
def test_convolutions_of_queries_and_keys_are_added_on_the_grid(which: str) -> None:
    layer, plain = mixer(convolve_queries_keys=True), mixer()
    convolution = getattr(layer, which)
    for parameter in convolution.parameters():
        parameter.data.normal_()
    q, k, v = heads()
    changed = {"dwc_q": q, "dwc_k": k}[which]
    merged = changed.transpose(1, 2).flatten(2)[:, PREFIX:].transpose(1, 2).unflatten(2, GRID)
    convolved = F.conv2d(merged, convolution.weight, convolution.bias, padding=1, groups=8)
    added = F.pad(convolved.flatten(2).transpose(1, 2), (0, 0, PREFIX, 0)).unflatten(2, (2, 4)).transpose(1, 2)
    arguments = (q + added, k, v) if which == "dwc_q" else (q, k + added, v)
    torch.testing.assert_close(layer(q, k, v), plain(*arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(3, 5), (15,)], ids=["map", "sequence"])
def test_the_local_window_is_softmax_over_the_neighbours(grid: tuple[int, ...]) -> None:
    local = LocalSoftmax(2, 3, dtype=torch.float64)
    nn.init.normal_(local.gate)
    q, k, v = heads()
    kept = torch.rand(2, 1, 15 + PREFIX, 1) > 0.2
    kept[1, :, PREFIX + 5 :] = False  # the last tokens have no neighbour at all
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1).reshape(15, -1)
    near = ((places[:, None] - places[None]).abs().amax(-1) <= 1) & kept[:, :, PREFIX:].transpose(2, 3)
    scores = q[:, :, PREFIX:] @ k[:, :, PREFIX:].transpose(2, 3) / 2
    weights = scores.masked_fill(~near, -torch.inf).softmax(-1).nan_to_num()
    wanted = F.pad(local.gate * (weights @ v[:, :, PREFIX:]), (0, 0, PREFIX, 0))
    came = local(q, k, v, grid, PREFIX, kept)
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(came)
    parts = (q, k, v, local.gate)
    slow, fast = (torch.autograd.grad(out, parts, upstream) for out in (wanted, came))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_padding_of_a_torch_encoder_is_no_key_and_nothing_is_packed() -> None:
    host = HOSTS["torch"]
    teacher = host.teacher()
    student, same = host.student(teacher), host.student(teacher, "softmax")
    x = host.inputs()[0]
    padding = torch.arange(15) >= torch.tensor([[15], [9]])
    other = x.masked_fill(padding[..., None], 5.0)
    for model in (student, same):
        short = model(x, src_key_padding_mask=padding)[1, :9]
        torch.testing.assert_close(model(other, src_key_padding_mask=padding)[1, :9], short)
    torch.testing.assert_close(short, teacher(x[1:, :9])[0], rtol=1e-10, atol=1e-12)
    wanted = student(x)
    with torch.no_grad():  # where torch would take its kernel for whole layers
        torch.testing.assert_close(student(x), wanted)
        torch.testing.assert_close(student(x, src_key_padding_mask=padding)[1, :9], student(x[1:, :9])[0])


def test_a_compiled_student_follows_the_size_of_the_image() -> None:
    student = linearize(timm.create_model("vit_tiny_patch16_224", **{**DYNAMIC, "depth": 1}).double().eval())
    compiled: Any = torch.compile(student, backend="eager")
    for x in HOSTS["vit"].inputs():
        torch.testing.assert_close(compiled(x), student(x), rtol=1e-12, atol=1e-12)


def test_an_exported_student_takes_sizes_that_were_not_traced_and_the_model_can_still_be_copied() -> None:
    student = linearize(timm.create_model("vit_tiny_patch16_224", **{**DYNAMIC, "depth": 1}).eval())
    free = torch.export.Dim.AUTO
    program = torch.export.export(student, (torch.randn(2, 3, 64, 96),), dynamic_shapes=({0: free, 2: free, 3: free},))
    copy.deepcopy(student)
    pickle.dumps(student)
    x = torch.randn(3, 3, 96, 48)
    torch.testing.assert_close(program.module()(x), student(x), rtol=1e-5, atol=1e-6)


def test_features_of_a_student_are_taken_as_of_any_model_of_timm() -> None:
    model = linearize(timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(0, 1), **SMALL))
    assert [tuple(maps.shape) for maps in model(torch.randn(1, 3, 64, 64))] == [(1, 32, 4, 4)] * 2


# Swin -----------------------------------------------------------------------------------------------------------------------


def test_a_window_of_swin_becomes_the_whole_map_of_any_size() -> None:
    host = HOSTS["swin"]
    with pytest.warns(UserWarning, match="the linear SwinTransformer loses its relative position bias"):
        student = host.student(host.teacher())
    sizes: list[int] = []
    for part in student.modules():
        if isinstance(part, LinearMixer):
            part.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2]))
    student(torch.randn(1, 3, 56, 84, dtype=torch.float64))
    assert sizes == [14 * 21, 7 * 11, 7 * 11]
    student.set_input_size((112, 56))  # type: ignore[operator]
    sizes.clear()
    student(torch.randn(1, 3, 112, 56, dtype=torch.float64))
    assert sizes == [28 * 14, 14 * 7, 14 * 7]


@pytest.mark.filterwarnings("ignore:the linear SwinTransformer loses its relative:UserWarning")
def test_shifted_windows_that_stay_are_said_to_meet() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2,), num_heads=(2,), embed_dim=32)
    with pytest.warns(UserWarning, match="the mask of its shifted windows, so that tokens of opposite ends meet"):
        linearize(model, windows="own")


# what is refused --------------------------------------------------------------------------------------------------------------


class _Unknown(nn.Module):
    """A model whose attention nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = _StrangeAttention()


class _StrangeAttention(nn.Module):
    pass


def small(name: str, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **options)
    return model


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    model: nn.Module = WhisperModel(WhisperConfig(vocab_size=8, d_model=8, max_source_positions=8, **sizes, **ids))
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "no Transformer": (lambda: linearize(nn.Linear(2, 2)), "Linear has no softmax attention that is known: give a Transformer"),
    "unknown": (lambda: linearize(_Unknown()), r"but .*_StrangeAttention: register its linear form, @linear_form_of\(_Strange"),
    "linear already": (lambda: linearize(linearize(HOSTS["vit"].teacher())), "its attentions are linear already"),
    "of ours": (
        lambda: linearize(small("flatten_pvt_v2_b0", attn_types="S")),
        'has linear blocks of its own: build it with attn_types="L" and begin with these weights',
    ),
    "talking heads": (
        lambda: linearize(small("cait_xxs24_224", depth=1)),
        r"blocks\.0\.attn, .*TalkingHeadAttn, has no linear form",
    ),
    "no grid": (
        lambda: linearize(HOSTS["torch"].teacher()),
        r"TransformerEncoder does not say which grid its tokens lie on: pass grid_size=\(height, width\) in tokens",
    ),
    "encoder and decoder": (
        lambda: linearize(whisper(), grid_size=(8,)),
        r"decoder\.layers\.0\.encoder_attn, .*WhisperAttention, has no linear form: it attends to the tokens of another part",
    ),
    "another channels": (lambda: linearize(nn.MultiheadAttention(8, 2, kdim=4)), "it attends to another sequence"),
    "extra keys": (lambda: linearize(nn.MultiheadAttention(8, 2, add_bias_kv=True)), "it appends keys of its own"),
    "attention": (lambda: linearize(HOSTS["vit"].teacher(), "focussed"), "there is no attention 'focussed'"),
    "option": (lambda: linearize(HOSTS["vit"].teacher(), attention_args={"p": 3}), "has no option 'p'"),
    "windows": (
        lambda: linearize(HOSTS["swin"].teacher(), windows="whole"),  # type: ignore[arg-type]
        'windows must be "map" or "own", got \'whole\'',
    ),
    "even window": (
        lambda: linearize(HOSTS["vit"].teacher(), local_window=2),
        "local_window must be odd and positive, such as 3",
    ),
    "no batch": (
        lambda: linearize(nn.MultiheadAttention(8, 2), grid_size=(3,), num_prefix_tokens=0)(*[torch.randn(3, 8)] * 3),
        r"tokens must be a batch of three axes, got \[3, 8\]",
    ),
    "reduced map": (lambda: linearize(HOSTS["pvt_v2"].teacher(), local_window=3), "leave local_window out"),
    "no form": (lambda: linear_form_of(nn.Linear)(nn.Linear), r"write class Linear\(LinearForm, Linear\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_linear_form_is_refused_in_one_line(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_attention_of_an_unknown_class_beside_known_ones_is_said_to_stay() -> None:
    teacher = HOSTS["vit"].teacher()
    teacher.head = _Unknown()
    with pytest.warns(UserWarning, match=r"_StrangeAttention of VisionTransformer may be softmax attention and stays: register"):
        linearize(teacher)


def test_the_blocks_of_a_model_of_transformers_become_linear_without_their_model() -> None:
    blocks: Any = HOSTS["transformers vit"].teacher().get_submodule("model.layers")
    student, x = linearize(blocks, grid_size=(16,)), torch.randn(1, 16, 32, dtype=next(blocks.parameters()).dtype)
    assert not torch.allclose(student[0](x), blocks[0](x))


@pytest.mark.parametrize("name", list_attentions())
def test_an_attention_that_needs_the_tokens_says_so(name: str) -> None:
    attention = create_attention(name, 16, 2, (3, 3), projections=False)
    attend = partial(LinearMixer(attention), *torch.randn(3, 1, 2, 9, 8))
    assert attend(x=torch.randn(1, 9, 16)).shape == (1, 9, 16)
    with pytest.raises(ValueError, match="pass x= to attend") if attention.needs_tokens else nullcontext():
        attend()


def test_a_model_that_does_not_pass_its_tokens_on_refuses_attentions_that_need_them() -> None:
    host = HOSTS["transformers vit"]
    with pytest.raises(ValueError, match=r"PolaFormerAttention looks at the tokens .*, which transformers does not pass on"):
        linearize(host.teacher(), "polaformer")
    linearize(host.teacher(), "polaformer", attention_args={"gated": False})(host.inputs()[0])


def test_causal_attention_is_refused_where_it_is_asked_for() -> None:
    host = HOSTS["torch"]
    student, x = host.student(host.teacher()), host.inputs()[0]
    with pytest.raises(ValueError, match=r"attn_mask is \[15, 15\]"):
        student(x, mask=torch.rand(15, 15) > 0.5)
    with pytest.raises(ValueError, match="no causal order"):
        student(x, mask=nn.Transformer.generate_square_subsequent_mask(15, dtype=x.dtype))
    with pytest.raises(ValueError, match="no causal order"):
        linearize(HOSTS["vit"].teacher())(HOSTS["vit"].inputs()[0], is_causal=True)


def test_a_grid_that_does_not_fit_the_tokens_is_named() -> None:
    student = linearize(HOSTS["vit"].teacher(), num_prefix_tokens=3)
    with pytest.raises(ValueError, match=r"got 17 tokens; 3 prefix tokens and the grid \(4, 4\) make 19: pass num_prefix_tokens"):
        student(HOSTS["vit"].inputs()[0])


def test_lost_dropout_of_attention_weights_is_said() -> None:
    with pytest.warns(UserWarning, match="the linear VisionTransformer loses the dropout of attention weights"):
        linearize(timm.create_model("vit_tiny_patch16_224", **SMALL, attn_drop_rate=0.1))
