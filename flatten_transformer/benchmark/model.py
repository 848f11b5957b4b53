"""FLatten models raced against their softmax namesakes and against themselves on the released form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.benchmark import race
from flatten_transformer.benchmark.contenders import OURS
from flatten_transformer.benchmark.race import FORWARD, Case, Entrant, Plan, race_cases, relative_error
from flatten_transformer.benchmark.released import use_released_form
from flatten_transformer.benchmark.report import RELEASED, SOFTMAX, Point
from flatten_transformer.benchmark.timing import Run
from flatten_transformer.linearize.build import create_model
from flatten_transformer.utils.suggest import did_you_mean

TOLERANCE = 1e-4  # ‖ours - released‖ / ‖released‖ of scores and gradients in float32, 2 images
_CLASSES = 1000


class Namesake(NamedTuple):
    """The softmax counterpart of a FLatten model."""

    name: str
    options: Mapping[str, Any] = {}


# timm's model if it has one, else the same model with softmax attention in every stage.
NAMESAKES = {
    **{f"flatten_deit_{size}_patch16_224": Namesake(f"deit_{size}_patch16_224") for size in ("tiny", "small", "base")},
    **{f"flatten_swin_{size}_patch4_224": Namesake(f"swin_{size}_patch4_window7_224") for size in ("tiny", "small", "base")},
    "flatten_swin_base_patch4_384": Namesake("swin_base_patch4_window12_384"),
    **{f"flatten_pvt_v2_b{size}": Namesake(f"pvt_v2_b{size}") for size in range(6)},
    **{
        name: Namesake(name, {"attn_types": "SSSS", "sr_ratios": (8, 4, 2, 1)})
        for name in (f"flatten_pvt_{size}" for size in ("tiny", "small", "medium", "large"))
    },
    **{
        name: Namesake(name, {"attn_types": "SSSS"})
        for name in ("flatten_cswin_tiny_224", "flatten_cswin_small_224", "flatten_cswin_base_224", "flatten_cswin_base_384")
    },
}
MODELS = (
    "flatten_swin_tiny_patch4_224",
    "flatten_pvt_tiny",
    "flatten_pvt_v2_b0",
    "flatten_pvt_v2_b2",
    "flatten_deit_tiny_patch16_224",
)


class Images(NamedTuple):
    """A model and its batches of images of one size."""

    model: str
    batch: int
    image_px: int

    @property
    def name(self) -> str:
        """Name in reports."""
        return self.model

    def sizes(self) -> dict[str, int]:
        """Return all sizes, by their names in reports."""
        return {"batch": self.batch, "image_px": self.image_px}


def make_cases(
    models: Sequence[str], sizes_px: Sequence[int], batch: int, dtypes: Sequence[torch.dtype], directions: Sequence[str]
) -> list[Case[Images]]:
    """Return every combination.

    Raises:
        ValueError: If a model has no namesake, or a size is not a multiple of 32.
    """
    for model in models:
        if model not in NAMESAKES:
            raise ValueError(f"no FLatten model {model!r} to benchmark: {did_you_mean(model, NAMESAKES)}")
    for size_px in sizes_px:
        if size_px < 32 or size_px % 32:
            raise ValueError(f"image sizes must be multiples of 32, such as 224 or 512, got {size_px}")
    subjects = [Images(model, batch, size_px) for model, size_px in product(models, sizes_px)]
    return [case for subject in subjects for case in race.make_cases([subject], dtypes, directions)]


def contender_names(*, compiled: bool, graphed: bool = False) -> list[str]:
    """Return the names of all contenders: ours, the same model on the released form, and the softmax namesake.

    ``compiled`` adds all three under torch.compile, ``graphed`` as CUDA graphs.

    Example:
        >>> contender_names(compiled=True)
        ['ours', 'released', 'softmax', 'ours-compiled', 'released-compiled', 'softmax-compiled']
    """
    eager = [OURS, RELEASED, SOFTMAX]
    ways = ["compiled"] * compiled + ["graphed"] * graphed
    return [*eager, *(f"{name}-{way}" for way in ways for name in eager)]


def measure(plan: Plan[Images]) -> Iterator[list[Point]]:
    """Race through all cases but those that are done; yield the points of each."""
    return race_cases(plan, partial(_entrants, plan), [RELEASED, SOFTMAX])


def _entrants(plan: Plan[Images], case: Case[Images]) -> Iterator[Entrant]:
    for name in contender_names(compiled=plan.compiled, graphed=plan.graphed):
        build = partial(_build_run, name, plan.device, case)
        if name.startswith(OURS):
            yield Entrant(name, build, partial(_error_to_released, plan.device, case), TOLERANCE)
        else:
            yield Entrant(name, build)


def build_model(name: str, image_px: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model of timm's registry for one image size, without stochastic depth.

    Linear stages of FLatten-Swin attend to whole maps, as the published models do at 224 and 384.

    Example:
        >>> build_model("flatten_pvt_v2_b0", 64)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    sized: dict[str, Any] = {} if name.startswith("pvt_v2") else {"img_size": image_px}
    if name.startswith("flatten_swin"):
        sized |= {"window_size": image_px // 4, "softmax_window_size": 12 if "384" in name else 7}
    return create_model(name, num_classes=_CLASSES, drop_path_rate=0.0, **sized, **(options or {}))


def build_flatten(images: Images) -> nn.Module:
    """Build the FLatten model of a race as if trained: zero-initialised parameters get noise, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(images.model, images.image_px)
        for name, parameter in model.named_parameters():
            if name.endswith(("positional_encoding", "scale")):
                nn.init.normal_(parameter, std=0.2)
    return model


def _build_run(name: str, device: torch.device, case: Case[Images]) -> Run:
    kind, _, how = name.partition("-")
    if kind == SOFTMAX:
        namesake = NAMESAKES[case.subject.model]
        model = build_model(namesake.name, case.subject.image_px, namesake.options)
    else:
        model = build_flatten(case.subject)
    if kind == RELEASED:
        use_released_form(model)
    model = model.to(device, case.dtype).train(case.direction != FORWARD)
    call: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if how == "compiled" else model
    run = make_run(model, call, draw_images(case.subject, case.dtype, device), case.direction)
    return _graphed(run) if how == "graphed" else run


def _graphed(run: Run) -> Run:
    """Return a run that replays one call, recorded as a CUDA graph, always on the same images."""
    with run.setting():
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # keep one-off work out of the graph
            for _ in range(2):
                run.step(0)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run.step(0)

    def replay(turn: int, _alive: Run = run) -> Sequence[Tensor]:  # the graph reads memory of the run's model
        graph.replay()
        return results

    return Run(replay, run.setting)


def draw_images(images: Images, dtype: torch.dtype, device: torch.device, in_chans: int = 3) -> Tensor:
    """Draw two batches of images, ``[2, B, in_chans, size, size]``, used in turn."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, images.batch, in_chans, images.image_px, images.image_px)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def make_run(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor, direction: str) -> Run:
    """Return the timed call: logits of a batch, or a training step without the optimizer.

    Args:
        model: Its parameters get gradients.
        call: The model, or the model compiled.
        images: ``[sets, B, 3, size, size]``.
        direction: ``"forward"`` or ``"forward+backward"``.
    """
    if direction == FORWARD:
        return Run(lambda turn: (call(images[turn % len(images)]),), torch.no_grad)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    labels = torch.arange(images.shape[1], device=images.device) % _CLASSES

    def step(turn: int) -> tuple[Tensor, ...]:
        scores = call(images[turn % len(images)])
        return (scores.detach(), *torch.autograd.grad(F.cross_entropy(scores, labels), parameters))

    return Run(step)


def _error_to_released(device: torch.device, case: Case[Images], _: Run) -> float:
    """Return the relative error of logits and gradients against the same weights on the released form, for two images.

    In float32 whatever the dtype of the race: in half precision a whole network rounds by more than the tolerance.
    """
    model = build_flatten(case.subject).to(device).train(case.direction != FORWARD)
    images = draw_images(case.subject._replace(batch=2), torch.float32, device)
    results = []
    for each in (model, use_released_form(copy.deepcopy(model))):
        run = make_run(each, each, images, case.direction)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), run.setting():
            results.append(run.step(0))
    return relative_error(*results)
