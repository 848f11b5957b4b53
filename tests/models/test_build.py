from pathlib import Path

import pytest
import timm
import torch
from torch import nn

NAME = "flatten_pvt_v2_b0"
SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "img_size": 64}
LINK = "https://cloud.tsinghua.edu.cn/f/5d1f01532b104da28e7b/?dl=1"


class Configuration:
    """What the authors' training code pickles beside the weights."""


def fetched(model: nn.Module, path: Path) -> None:
    torch.save({"model": model.state_dict(), "config": Configuration()}, path)


def test_weights_come_from_the_authors_link_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model(NAME, **SMALL)
    fetches: list[str] = []

    def download(url: str, file: str) -> None:
        fetches.append(url)
        fetched(original, Path(file))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    x = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        model = timm.create_model(NAME, pretrained=True, **SMALL)
        assert torch.equal(model.eval()(x), original.eval()(x))
    assert fetches == [LINK]
    assert "state_dict" not in model.pretrained_cfg


def test_other_classes_and_channels_keep_the_rest_of_the_weights(tmp_path: Path) -> None:
    original = timm.create_model(NAME, **SMALL)
    fetched(original, tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1, **SMALL)
    name = "stages.1.blocks.0.attn.proj.weight"
    assert torch.equal(model.state_dict()[name], original.state_dict()[name])
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)


def test_without_a_network_the_link_and_the_way_round_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, file: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConnectionError, match=r"5d1f01532b104da28e7b/\?dl=1 \(no route to host\).*'file': path") as failure:
        timm.create_model(NAME, pretrained=True)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["flatten_deit_tiny_patch16_224", "flatten_pvt_small", "flatten_cswin_base_384"])
def test_where_nothing_was_published_what_exists_is_listed(name: str) -> None:
    with pytest.raises(ValueError, match=f"no weights were published for {name}") as failure:
        timm.create_model(name, pretrained=True)
    for published in timm.list_pretrained("flatten_*"):
        assert published in str(failure.value)


def test_seven_models_have_published_weights() -> None:
    assert len(timm.list_pretrained("flatten_*")) == 7


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "nothing.pth")})


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    fetched(timm.create_model(NAME, **SMALL), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not of FlattenPyramidVisionTransformerV2 in this size"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "x.pth")})
