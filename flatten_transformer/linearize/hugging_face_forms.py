"""Linear form of the attentions in vision models of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from flatten_transformer.layers.hugging_face import MIXER, register_attentions
from flatten_transformer.linearize.forms import LinearForm, is_linear, linear_form_by_look
from flatten_transformer.linearize.mixer import LinearMixer


def is_hugging_face(module: nn.Module) -> bool:
    """Return whether a module calls its attention by transformers' interface, for tokens without an order."""
    has_interface = hasattr(getattr(module, "config", None), "_attn_implementation")
    return has_interface and getattr(module, "is_causal", None) is False and hasattr(module, "q_proj")


@linear_form_by_look(is_hugging_face)
class HuggingFaceForm(LinearForm):
    """An attention of transformers keeps its class: it calls the function ``"flatten_mixer"``, which calls its mixer."""

    @classmethod
    def heads(cls, host: Any) -> tuple[int, int]:
        """Return heads and channels."""
        head_dim = int(host.head_dim)
        return host.q_proj.out_features // head_dim, head_dim

    @classmethod
    def check(cls, host: Any) -> None:
        """Refuse text, which lies on no grid of patches and is causal in CLIP, and a decoder's attention to its encoder."""
        if getattr(host, "is_decoder", False) or "CrossAttention" in type(host).__name__:
            raise ValueError("it attends to the tokens of another part: give the encoder alone, model.get_encoder()")
        if "Text" in type(host.config).__name__:
            raise ValueError("it attends to text: give the part that sees images, model.vision_model")

    @classmethod
    def attention_dropout(cls, host: Any) -> float:
        """Return it as transformers' modules name it."""
        return float(getattr(host, "attention_dropout", getattr(host, "dropout", 0.0)))

    def adopt(self, mixer: LinearMixer) -> None:
        """Take the mixer, if queries, keys and values are all it needs."""
        if mixer.attention.needs_tokens:
            raise ValueError(
                f"{type(mixer.attention).__name__} looks at the tokens before queries, keys and values, which transformers does "
                "not pass on: take another attention, such as focused"
            )
        LinearForm.adopt(self, mixer)


def use_mixers(model: nn.Module) -> None:
    """Let the models of transformers in a model call the mixers of their attentions."""
    attentions: list[Any] = [part for part in model.modules() if is_linear(part) and is_hugging_face(part)]
    if not attentions:
        return
    register_attentions()
    for attention in attentions:  # a part of a model, such as its blocks, has no switch of its own
        attention.config._attn_implementation = MIXER
    for part in model.modules():
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation(MIXER)  # type: ignore[operator]
