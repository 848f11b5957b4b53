"""COCO average precision of boxes and masks by faster-coco-eval, on any number of devices."""

# n detections of an image.

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import Tensor, distributed

from flatten_transformer.data.coco import CocoFile

IouType = Literal["bbox", "segm"]
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of COCO's twelve numbers, in their order


class AveragePrecision:
    """Accumulate detections and evaluate them against an annotation file, as COCO's own tool does.

    An image counts once, however often it was seen; unseen images do not count.

    Args:
        file: Ground truth.
        masks: Evaluate masks too.

    Attributes:
        per_class: ``box_ap`` and ``box_ap50``, and with masks ``mask_ap`` and ``mask_ap50``, of each class in 0 … 1, once
            computed; NaN for a class without objects.
    """

    def __init__(self, file: CocoFile, *, masks: bool) -> None:
        self.file = file
        self.iou_types: dict[IouType, str] = {"bbox": "box", "segm": "mask"} if masks else {"bbox": "box"}
        self.results: dict[int, list[dict[str, Any]]] = {}
        self.per_class: dict[str, list[float]] = {}
        self.support: list[int] = []  # objects of each class on the images that were seen, crowds left out

    def update(self, image_ids: Sequence[int], detections: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the detections of some images.

        Args:
            image_ids: COCO ids of the images.
            detections: Detector output for each image.
        """
        for image_id, each in zip(image_ids, detections, strict=True):
            if image_id not in self.results:
                self.results[image_id] = coco_results(image_id, each, self.file.category_ids)

    def compute(self) -> dict[str, float]:
        """Return COCO's metrics in 0 … 1 by name, such as ``box_ap50``; -1 if there is no such object.

        All devices must call this together; all get the same values.
        """
        results = self._gather()
        numbers: dict[str, float] = {}
        for kind, name in self.iou_types.items():
            found = [entry for each in results.values() for entry in each]
            evaluation = _evaluate(self.file.truth, found, list(results), kind)
            numbers |= {f"{name}_{metric}": value for metric, value in zip(_NAMES, _means(evaluation), strict=True)}
            ap, ap50 = class_precision(evaluation, self.file.category_ids)
            self.per_class |= {f"{name}_ap": ap, f"{name}_ap50": ap50}
        self.support = self._count_objects(results)
        return numbers

    def _count_objects(self, images: Collection[int]) -> list[int]:
        entries = self.file.truth["annotations"]
        counts = Counter(each["category_id"] for each in entries if each["image_id"] in images and not each.get("iscrowd"))
        return [counts[category] for category in self.file.category_ids]

    def _gather(self) -> dict[int, list[dict[str, Any]]]:
        """Return the results of all devices, in an order independent of their number."""
        results = self.results
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, results)
            results = {image_id: entries for share in shares for image_id, entries in share.items()}
        return dict(sorted(results.items()))


def coco_results(image_id: int, detections: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the detections of an image to COCO's JSON-serialisable result format.

    Args:
        image_id: COCO id of the image.
        detections: ``boxes`` ``[n, 4]``, corners in pixels, ``labels`` ``[n]``, ``scores`` ``[n]``, and optionally
            ``masks`` ``[n, 1, height, width]``, probabilities, thresholded at 0.5.
        category_ids: COCO category id of each class.

    Example:
        >>> box = {"boxes": torch.tensor([[1.0, 2, 4, 8]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.5])}
        >>> coco_results(7, box, [90])
        [{'image_id': 7, 'category_id': 90, 'bbox': [1.0, 2.0, 3.0, 6.0], 'score': 0.5}]
    """
    boxes, scores = detections["boxes"].double().cpu(), detections["scores"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes.tolist(), detections["labels"].tolist(), scores.tolist(), strict=True)
    ]
    for result, mask in zip(results, detections.get("masks", ())):  # noqa: B905  # absent for box detectors
        encoded = rle.encode(np.asfortranarray((mask[0] > 0.5).cpu().numpy().astype(np.uint8)))
        result["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
    return results


def evaluate(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[int], kind: IouType
) -> list[float]:
    """Return COCO's average precision in 0 … 1: overall, at IoU 0.5 and 0.75, for small, medium and large objects.

    Args:
        truth: Content of an annotation file.
        results: Detections in COCO's format.
        image_ids: Images to evaluate.
        kind: Boxes or masks.
    """
    return _means(_evaluate(truth, results, image_ids, kind))


def class_precision(evaluation: COCOeval_faster, category_ids: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return COCO's average precision of each class, over IoU 0.5 to 0.95 and at 0.5; NaN for a class without objects.

    Args:
        evaluation: Evaluated and accumulated.
        category_ids: COCO category id of each class.
    """
    # IoU thresholds, recalls, categories, object sizes (the first: all), numbers of detections (the last: 100)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    places = [list(evaluation.params.catIds).index(category) for category in category_ids]
    of_class = np.where(precision > -1, precision, np.nan)[:, :, places]
    return of_class.mean((0, 1)).tolist(), of_class[0].mean(0).tolist()


def _means(evaluation: COCOeval_faster) -> list[float]:
    return [float(value) for value in evaluation.stats[: len(_NAMES)]]


def _evaluate(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[int], kind: IouType
) -> COCOeval_faster:
    images = set(image_ids)
    subset = {**truth, "images": [image for image in truth["images"] if image["id"] in images]}
    entries = [entry for entry in truth["annotations"] if entry["image_id"] in images]
    subset["annotations"] = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]  # 0 would mean "not found"
    reference = COCO(subset)
    # without boxes, so that masks are sized by their own area
    kept = [{key: value for key, value in result.items() if kind == "bbox" or key != "bbox"} for result in results]
    evaluation = COCOeval_faster(reference, reference.loadRes(kept), kind, print_function=lambda *_: None)
    evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
