"""Attentions step by step as their papers have them, apart from the oracles and from the code they share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.layers.attentions import make, tokens


def heads_of(layer: Any, x: Tensor) -> list[Tensor]:
    """Return q, k and v, ``[B, 2, N, 8]``, of a layer without prefix tokens."""
    return [part.reshape(*part.shape[:2], 2, 8).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=2)]


def image_of(x: Tensor) -> Tensor:
    """Return ``[B, C, 5, 7]`` of heads ``[B, 2, 35, 8]``."""
    return x.transpose(1, 2).reshape(x.shape[0], 5, 7, -1).permute(0, 3, 1, 2)


def test_agent_attention_by_hand() -> None:
    layer = make("agent", num_agents=6**2)
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    agents = F.adaptive_avg_pool2d(image_of(q), 6).flatten(2).transpose(1, 2).reshape(2, 36, 2, 8).transpose(1, 2)
    biases = []
    for bias in (layer.query_bias, layer.key_bias):
        block = F.interpolate(bias.block.transpose(1, 2).unflatten(2, (7, 7)), size=(5, 7), mode="bilinear")
        rows, columns = (line.transpose(1, 2) for line in bias.lines)  # each [H, A, length]
        biases.append((block + rows[..., :, None] + columns[..., None, :]).flatten(2))  # [H, A, N]
    gathered = (agents @ k.mT / 8**0.5 + biases[1]).softmax(dim=3) @ v
    out = (q @ agents.mT / 8**0.5 + biases[0].mT).softmax(dim=3) @ gathered
    convolved = F.conv2d(image_of(v), layer.dwc.weight, layer.dwc.bias, padding=1, groups=16).flatten(2).mT
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(1, 2).flatten(2) + convolved))


def test_inline_attention_by_hand() -> None:
    layer = make("inline")
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    scores = q @ k.mT / 8**0.5
    out = (scores - scores.mean(dim=3, keepdim=True) + 1) / 35 @ v
    first, _, second = layer.residual
    predicted = []
    for head in range(2):  # an MLP of each head
        mean = x.mean(dim=1)[:, 8 * head : 8 * head + 8]
        hidden = F.gelu(mean @ first.weight[8 * head : 8 * head + 8, :, 0].T + first.bias[8 * head : 8 * head + 8])
        rows = slice(72 * head, 72 * head + 72)
        predicted.append((hidden @ second.weight[rows, :, 0].T + second.bias[rows]).reshape(2, 8, 3, 3))
    kernels = torch.cat(predicted, dim=1)
    convolved = [
        F.conv2d(image[None], kernel[:, None], padding=1, groups=16)[0].flatten(1).T
        for image, kernel in zip(image_of(v), kernels, strict=True)
    ]
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(1, 2).flatten(2) + torch.stack(convolved)))


def test_polaformer_attention_by_hand() -> None:
    layer = make("polaformer")
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    encoding, scale = (t.reshape(1, -1, 2, 8).transpose(1, 2) for t in (layer.positional_encoding, layer.scale))
    q, k = q / F.softplus(scale), (k + encoding) / F.softplus(scale)
    power = 1 + 4 * layer.power.sigmoid()
    q_plus, q_minus, k_plus, k_minus = (torch.relu(t) ** power for t in (q, -q, k, -k))
    halves = []
    for same, half in ((True, v[..., :4]), (False, v[..., 4:])):
        scores = q_plus @ (k_plus if same else k_minus).mT + q_minus @ (k_minus if same else k_plus).mT
        halves.append(scores @ half / (scores.sum(dim=3, keepdim=True) + 35e-6))
    convolved = layer.dwc(v.flatten(0, 1).mT.unflatten(2, (5, 7))).flatten(2).mT.unflatten(0, (2, 2))
    out = (torch.cat(halves, dim=3) + convolved).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.proj(out * layer.g(x)))
