"""Semantic FPN and UPerNet by segmentation_models_pytorch on any timm backbone, for images of any size."""

# B batch, C channels of the images, K classes; a map of stage s has 1/2^(s+1) of the image's height and width.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from flatten_transformer.linearize.build import linearized
from flatten_transformer.tasks.backbone import feature_name, load_backbone, plain_model
from flatten_transformer.tasks.building import building_backbone, read_options
from flatten_transformer.utils.suggest import did_you_mean

STRIDE = 32  # sides must be multiples of it for the maps of all stages to align
_DROPOUT = 0.1  # of whole channels before a classifier, as in mmsegmentation
_WEIGHTS = ("pretrained", "checkpoint_path")  # weight sources in backbone_args


@dataclass(frozen=True)
class SegmenterOptions:
    """Options of every segmenter.

    Args:
        backbone: timm name of a model with maps at 1/4, 1/8, 1/16 and 1/32 of the image.
        backbone_args: Further keyword arguments of ``timm.create_model``, such as ``drop_path_rate``; ``checkpoint_path``
            loads the weights of a trained classifier.
        pretrained: Load the weights named in ``backbone_args``; False when a trained segmenter brings its own.
        decoder_channels: Decoder channels; None for the baselines': 256 for Semantic FPN, 512 for UPerNet.
        aux_channels: Channels of the auxiliary head on the third stage, 0 for none; None for 0 with Semantic FPN and 256
            with UPerNet.

    Raises:
        ValueError: If a number is out of range.
    """

    backbone: str
    backbone_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    decoder_channels: int | None = None
    aux_channels: int | None = None

    def __post_init__(self) -> None:
        if self.decoder_channels is not None and (self.decoder_channels < 128 or self.decoder_channels % 64):
            # Semantic FPN has group norms of 32 groups over half of them, each of more than one channel
            raise ValueError(f"decoder_channels must be a multiple of 64 and at least 128, got {self.decoder_channels}")
        if self.aux_channels is not None and self.aux_channels < 0:
            raise ValueError(f"aux_channels must be at least 1, or 0 for no auxiliary head, got {self.aux_channels}")


class SegmenterSpec(NamedTuple):
    """Defaults and builder of a segmenter."""

    decoder_channels: int
    aux_channels: int
    build: Callable[..., Any]


def build_segmenter(name: str, model_args: Mapping[str, Any], num_classes: int, in_chans: int) -> Segmenter:
    """Build a segmenter.

    Args:
        name: ``"semantic_fpn"`` (arXiv 1901.02446) or ``"upernet"`` (arXiv 1807.10221).
        model_args: Fields of :class:`SegmenterOptions`.
        num_classes: K.
        in_chans: C.

    Raises:
        ValueError: If the segmenter, backbone or an argument is unknown.

    Example:
        >>> sizes = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
        >>> args = {"backbone": "flatten_pvt_v2_b0", "backbone_args": sizes, "decoder_channels": 128}
        >>> model = build_segmenter("semantic_fpn", args, num_classes=5, in_chans=3)
        >>> model(torch.rand(2, 3, 50, 70)).shape
        torch.Size([2, 5, 50, 70])
    """
    if name not in SEGMENTERS:
        raise ValueError(f"no segmenter {name!r}: {did_you_mean(name, SEGMENTERS)}")
    spec, options = SEGMENTERS[name], read_options(SegmenterOptions, name, model_args)
    backbone, args = options.backbone, {key: value for key, value in options.backbone_args.items() if key not in _WEIGHTS}
    host = _host(spec, options, args, num_classes, in_chans)
    features = host.encoder.model
    if options.pretrained and (path := options.backbone_args.get("checkpoint_path")):
        load_backbone(features, backbone, {**args, "in_chans": in_chans}, path)
    auxiliary = None
    if channels := spec.aux_channels if options.aux_channels is None else options.aux_channels:
        auxiliary = _auxiliary_head(host.encoder.out_channels[-2], channels, num_classes)
    return Segmenter(host, auxiliary, _undecayed(backbone, args, features))


class Segmenter(nn.Module):
    """Encoder, decoder and pixel classifier, with an auxiliary head for training.

    Images are stretched to the next multiples of 32, by at most 31 pixels, and logits are stretched back, as PVT's authors
    evaluate. Nothing is padded, because global attention would attend to it.

    Args:
        host: segmentation_models_pytorch model whose classifier does not upsample.
        auxiliary: Maps the second-last stage to K logits, or None.
        undecayed: Names of this module's parameters without weight decay.
    """

    encoder: nn.Module
    decoder: nn.Module
    head: nn.Module

    def __init__(self, host: Any, auxiliary: nn.Module | None, undecayed: frozenset[str]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = host.encoder, host.decoder, host.segmentation_head
        for classifier in (module for module in self.head.modules() if isinstance(module, nn.Conv2d)):
            # near-uniform initial predictions; the host's own initialisation triples the first loss
            nn.init.normal_(classifier.weight, std=0.01)
        self.auxiliary = auxiliary
        self._undecayed = undecayed

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, K, height, width]`` of images ``[B, C, height, width]``."""
        return self._logits(images, auxiliary=False)[0]

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits and the auxiliary head's, both ``[B, K, height, width]``, the latter None without such a head.

        Args:
            images: ``[B, C, height, width]``.
        """
        logits, *others = self._logits(images, auxiliary=True)
        return logits, others[0] if others else None

    def _logits(self, images: Tensor, auxiliary: bool) -> list[Tensor]:
        height, width = images.shape[2:]
        features = self.encoder(_stretch(images, -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE))
        logits = [self.head(self.decoder(features))]  # [B, K, ~height/4, ~width/4]
        if auxiliary and self.auxiliary is not None:
            logits.append(self.auxiliary(features[-2]))  # [B, K, ~height/16, ~width/16]
        return [_stretch(each, height, width) for each in logits]

    def no_weight_decay(self) -> frozenset[str]:
        """Return the parameters that the backbone exempts from weight decay."""
        return self._undecayed


def _stretch(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def _host(spec: SegmenterSpec, options: SegmenterOptions, args: Mapping[str, Any], num_classes: int, in_chans: int) -> Any:
    args = dict(args)
    linearize = args.pop("linearize", False)
    pretrained = options.pretrained and options.backbone_args.get("pretrained", False)
    given: dict[str, Any] = {"encoder_name": f"tu-{options.backbone}", "encoder_weights": True if pretrained else None}
    given |= {"in_channels": in_chans, "classes": num_classes, "upsampling": 1}
    try:
        with building_backbone(options.backbone):
            host = spec.build(options.decoder_channels or spec.decoder_channels, **given, **args)
            host.encoder.model = linearized(host.encoder.model, linearize)
            return host
    except ValueError as error:
        if "downsampling pattern" not in str(error):
            raise
        cure = "take a pyramid, such as flatten_pvt_tiny, flatten_swin_tiny_patch4_224 or resnet50"
        raise ValueError(f"{options.backbone} gives no maps at 1/4, 1/8, 1/16 and 1/32 of the image: {cure}") from None


def _semantic_fpn(channels: int, **options: Any) -> Any:
    sizes = {"decoder_pyramid_channels": channels, "decoder_segmentation_channels": channels // 2}
    return smp.FPN(decoder_dropout=_DROPOUT, **sizes, **options)


def _upernet(channels: int, **options: Any) -> Any:
    host = smp.UPerNet(decoder_channels=channels, **options)
    host.segmentation_head.insert(0, nn.Dropout2d(_DROPOUT))
    return host


SEGMENTERS: Mapping[str, SegmenterSpec] = {
    "semantic_fpn": SegmenterSpec(256, 0, _semantic_fpn),
    "upernet": SegmenterSpec(512, 256, _upernet),
}


def _auxiliary_head(in_channels: int, channels: int, num_classes: int) -> nn.Module:
    """Return mmsegmentation's FCNHead of one convolution."""
    return nn.Sequential(
        Conv2dNormActivation(in_channels, channels, 3), nn.Dropout2d(_DROPOUT), nn.Conv2d(channels, num_classes, 1)
    )


def _undecayed(name: str, args: Mapping[str, Any], features: nn.Module) -> frozenset[str]:
    """Return the backbone's parameters without weight decay, by our names; timm's feature wrapper drops the list."""
    with torch.device("meta"):
        exempt: set[str] = getattr(plain_model(name, args), "no_weight_decay", set)()
    inside = features.state_dict()
    return frozenset(f"encoder.model.{short}" for full in exempt if (short := feature_name(full, inside)) is not None)
