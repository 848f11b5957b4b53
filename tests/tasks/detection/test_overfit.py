"""Each detector can learn: four small scenes by heart."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flatten_transformer.data.coco import CocoFile
from flatten_transformer.tasks.detection.detector import Detector
from flatten_transformer.tasks.detection.metrics import AveragePrecision
from flatten_transformer.tasks.detection.model import build_detector
from tests.coco_files import annotation
from tests.tasks.detection.conftest import NAMES, SMALL, target

SIZE = (64, 80)
SPOTS = ((4, 4), (40, 4), (4, 34), (40, 34))
STEPS = {"mask_rcnn": 50, "cascade_mask_rcnn": 40, "retinanet": 80}


def scenes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return noise with two rectangles each: red, green or blue is their class."""
    rng = np.random.default_rng(0)
    images, targets = [], []
    for _ in range(4):
        image = torch.tensor(rng.normal(0, 0.2, (3, *SIZE)), dtype=torch.float32)
        boxes = [
            (x, y, x + int(rng.integers(16, 30)), y + int(rng.integers(16, 26))) for x, y in rng.permutation(SPOTS)[:2].tolist()
        ]
        colours = rng.integers(0, 3, 2).tolist()
        for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
            image[colour, top:bottom, left:right] += 2
        images.append(image)
        targets.append(target(*boxes, size=SIZE, labels=tuple(colours)))
    return images, targets


def truth_of(targets: list[dict[str, Tensor]]) -> CocoFile:
    images = [{"id": number, "file_name": f"{number}.png", "width": SIZE[1], "height": SIZE[0]} for number in range(len(targets))]
    entries: list[dict[str, Any]] = []
    for number, each in enumerate(targets):
        for (left, top, right, bottom), label in zip(each["boxes"].tolist(), each["labels"].tolist(), strict=True):
            entries.append(annotation(len(entries) + 1, number, label + 1, (left, top, right - left, bottom - top)))
    names = ["red", "green", "blue"]
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    return CocoFile(None, names, [1, 2, 3], [], {"images": images, "annotations": entries, "categories": categories})  # type: ignore[arg-type]


def judge(detector: Detector, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, float]:
    metric = AveragePrecision(truth_of(targets), masks=detector.has_masks)
    with torch.no_grad():
        metric.update(range(len(images)), detector.eval()(images))
    return metric.compute()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "faster_rcnn"])  # the boxes of mask_rcnn
def test_a_detector_learns_four_scenes_by_heart(name: str) -> None:
    torch.manual_seed(0)
    images, targets = scenes()
    # few boxes: pooling their features takes most of the time
    own = {"fpn_channels": 32} if name == "retinanet" else {"box_dim": 32, "proposals": 60, "box_samples": 32}
    detector = build_detector(name, {**SMALL, **own}, num_classes=3, in_chans=3)
    assert judge(detector, images, targets)["box_ap50"] < 0.1
    detector.train()
    rate = 6e-3 if name == "retinanet" else 1e-2
    optimizer = torch.optim.AdamW(detector.parameters(), rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS[name] * 4 // 5])
    for _ in range(STEPS[name]):
        losses = detector(images, targets)
        assert isinstance(losses, dict)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    found = judge(detector, images, targets)
    assert found["box_ap50"] > 0.8
    if detector.has_masks:
        assert found["mask_ap50"] > 0.8
