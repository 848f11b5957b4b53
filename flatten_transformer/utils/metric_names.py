"""Names of metrics as people say them."""

from __future__ import annotations

_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_WORDS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "classifier": "class",
    "f1": "F1",
    "iou": "IoU",
    "lr": "learning rate",
    "macro": "mean",
    "macc": "mAcc",
    "miou": "mIoU",
    "reg": "regression",
    "rpn": "RPN",
    "top5": "top-5 accuracy",
}


def metric_name(key: str) -> str:
    """Return the name of a logged metric for people; words it does not know stay as they are.

    Args:
        key: Name that it is logged under, such as ``"val/box_ap50"``.

    Example:
        >>> [metric_name(key) for key in ("val/accuracy", "val/box_ap50", "train/rpn_box_reg_loss")]
        ['validation accuracy', 'validation box AP50', 'training RPN box regression loss']
    """
    split, _, name = key.rpartition("/")
    words = [_SPLITS.get(split, split), *(_WORDS.get(word, word) for word in name.split("_"))]
    return " ".join(word for word in words if word)
