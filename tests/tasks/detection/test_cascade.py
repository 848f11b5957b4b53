from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, box_iou

from flatten_transformer.tasks.detection.cascade import CascadeRoIHeads, ClassAgnosticPredictor, predict, refine
from tests.tasks.detection.conftest import MakeDetector, target

SIZES = [(64, 96), (64, 96)]


def stage(iou: float = 0.5, box_weight: float = 10.0) -> RoIHeads:
    """Return a box head with two classes and loud weights."""
    pool = MultiScaleRoIAlign(["0", "1"], output_size=3, sampling_ratio=2)
    predictor = ClassAgnosticPredictor(16, num_outputs=3)
    with torch.no_grad():
        predictor.cls_score.weight.mul_(20)
        predictor.bbox_pred.weight.mul_(5)
    weights = (box_weight, box_weight, box_weight / 2, box_weight / 2)
    return RoIHeads(pool, TwoMLPHead(4 * 9, 16), predictor, iou, iou, 64, 0.25, weights, 0.05, 0.5, 20)


def mask_parts() -> tuple[Any, Any, Any]:
    pool = MultiScaleRoIAlign(["0", "1"], output_size=4, sampling_ratio=2)
    return pool, MaskRCNNHeads(4, (4, 4), 1), MaskRCNNPredictor(4, 4, 3)


@pytest.fixture
def features() -> dict[str, Tensor]:
    return {"0": torch.randn(2, 4, 16, 24), "1": torch.randn(2, 4, 8, 12)}


@pytest.fixture
def proposals() -> list[Tensor]:
    corners = torch.rand(2, 40, 2) * torch.tensor([70.0, 40.0])
    return list(torch.cat([corners, corners + 4 + 20 * torch.rand(2, 40, 2)], dim=2))


@pytest.fixture
def targets(proposals: list[Tensor]) -> list[dict[str, Tensor]]:
    truth = target((3, 4, 30, 40), (40, 10, 70, 50), size=(64, 96), labels=(1, 2))
    return [truth, target(size=(64, 96))]


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_cascade_of_one_stage_is_torchvisions_plain_head(
    with_masks: bool, features: dict[str, Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    plain, mask = stage(), mask_parts()
    cascade = CascadeRoIHeads([plain], [1.0], mask if with_masks else None)
    losses = run(cascade.train(), features, proposals, targets)[1]
    detections = run(cascade.eval(), features, proposals)[0]
    if with_masks:
        plain.mask_roi_pool, plain.mask_head, plain.mask_predictor = mask
    wanted_losses = run(plain.train(), features, proposals, targets)[1]
    wanted = run(plain.eval(), features, proposals)[0]
    numbers = {name.removesuffix("_1"): loss.item() for name, loss in losses.items()}
    assert numbers == {name: loss.item() for name, loss in wanted_losses.items()}
    assert numbers["loss_box_reg"] > 0
    for came, plain_one in zip(detections, wanted, strict=True):
        assert len(came["boxes"]) > 5
        assert came.keys() == plain_one.keys()
        for name, value in came.items():  # 1.2e-7 measured: the scores pass through a logarithm
            torch.testing.assert_close(value, plain_one[name], rtol=0, atol=5e-7, msg=name)


def test_each_stage_learns_from_the_boxes_of_the_one_before_at_its_own_iou(
    features: dict[str, Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [stage(0.5, 10.0), stage(0.6, 20.0), stage(0.7, 30.0)]
    cascade = CascadeRoIHeads(stages, (1.0, 0.5, 0.25), None).train()
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    for each in stages:
        select = each.select_training_samples

        def note(boxes: list[Tensor], truth: Any, select: Any = select) -> Any:
            found = select(boxes, truth)
            seen.append((found[0], found[2]))
            return found

        monkeypatch.setattr(each, "select_training_samples", note)
    run(cascade, features, proposals, targets)
    truth = targets[0]["boxes"]
    for (boxes, labels), iou in zip(seen, (0.5, 0.6, 0.7), strict=True):
        best = box_iou(boxes[0], truth).amax(1)
        assert torch.equal(labels[0] > 0, best >= iou)
    with torch.no_grad():
        refined = refine(stages[0], predict(stages[0], features, seen[0][0], SIZES)[1], seen[0][0], SIZES)
    given = seen[1][0][0]
    assert all(any(torch.equal(box, other) for other in (*refined[0], *truth)) for box in given)


def test_the_losses_of_a_stage_are_weighted(
    features: dict[str, Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    stages, mask = [stage(), stage()], mask_parts()
    light, heavy = (
        run(CascadeRoIHeads(stages, (1.0, weight), mask).train(), features, proposals, targets)[1] for weight in (0.5, 1.0)
    )
    for name in light:
        factor = 0.5 if name.endswith("_2") else 1.0
        torch.testing.assert_close(light[name], heavy[name] * factor, rtol=1e-6, atol=0)


def test_the_scores_are_the_mean_of_all_stages_and_the_boxes_the_last_stages(
    features: dict[str, Tensor], proposals: list[Tensor]
) -> None:
    first, second = stage(), stage(box_weight=20.0)
    for each in (first, second):  # keep every box and class
        each.score_thresh, each.nms_thresh, each.detections_per_img = 0.0, 1.0, 1000
    cascade = CascadeRoIHeads([first, second], (1.0, 1.0), None).eval()
    with torch.no_grad():
        found = cascade(features, proposals, SIZES)[0][0]
        logits, deltas = predict(first, features, proposals, SIZES)
        between = refine(first, deltas, proposals, SIZES)
        again, deltas = predict(second, features, between, SIZES)
        boxes = refine(second, deltas, between, SIZES)[0]
        mean = (logits.softmax(1) + again.softmax(1))[:40, 1:] / 2
    wanted, order = mean.flatten().sort(descending=True)
    torch.testing.assert_close(found["scores"], wanted, rtol=0, atol=5e-7)
    torch.testing.assert_close(found["boxes"][:5], boxes[order[:5] // 2], rtol=0, atol=1e-4)


def test_boxes_pass_to_the_next_stage_within_their_image_and_without_a_gradient(features: dict[str, Tensor]) -> None:
    each, box = stage(box_weight=1.0), torch.tensor([[60.0, 30.0, 95.0, 63.0]])
    deltas = torch.tensor([[2.0, 3.0, 1.0, 1.0]], requires_grad=True).repeat(1, 3)
    refined = refine(each, deltas, [box, box[:0]], SIZES)
    assert [len(boxes) for boxes in refined] == [1, 0]
    assert not refined[0].requires_grad
    assert refined[0][0, 2:].tolist() == [96, 64]


def test_a_cascade_is_built_with_the_numbers_of_its_paper(make_detector: MakeDetector) -> None:
    heads: Any = make_detector("cascade_mask_rcnn").core.roi_heads
    matchers = [each.proposal_matcher for each in heads.stages]
    assert [(matcher.high_threshold, matcher.low_threshold) for matcher in matchers] == [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)]
    assert [each.box_coder.weights for each in heads.stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    assert heads.loss_weights == (1.0, 0.5, 0.25)
    assert len({id(each.box_head) for each in heads.stages}) == 3
    assert len({id(each.box_roi_pool) for each in heads.stages}) == 1


def run(heads: Any, features: dict[str, Tensor], proposals: list[Tensor], targets: Any = None) -> Any:
    torch.manual_seed(1)  # samples are drawn
    return heads(features, list(proposals), SIZES, targets)
