"""FLatten-PVTv2: timm's model where all is softmax."""

import pytest
import timm
import torch

from tests.models.families import FAMILIES, small


@pytest.mark.parametrize("size", [(64, 64), (75, 107)])
def test_the_softmax_twin_is_timms_model(size: tuple[int, int]) -> None:
    twin = small("pvt_v2", attn_types="SSSS")
    host = timm.create_model("pvt_v2_b0", num_classes=5, **FAMILIES["pvt_v2"].sizes).eval()
    host.load_state_dict(twin.state_dict())
    images = torch.randn(2, 3, *size)
    assert torch.equal(twin(images), host(images))
