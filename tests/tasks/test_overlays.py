import numpy as np
import torch
from PIL import Image

from flatten_transformer.tasks.overlays import colour_of, draw_objects
from flatten_transformer.utils.picture_style import COLOURS

BOX = torch.tensor([[20.0, 30, 80, 70]])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_frame_and_mask_bear_the_colour_of_the_class() -> None:
    mask = torch.zeros(1, 100, 120, dtype=torch.bool)
    mask[:, 40:60, 40:60] = True
    drawn = pixels(draw_objects(Image.new("RGB", (120, 100), "black"), BOX, [1], [""], mask))
    assert tuple(drawn[50, 20]) == colour_of(1)  # the left edge
    np.testing.assert_allclose(drawn[50, 50], 0.45 * np.array(colour_of(1)), atol=1)  # within the mask
    assert not drawn[65, 65].any()  # within the box, outside the mask


def test_captions_stay_within_the_image() -> None:
    corner = torch.tensor([[100.0, 0, 119, 20], [0.0, 90, 10, 99]])
    drawn = pixels(draw_objects(Image.new("RGB", (120, 100), "black"), corner, [0, 2], ["a long caption", "b"]))
    assert (drawn == colour_of(0)).all(2)[:14].sum() > 200  # its plate, moved left and down
    assert (drawn == colour_of(2)).all(2)[70:90].sum() > 50


def test_neighbouring_classes_differ_for_colour_blind_eyes_too() -> None:
    # the cones of a deuteranope see red and green alike: project them out (Viénot et al. 1999)
    blind = torch.tensor([[0.293, 0.707, 0.0], [0.293, 0.707, 0.0], [-0.022, 0.022, 1.0]])
    seen = torch.tensor(COLOURS, dtype=torch.float32) @ blind.T
    for first, second in zip(seen, seen.roll(-1, 0), strict=True):
        assert float((first - second).norm()) > 50


def test_an_image_is_not_changed_by_drawing_on_it() -> None:
    image = Image.new("L", (120, 100), 7)
    draw_objects(image, BOX, [0], ["x"])
    assert set(image.tobytes()) == {7}
