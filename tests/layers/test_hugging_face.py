"""Attentions in models of Hugging Face transformers: random weights, nothing is fetched."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer import list_attentions
from flatten_transformer.layers import hugging_face
from flatten_transformer.layers.attention.layout import apply_matrix
from flatten_transformer.layers.hugging_face import DESIGNS, attention_function, register_attention_as, register_attentions
from flatten_transformer.ops import reference
from tests.helpers import relative_error

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed, an optional host")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
HOSTS = {
    "ViT": {"interpolate_pos_encoding": True},
    "Dinov2": {},
    "Dinov2WithRegisters": {},
    "DINOv3ViT": {},
    "CLIPVision": {"interpolate_pos_encoding": True},
    "SiglipVision": {"interpolate_pos_encoding": True},
}
LEFT_OUT = {
    "enhanced": "is relu without its convolution",
    "softmax": "transformers has it",
    "agent": "learns",
    "polaformer": "learns",
}
NAMES = list_attentions()


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    interfaces = transformers.AttentionInterface, transformers.AttentionMaskInterface
    before = [dict(interface._global_mapping) for interface in interfaces]
    register_attentions()
    yield
    for interface, mapping in zip(interfaces, before, strict=True):
        interface._global_mapping.clear()
        interface._global_mapping.update(mapping)


def build(host: str, **options: Any) -> Any:
    config = getattr(transformers, f"{host}Config")(**SIZES, image_size=32, patch_size=8, **options)
    model = getattr(transformers, f"{host}Model")(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def run(model: Any, implementation: str, *args: Any, **inputs: Any) -> Tensor:
    model.set_attn_implementation(implementation)
    out: Tensor = model(*args, **inputs).last_hidden_state
    return out


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def heads(count: int = 9, keys: int | None = None) -> list[Tensor]:
    """Return queries, keys and values of 4 heads with 8 channels each."""
    return [torch.randn(2, 4, n, 8, dtype=torch.float64) for n in (count, keys or count, keys or count)]


class Host(nn.Module):
    is_causal = False


def literal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    return reference.focused_linear_attention(query, key, value, mask).transpose(1, 2), None


# models -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_attends_by_the_paper_at_two_sizes(host: str) -> None:
    transformers.AttentionInterface.register("literal", literal)
    model = build(host)
    for x, options in ((images(), {}), (images(24, 48), HOSTS[host])):
        expected = run(model, "literal", x, **options)
        assert relative_error(run(model, "focused_linear", x, **options), expected) < 1e-12
        assert relative_error(run(model, "sdpa", x, **options), expected) > 1e-2


@pytest.mark.parametrize("host", HOSTS)
def test_softmax_through_our_function_is_transformers_own(host: str) -> None:
    register_attention_as("ours", "softmax")
    model, x = build(host), images()
    assert relative_error(run(model, "ours", x), run(model, "sdpa", x)) < 1e-12


@pytest.mark.parametrize("host", HOSTS)
def test_every_weight_of_a_model_learns_and_its_copy_is_alike(host: str) -> None:
    model, x = build(host), images()
    attentions = [part for name, part in model.named_parameters() if any(f"{letter}_proj.weight" in name for letter in "qkv")]
    run(model.train(), "focused_linear", x).square().sum().backward()
    assert len(attentions) == 6 or "Dinov2" in host
    assert all(part.grad.isfinite().all() and part.grad.abs().sum() > 0 for part in attentions)
    expected = run(model.eval(), "focused_linear", x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x).last_hidden_state, expected)


def test_a_compiled_model_is_one_graph() -> None:
    model, x = build("ViT"), images()
    expected = run(model, "focused_linear", x)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x).last_hidden_state, expected)


def test_a_model_is_built_with_it_by_name() -> None:
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)
    model = transformers.AutoModel.from_config(config, attn_implementation="elu_linear")
    assert model.config._attn_implementation == "elu_linear"
    assert model(images().float(), output_attentions=True).attentions[0].shape == (2, 4, 17, 17)


def text(length: int) -> dict[str, Tensor]:
    ids = torch.arange(2 * length).reshape(2, length) + 1
    kept = torch.arange(length) < torch.tensor([[length], [5]])
    return {"input_ids": ids, "attention_mask": kept.long()}


def siglip_text() -> Any:
    model = transformers.SiglipTextModel(transformers.SiglipTextConfig(**SIZES, vocab_size=99, max_position_embeddings=16))
    return model.double().eval()


@pytest.mark.parametrize("implementation", ["focused_linear", "efficient_linear", "inline_linear", "flatten_mixer"])
def test_padding_changes_no_token(implementation: str) -> None:
    model, padded = siglip_text(), text(8)
    expected = run(model, implementation, input_ids=padded["input_ids"][1:, :5])
    torch.testing.assert_close(run(model, implementation, **padded)[1:, :5], expected)
    out = run(model, implementation, input_ids=padded["input_ids"])
    assert relative_error(out[1:, :5], expected) > 1e-6


def test_a_mask_that_the_user_made_counts() -> None:
    model, padded = siglip_text(), text(8)
    kept = padded["attention_mask"].bool()[:, None, None]
    added = torch.zeros(2, 1, 1, 8, dtype=torch.float64).masked_fill(~kept, -torch.inf)
    expected = run(model, "focused_linear", **padded)
    for mask in (kept, added, added.nan_to_num()):
        torch.testing.assert_close(run(model, "focused_linear", padded["input_ids"], mask), expected)


def clip() -> tuple[Any, dict[str, Tensor]]:
    special = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 98}
    config = transformers.CLIPConfig(text_config=SIZES | special, vision_config=SIZES | {"image_size": 32, "patch_size": 8})
    return transformers.CLIPModel(config).double().eval(), {**text(8), "pixel_values": images()}


def test_clip_is_linear_for_images_and_says_why_its_text_is_not() -> None:
    model, inputs = clip()
    softmax = model(**inputs)
    model.set_attn_implementation({"vision_config": "focused_linear"})
    linear = model(**inputs)
    torch.testing.assert_close(linear.text_embeds, softmax.text_embeds, rtol=0, atol=0)
    assert relative_error(linear.image_embeds, softmax.image_embeds) > 1e-4
    model.set_attn_implementation("focused_linear")
    for mask in (inputs["attention_mask"], None):
        with pytest.raises(
            ValueError, match=r'causal attention.*set_attn_implementation\(\{"vision_config": "focused_linear"\}\)'
        ):
            model(**inputs | {"attention_mask": mask})


# functions ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_equals_its_matrix(name: str) -> None:
    mask = torch.arange(9) < torch.tensor([9, 6]).reshape(2, 1, 1, 1)
    query, key, value = heads()
    out, matrix = attention_function(name)(Host(), query, key, value, mask, output_attentions=True)
    assert matrix is not None
    expected = apply_matrix(matrix, value.masked_fill(~mask.transpose(2, 3), 0)).transpose(1, 2)
    assert relative_error(out, expected) < 1e-12
    assert attention_function(name)(Host(), query, key, value, mask)[1] is None


def test_every_design_is_registered_or_left_out_for_a_reason() -> None:
    assert set(NAMES) == {*DESIGNS, *LEFT_OUT}
    assert register_attentions() == [*(f"{name}_linear" for name in DESIGNS), "flatten_mixer"]
    for interface in (transformers.AttentionInterface(), transformers.AttentionMaskInterface()):
        assert set(register_attentions()) <= set(interface.valid_keys())
    for name, reason in LEFT_OUT.items():
        if reason == "learns":
            with pytest.raises(ValueError, match=rf"attention '{name}' learns \w+.*choose one of focused, relu"):
                attention_function(name)


def test_options_of_a_design_act() -> None:
    register_attention_as("ours", "focused", focusing_factor=4, norm="per_head")
    query, key, value = heads()
    out, _ = transformers.AttentionInterface()["ours"](Host(), query, key, value, None)
    expected = reference.focused_linear_attention(query, key, value, focusing_factor=4, norm="per_head")
    assert relative_error(out.transpose(1, 2), expected) < 1e-12
    with pytest.raises(ValueError, match=r"'focused' learns dwc.weight, which a function cannot hold"):
        register_attention_as("ours", "focused", rank_restoration=True)


def test_a_scale_of_the_model_counts_where_a_design_has_one() -> None:
    query, key, value = heads()
    softmax, _ = attention_function("softmax")(Host(), query, key, value, None, scaling=1.5)
    torch.testing.assert_close(softmax.transpose(1, 2), F.scaled_dot_product_attention(query, key, value, scale=1.5))
    for name in ("focused", "relu", "hydra", "angular"):
        usual, other = (attention_function(name)(Host(), query.abs(), key, value, None, scaling=s)[0] for s in (None, 1.5))
        assert relative_error(other, usual) < 1e-4  # by eps alone: 2.5e-5 measured over 100 draws
    usual, other = (attention_function("elu")(Host(), query, key, value, None, scaling=s)[0] for s in (None, 1.5))
    assert relative_error(other, usual) > 1e-2


def test_groups_of_heads_may_share_keys_and_values() -> None:
    query, key, value = heads()
    shared = [x[:, :2] for x in (key, value)]
    out, _ = attention_function("focused")(Host(), query, *shared, None)
    expected = reference.focused_linear_attention(query, *(x.repeat_interleave(2, 1) for x in shared))
    assert relative_error(out.transpose(1, 2), expected) < 1e-12


# mixers -------------------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """The mean of the kept values, and what it was called with."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        self.mask = attention_mask
        kept = torch.ones_like(value[..., :1]) if attention_mask is None else attention_mask.transpose(2, 3).to(value.dtype)
        mean = (value * kept).sum(2, keepdim=True) / kept.sum(2, keepdim=True)
        return mean.expand_as(query).transpose(1, 2).flatten(2)


def average(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    return value.mean(dim=2, keepdim=True).expand_as(query).transpose(1, 2), None


def attentions(model: Any) -> list[Any]:
    return [part for part in model.modules() if hasattr(part, "is_causal")]


@pytest.mark.parametrize("host", HOSTS)
def test_attentions_with_a_mixer_call_it_and_the_others_are_softmax(host: str) -> None:
    transformers.AttentionInterface.register("average", average)
    model, x = build(host), images()
    assert torch.equal(run(model, "flatten_mixer", x), run(model, "sdpa", x))
    first, last = attentions(model)
    last.mixer = Mean()
    mixed = run(model, "flatten_mixer", x)
    assert relative_error(mixed, run(model, "sdpa", x)) > 1e-6
    first.mixer = Mean()
    torch.testing.assert_close(run(model, "flatten_mixer", x), run(model, "average", x))


def test_a_mixer_gets_a_mask_of_keys() -> None:
    model, padded = siglip_text(), text(8)
    attentions(model)[1].mixer = Mean()
    run(model, "flatten_mixer", **padded)
    torch.testing.assert_close(attentions(model)[1].mixer.mask, padded["attention_mask"].bool()[:, None, None])


def test_softmax_beside_mixers_may_be_causal_but_mixers_may_not() -> None:
    model, inputs = clip()
    softmax = model(**inputs)
    model.set_attn_implementation("flatten_mixer")
    assert torch.equal(model(**inputs).logits_per_image, softmax.logits_per_image)
    attentions(model.text_model)[0].mixer = Mean()
    with pytest.raises(ValueError, match="this attention is causal"):
        model(**inputs)


# what is refused ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"is_causal": True}, 'this attention is causal.*keep "sdpa"'),
    "dropout": ({"dropout": 0.1}, "got dropout 0.1: load the model with attention_dropout=0.0"),
    "pairs": ({"attention_mask": torch.ones(2, 1, 9, 9, dtype=torch.bool)}, r"\[2, 1, 9, 9\].*pass \[batch, keys\]"),
    "weights": ({"attention_mask": torch.full((2, 1, 1, 9), -1.0)}, "attention_mask must be boolean"),
    "bias": ({"position_bias": torch.zeros(1, 4, 9, 9)}, "position_bias changes weights of single query-key pairs"),
    "cap": ({"softcap": 30.0}, "softcap changes weights"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("mixing", [False, True], ids=["design", "mixer"])
def test_what_linear_attention_cannot_do_is_refused(wrong: str, mixing: bool) -> None:
    options, message = WRONG[wrong]
    host = Host()
    host.mixer = Mean()
    attend = transformers.AttentionInterface()["flatten_mixer" if mixing else "focused_linear"]
    with pytest.raises(ValueError, match=message) as caught:
        attend(host, *heads(), **{"attention_mask": None, **options})
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_say_whether_it_is_causal_is_taken_for_it_as_transformers_does() -> None:
    for module in (nn.Identity(), transformers.LlamaModel):
        with pytest.raises(ValueError, match="this attention is causal"):
            attention_function("focused")(module, *heads(), None)


def test_dropout_of_a_model_is_refused_in_training_alone() -> None:
    model = build("ViT", attention_probs_dropout_prob=0.1)
    run(model, "focused_linear", images())
    with pytest.raises(ValueError, match=r"attention_probs_dropout_prob=0.0 for ViT"):
        model.train()(images())


def test_an_attention_that_needs_its_own_values_takes_no_other_keys() -> None:
    with pytest.raises(ValueError, match="cannot attend from 9 queries to 7 keys"):
        attention_function("angular")(Host(), *heads(9, 7), None)
    assert attention_function("focused")(Host(), *heads(9, 7), None)[0].shape == (2, 9, 4, 8)


@pytest.mark.parametrize(("found", "message"), [(None, "pip install transformers"), ("4.40.0", "pip install -U transformers")])
def test_without_transformers_one_line_says_so(found: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("transformers")
    old.__version__ = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", None if found is None else old)
    with pytest.raises(ValueError, match=message):
        hugging_face.register_attentions()
