import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from flatten_transformer.tasks.detection.detector import Detector
from flatten_transformer.tasks.detection.model import DETECTORS, build_detector
from tests.tasks.detection.conftest import BACKBONE, NAMES, SMALL, MakeDetector, target

SIZES = ((64, 80), (50, 41), (64, 80), (97, 66))


def images(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Tensor]:
    return [torch.rand(3, *size) for size in sizes]


def furthest(came: dict[str, Tensor], wanted: dict[str, Tensor], key: str) -> float:
    if came[key].shape != wanted[key].shape:
        return float("inf")
    return float((came[key] - wanted[key]).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_many_sizes_gives_the_detections_of_each_image_alone(name: str, make_detector: MakeDetector) -> None:
    detector, batch = make_detector(name), images()
    for image, came in zip(batch, detector(batch), strict=True):
        wanted = detector([image])[0]
        assert len(wanted["boxes"]) > 20
        assert torch.equal(came["labels"], wanted["labels"])
        # measured: 4e-5 pixels and 6e-7, where two images of one size share a matrix product
        assert furthest(came, wanted, "boxes") < 2e-4
        assert furthest(came, wanted, "scores") < 3e-6


@torch.no_grad()
def test_padding_such_a_batch_would_give_others(make_detector: MakeDetector) -> None:
    detector, batch = make_detector(), images(((64, 80), (64, 128)))
    assert furthest(detector.core(batch)[0], detector.core(batch[:1])[0], "scores") > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("size", [(36, 100), (100, 36)])
def test_the_strides_do_not_depend_on_what_a_detector_saw_first(size: tuple[int, int], make_detector: MakeDetector) -> None:
    detector = make_detector(min_size=36)
    detector(images((size,)))  # 2 cells over 36 pixels look like a stride of 16, 4 over 100 like 32
    heads: Any = detector.core.roi_heads
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        assert (pool.map_levels.k_min, pool.map_levels.k_max) == (2, 5)


@torch.no_grad()
@pytest.mark.parametrize(
    "backbone", ["resnet18", "swin_tiny_patch4_window7_224", "flatten_swin_tiny_patch4_224", "convnext_atto"]
)
def test_any_timm_backbone_with_a_pyramid_works(backbone: str) -> None:
    args = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in backbone else {}
    options = {**SMALL, "backbone": backbone, "backbone_args": args, "box_dim": 16, "size_divisible": 1}
    if backbone.startswith("swin"):
        options |= {"backbone_args": {**args, "strict_img_size": False}, "size_divisible": 32}
    detector = build_detector("faster_rcnn", options, num_classes=3, in_chans=3).eval()
    maps = detector.core.backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(map_.shape[2:]) for map_ in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert len(detector([torch.rand(3, 70, 90)])) == 1


@torch.no_grad()
def test_a_large_rectangle_and_another_pass_in_one_batch(make_detector: MakeDetector) -> None:
    detector = make_detector("retinanet", min_size=800, max_size=1333)
    found = detector(images(((800, 1333), (640, 480))))
    assert [len(each["boxes"]) for each in found] == [100, 100]
    assert found[0]["boxes"][:, 2].max() > 900


@torch.no_grad()
def test_boxes_are_in_pixels_of_the_image_as_it_came(make_detector: MakeDetector) -> None:
    detector, image = make_detector(), torch.rand(3, 64, 128)
    small = torch.nn.functional.interpolate(image[None], scale_factor=0.5, mode="nearest")[0]
    found = detector([small.repeat_interleave(2, 1).repeat_interleave(2, 2), small])  # resized from 128 and to 128 columns
    assert found[0]["masks"].shape[1:] == (1, 64, 128)
    assert found[1]["masks"].shape[1:] == (1, 32, 64)
    assert found[1]["boxes"][:, 2].max() <= 64


def test_the_losses_of_sizes_are_averaged_over_images(make_detector: MakeDetector) -> None:
    detector = make_detector("retinanet").train()
    batch = images(((64, 80), (50, 41), (64, 80)))
    targets = [target((3, 4, 30, 40), size=(64, 80)), target((5, 5, 20, 20), size=(50, 41), labels=(2,)), target(size=(64, 80))]

    def losses(indices: list[int]) -> dict[str, Tensor]:
        found = detector([batch[index] for index in indices], [targets[index] for index in indices])
        assert isinstance(found, dict)
        return found

    together, pair, single = losses([0, 1, 2]), losses([0, 2]), losses([1])
    for name in ("classification", "bbox_regression"):
        assert float(pair[name].detach()) != float(single[name].detach())
        torch.testing.assert_close(together[name], (2 * pair[name] + single[name]) / 3, rtol=1e-5, atol=0)  # 1e-7 measured


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str, make_detector: MakeDetector) -> None:
    detector = make_detector(name).train()
    losses = detector(images(SIZES[:2]), [target((3, 4, 30, 40), size=SIZES[0]), target((5, 5, 20, 20), size=SIZES[1])])
    assert isinstance(losses, dict)
    sum(losses.values(), torch.zeros(())).backward()
    assert [name for name, each in detector.named_parameters() if each.requires_grad and each.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_objects_can_be_learned_from(name: str, make_detector: MakeDetector) -> None:
    losses = make_detector(name).train()(images(SIZES[:2]), [target(size=size) for size in SIZES[:2]])
    total = sum(losses.values(), torch.zeros(()))
    total.backward()
    assert torch.isfinite(total)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_boxes_keep_their_precision(name: str, make_detector: MakeDetector) -> None:
    detector, image = make_detector(name, min_size=800, max_size=1333), images(((100, 160),))
    with torch.autocast("cpu", torch.bfloat16):
        found = detector(image)[0]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())


def test_classes_count_from_zero(make_detector: MakeDetector) -> None:
    for name in NAMES:
        found = torch.cat([each["labels"] for each in make_detector(name, num_classes=2)(images())])
        assert set(found.tolist()) <= {0, 1}
        make_detector(name, num_classes=1).train()(images(SIZES[:1]), [target((3, 4, 30, 40), size=SIZES[0])])


def test_what_the_backbone_exempts_does_not_decay() -> None:
    args = {"depths": (1, 1, 1, 1), "embed_dim": 24}
    options = {"backbone": "flatten_swin_tiny_patch4_224", "backbone_args": args, "fpn_channels": 16}
    detector = build_detector("retinanet", options, num_classes=3, in_chans=3)
    exempt = detector.no_weight_decay()
    assert exempt == {name for name, _ in detector.named_parameters() if "relative_position_bias_table" in name} != set()


def test_a_detector_takes_the_weights_of_a_classifier(tmp_path: Path) -> None:
    classifier = timm.create_model("flatten_pvt_v2_b0", num_classes=4, **BACKBONE)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    args = {**BACKBONE, "checkpoint_path": str(tmp_path / "classifier.safetensors")}

    def weight(**changes: object) -> Tensor:
        detector = build_detector("retinanet", {**SMALL, "backbone_args": args, **changes}, num_classes=3, in_chans=3)
        return detector.get_parameter("core.backbone.body.patch_embed.proj.weight")

    assert torch.equal(weight(), classifier.patch_embed.proj.weight)
    assert not torch.equal(weight(pretrained=False), classifier.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mask_rnn", {}, "no detector 'mask_rnn': did you mean mask_rcnn"),
        ("mask_rcnn", {"minsize": 3}, "mask_rcnn takes no 'minsize' in model_args: did you mean min_size"),
        ("retinanet", {"box_dim": 3}, "retinanet takes no 'box_dim'"),
        ("retinanet", {"anchor_sizes": (3, 4)}, "anchor_sizes must hold one side for each of five maps, got [3, 4]"),
        ("retinanet", {"min_size": 900, "max_size": 800}, "min_size must be at least 1 and at most max_size, got 900 and 800"),
        ("retinanet", {"backbone": "flatten_pvt_tny"}, "timm knows no backbone 'flatten_pvt_tny': did you mean flatten_pvt_tiny"),
        ("retinanet", {"backbone_args": {"dpth": 3}}, "backbone_args do not fit flatten_pvt_v2_b0"),
        ("retinanet", {"backbone": "flatten_deit_tiny_patch16_224", "backbone_args": {"depth": 4}}, "take one with a pyramid"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_detector(name, {**SMALL, **changes}, num_classes=3, in_chans=3)


def test_a_detector_without_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_rcnn needs a backbone in model_args"):
        build_detector("mask_rcnn", {}, num_classes=3, in_chans=3)


def test_training_without_what_it_takes_is_refused(make_detector: MakeDetector) -> None:
    detector: Detector = make_detector().train()
    with pytest.raises(ValueError, match="needs targets, got none"):
        detector(images())
    truth = target((3, 4, 30, 40), size=(64, 80))
    del truth["masks"]
    with pytest.raises(ValueError, match=r"learns masks, but the targets hold none: set data\.masks"):
        detector(images(SIZES[:1]), [truth])


@pytest.mark.parametrize(
    ("option", "value"),
    [("feature_norm", True), ("box_convs", 2), ("size_divisible", 32), ("nms_thresh", 0.2), ("proposals", 10)],
)
def test_every_option_changes_something(option: str, value: object, make_detector: MakeDetector) -> None:
    image = images(SIZES[1:2])
    came, plain = make_detector(**{option: value})(image)[0], make_detector()(image)[0]
    assert came["boxes"].shape != plain["boxes"].shape or not torch.equal(came["boxes"], plain["boxes"])


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_box_head_learns_from_as_many_boxes_as_it_is_told(name: str, make_detector: MakeDetector) -> None:
    seen: list[int] = []
    detector = make_detector(name, box_samples=20).train()
    heads: Any = detector.core.roi_heads
    for stage in getattr(heads, "stages", [heads]):
        stage.box_head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    detector(images(SIZES[:1]), [target((3, 4, 30, 40), size=SIZES[0])])
    assert set(seen) == {20}


def test_all_detectors_are_tested() -> None:
    assert set(NAMES) == set(DETECTORS)
