"""Whisper as transformers' model, from a file of weights of CTranslate2."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by CTranslate2's number
_NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
_PARTS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def read_variables(content: bytes) -> dict[str, Tensor]:
    """Return the variables of a file of CTranslate2, version 6, by name.

    Args:
        content: The file, ``model.bin``: version, name of the model and its revision; then each variable's name, axes, dtype and
            bytes; then names that stand for others, which are left out. All is little-endian.

    Raises:
        ValueError: If it is no such file.
    """
    reader = _Reader(content)
    try:
        version, kind, _ = reader.number("I"), reader.text(), reader.number("I")
        if (version, kind) != (6, "WhisperSpec"):
            raise ValueError(f"the file is {kind!r}, version {version}: give the model.bin of a Whisper of version 6")
        return dict(reader.variables(reader.number("I")))
    except (struct.error, UnicodeDecodeError, IndexError):
        raise ValueError("the file ends early, or is none of CTranslate2: give the model.bin of a Whisper") from None


class _Reader:
    """Reads numbers, texts and variables one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self.content, self.place)[0]
        self.place += struct.calcsize(kind)
        return value

    def text(self) -> str:
        return self._take(self.number("H"))[:-1].decode()  # it ends in a zero

    def variables(self, count: int) -> Iterator[tuple[str, Tensor]]:
        for _ in range(count):
            name = self.text()
            shape = [self.number("I") for _ in range(self.number("B"))]
            dtype = _DTYPES[self.number("B")]
            yield name, torch.frombuffer(bytearray(self._take(self.number("I"))), dtype=dtype).reshape(shape)

    def _take(self, count: int) -> bytes:
        if self.place + count > len(self.content):
            raise IndexError
        self.place += count
        return self.content[self.place - count : self.place]


def load_whisper(file: Path) -> Any:
    """Return a Whisper in float32 and evaluation mode.

    Args:
        file: ``model.bin`` of a Whisper, in CTranslate2's format.

    Raises:
        ValueError: If it is no such file.
    """
    variables = read_variables(file.read_bytes())
    model = WhisperForConditionalGeneration(_config(variables))
    state = dict(_renamed({name: value.float() for name, value in variables.items() if value.is_floating_point()}))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) != {"proj_out.weight"}:  # which is the decoder's embedding
        raise ValueError(f"the weights in {file} are not those of a Whisper: {[*unexpected, *missing][:3]}")
    return model.eval()


def _config(variables: Mapping[str, Tensor]) -> WhisperConfig:
    """Return the sizes of a Whisper, read off its weights."""
    vocabulary, channels = variables["decoder/embeddings/weight"].shape
    layers = {
        part: len({name.split("/")[1] for name in variables if name.startswith(f"{part}/layer_")} - {"layer_norm"})
        for part in ("encoder", "decoder")
    }
    hidden, heads = len(variables["encoder/layer_0/ffn/linear_0/bias"]), int(variables["encoder/num_heads"])
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=channels,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        **{f"{part}_layers": count for part, count in layers.items()},
        **{f"{part}_attention_heads": heads for part in layers},
        **{f"{part}_ffn_dim": hidden for part in layers},
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
    )


def _renamed(variables: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights under transformers' names; projections that CTranslate2 joins come apart."""
    for name, value in variables.items():
        side, *path, part = name.split("/")
        place = f"model.{side}"
        if path[0] == "embeddings":
            yield f"{place}.embed_tokens.weight", value
        elif path[0] == "position_encodings":
            yield f"{place}.embed_positions.weight", value
        elif not path[0].startswith("layer_") or path[0] == "layer_norm":
            yield f"{place}.{path[0]}.{_PARTS[part]}", value
        else:
            block = f"{place}.layers.{path[0].removeprefix('layer_')}"
            yield from _of_block(block, path[1], path[2], _PARTS[part], value)


def _of_block(block: str, host: str, layer: str, part: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if layer == "layer_norm":
        yield f"{block}.{_NORMS[host]}.{part}", value
        return
    number = int(re.sub(r"\D", "", layer))
    if host == "ffn":
        yield f"{block}.fc{number + 1}.{part}", value
        return
    joined = {"self_attention": ("qkv", "o"), "attention": ("q", "kv", "o")}[host][number]
    for letter, piece in zip(joined, value.chunk(len(joined)), strict=True):
        if (letter, part) != ("k", "bias"):  # Whisper has none; CTranslate2 fills in zeros
            attention = {"self_attention": "self_attn", "attention": "encoder_attn"}[host]
            yield f"{block}.{attention}.{'out' if letter == 'o' else letter}_proj.{part}", piece
