"""COCO's average precision of boxes and masks, by faster-coco-eval, over any number of devices."""

# n detections of an image.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import Tensor, distributed

from flatten_transformer.data.coco import CocoFile

IouType = Literal["bbox", "segm"]
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of COCO's twelve numbers, in their order


class AveragePrecision:
    """Collects detections and compares them with an annotation file, as COCO's own tool does.

    An image counts once, however often it was seen; images that were not seen do not count.

    Args:
        file: The truth.
        masks: Judge masks too.
    """

    def __init__(self, file: CocoFile, *, masks: bool) -> None:
        self.file = file
        self.kinds: dict[IouType, str] = {"bbox": "box", "segm": "mask"} if masks else {"bbox": "box"}
        self.found: dict[int, list[dict[str, Any]]] = {}

    def update(self, image_ids: Sequence[int], detections: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the detections of some images.

        Args:
            image_ids: COCO's ids of the images.
            detections: Of each image, as a detector returns them.
        """
        for image_id, each in zip(image_ids, detections, strict=True):
            if image_id not in self.found:
                self.found[image_id] = coco_results(image_id, each, self.file.category_ids)

    def compute(self) -> dict[str, float]:
        """Return COCO's numbers in 0 … 1 by name, such as ``box_ap50``; -1 where there is no object to find.

        With many devices, all must call this at the same time; all get the same numbers.
        """
        found = self._gathered()
        numbers: dict[str, float] = {}
        for kind, name in self.kinds.items():
            values = evaluate(self.file.truth, [result for each in found.values() for result in each], list(found), kind)
            numbers |= {f"{name}_{metric}": value for metric, value in zip(_NAMES, values, strict=True)}
        return numbers

    def _gathered(self) -> dict[int, list[dict[str, Any]]]:
        """Return what all devices found, in an order that does not depend on how many there are."""
        found = self.found
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, found)
            found = {image_id: results for share in shares for image_id, results in share.items()}
        return dict(sorted(found.items()))


def coco_results(image_id: int, detections: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the detections of an image in COCO's format for results, which can be written as JSON.

    Args:
        image_id: COCO's id of the image.
        detections: ``boxes`` ``[n, 4]``, corners in pixels, ``labels`` ``[n]``, ``scores`` ``[n]``, and, if any, ``masks``
            ``[n, 1, height, width]``, probabilities: what is above one half is mask.
        category_ids: COCO's id of each class.

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
    for result, mask in zip(results, detections.get("masks", ())):  # noqa: B905  # a detector of boxes has none
        encoded = rle.encode(np.asfortranarray((mask[0] > 0.5).cpu().numpy().astype(np.uint8)))
        result["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
    return results


def evaluate(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[int], kind: IouType
) -> list[float]:
    """Return COCO's average precision in 0 … 1, in all, at IoU 0.5 and 0.75, and of small, medium and large objects.

    Args:
        truth: Content of an annotation file.
        results: Detections in COCO's format.
        image_ids: Which images count.
        kind: Compare boxes or masks.
    """
    images = set(image_ids)
    shown = {**truth, "images": [image for image in truth["images"] if image["id"] in images]}
    entries = [entry for entry in truth["annotations"] if entry["image_id"] in images]
    shown["annotations"] = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]  # 0 would mean "not found"
    reference = COCO(shown)
    # without their boxes masks are judged by the area of their own
    kept = [{key: value for key, value in result.items() if kind == "bbox" or key != "bbox"} for result in results]
    evaluation = COCOeval_faster(reference, reference.loadRes(kept), kind, print_function=lambda *_: None)
    evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats[: len(_NAMES)]]
