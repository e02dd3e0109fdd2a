"""`bbu_train.load`: a trained model as a Python object that finds and describes the objects in pictures."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from hydra.errors import InstantiationException
from PIL import Image

from bbu_train.cli import arguments
from bbu_train.cli.main import cause_of
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, all_problems
from bbu_train.images.colors import ClassColors
from bbu_train.images.files import UnreadablePicture
from bbu_train.ops.numbers import is_share
from bbu_train.predict import MAX_NEW_TOKENS
from bbu_train.predict.exported_run import open_run
from bbu_train.predict.found import Found, generated_objects, objects_of_head, on_disk
from bbu_train.predict.pictures import build_samples, find_pictures
from bbu_train.predict.routes import PicturePredictions
from bbu_train.predict.trained_run import ROUTES, TrainedRun
from bbu_train.runs import folder as run_folder
from bbu_train.runtime.file_names import printable

Source = str | Path | Image.Image
"""A picture: its file, or the image itself. A folder or a pattern stands for its pictures."""


def load(
    run: str | Path,
    *,
    checkpoint: Literal["best", "last"] | int = "best",
    route: Literal["both", "head", "generated"] = "both",
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
) -> "TrainedModel":
    """Load the model that a run trained.

        import bbu_train

        model = bbu_train.load("outputs/default/20260101-120000-abcdef01")
        for found in model.predict(["a.jpg", "b.jpg"]):
            print(found.image, found.objects)

    run         the folder of the run, wherever it lies now, or one that `python -m bbu_train.export` wrote
    checkpoint  the one that was best in validation, the last one, or that of a step
    route       "generated" for a run without a trained head
    device      "cpu", "cuda" or "cuda:1"; None: a GPU if there is one
    data_root   the folder of the run's data, if it lies elsewhere now; only `teachers` need it

    The weights are those that validation scored: the moving average, if the run keeps one. Predictions equal those of
    `python -m bbu_train.predict`. Raises InputError if there is no such run or checkpoint, if a file is damaged, and if
    the run has no trained head although `route` needs it.
    """
    _refuse(arguments.wrong_checkpoint(checkpoint) + arguments.wrong_choices({"route": route}, {"route": [*ROUTES]}))
    with _plain_errors():
        trained_run = open_run(run_folder.on_disk(run), checkpoint, route, num_teachers=0, device=_device(device))
        trained_run.take_data_from(None if data_root is None else str(data_root))
        return TrainedModel(trained_run)


class TrainedModel:
    """A trained model, on its device; `load` returns it."""

    def __init__(self, run: TrainedRun) -> None:
        self._run = run
        self._data: Splits | None = None
        with _current(run.device):
            self._predictor = run.load_predictor(MAX_NEW_TOKENS)
        self._colors = ClassColors(run_folder.classes(run.cfg.folder))

    def __repr__(self) -> str:
        return f"TrainedModel({str(self._run.saved.folder)!r}, device={str(self._run.device)!r})"

    @property
    def threshold(self) -> float:
        """The score at which the head's boxes had the best F1 in validation; 0.5 if that was not measured."""
        return self._run.threshold

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        threshold: float | None = None,
        teachers: int = 0,
        batch_size: int | None = None,
        num_workers: int = 0,
    ) -> list[Found]:
        """Return what the head finds in each picture, in their order.

        images       files and images in memory, one or several; also a folder or a pattern such as "new/**/*.jpg",
                     whose pictures come sorted
        threshold    the lowest score of an object, 0 to 1; None: `self.threshold`
        teachers     example pictures with answers before each picture, drawn from the run's training pictures
        batch_size   pictures at a time; None: the run's eval_batch_size
        num_workers  processes that read pictures in advance

        Boxes are in pixels of the upright picture: turned as its EXIF orientation says. Raises InputError that names
        every picture that cannot be read.
        """
        if threshold is not None and not is_share(threshold):
            raise InputError(f"threshold={threshold}: threshold is a number from 0 to 1.")
        return self._find("head", images, threshold, teachers, MAX_NEW_TOKENS, batch_size, num_workers)

    def generate(
        self,
        images: Source | Iterable[Source],
        *,
        teachers: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int | None = None,
        num_workers: int = 0,
    ) -> list[Found]:
        """Return what the language model finds in each picture: all objects of its answer, and the answer as text.

        An answer is cut off after `max_new_tokens`; an object takes about 28. For the rest see `predict`.
        """
        return self._find("generated", images, 0.0, teachers, max_new_tokens, batch_size, num_workers)

    def _find(
        self,
        route: str,
        images: Source | Iterable[Source],
        threshold: float | None,
        teachers: int,
        max_new_tokens: int,
        batch_size: int | None,
        num_workers: int,
    ) -> list[Found]:
        batch_size = self._run.cfg.eval_batch_size if batch_size is None else batch_size
        minima = {"teachers": 0, "max_new_tokens": 1, "batch_size": 1, "num_workers": 0}
        values = dict(zip(minima, (teachers, max_new_tokens, batch_size, num_workers), strict=True))
        _refuse(arguments.wrong_counts(values, minima))
        if route not in self._predictor.routes:
            raise InputError(f'The model was loaded for its other route. Load it with route="{route}" or "both".')
        sources = _find_sources(images)
        names = [printable(str(each)) if isinstance(each, Path) else f"images[{i}]" for i, each in enumerate(sources)]
        predictor = replace(self._predictor, routes=(route,), max_new_tokens=max_new_tokens)
        with _plain_errors(), on_disk(sources) as paths, _current(predictor.device):
            samples = build_samples(paths, self._run.picture_format, self._data_for(teachers), teachers, names)
            prompts = predictor.prompts(samples, batch_size, num_workers)
            predictions = [each for group, batch in prompts for each in predictor(group, batch)]
        lowest = self.threshold if threshold is None else threshold
        return [self._found(*each, lowest) for each in zip(sources, predictions, strict=True)]

    def _data_for(self, num_teachers: int) -> Splits | None:
        """Return the run's data, which is read when teachers are first asked for."""
        if num_teachers and self._data is None:
            self._run.cfg.data.teachers.num_validation_teachers = num_teachers
            self._data = self._run.load_data(should_show_truth=False)
        return self._data if num_teachers else None

    def _found(self, source: Path | Image.Image, predictions: PicturePredictions, threshold: float) -> Found:
        size = predictions.sample.student.width, predictions.sample.student.height
        if predictions.head is not None:
            return Found(source, *size, objects_of_head(predictions.head, threshold), threshold, colors=self._colors)
        answer = predictions.generated
        assert answer is not None
        objects = generated_objects(answer.prediction)
        return Found(source, *size, objects, 0.0, answer.text, answer.is_malformed, self._colors)


def _find_sources(images: Source | Iterable[Source]) -> list[Path | Image.Image]:
    """Return the files and the images in memory that `images` names. Raises InputError that lists what names none."""
    is_one = isinstance(images, Source) or hasattr(images, "__array__") or not isinstance(images, Iterable)
    sources: list[Path | Image.Image] = []
    problems = []
    for index, each in enumerate([images] if is_one else images):
        if isinstance(each, Image.Image):
            sources.append(each)
        elif isinstance(each, str | Path):
            try:
                sources += find_pictures(str(each))
            except InputError as error:
                problems.append(str(error))
        else:
            problems.append(f"images[{index}] is of type {type(each).__name__}: expected a path or a PIL image.")
    _refuse(problems)
    return sources


def _refuse(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise all_problems("The arguments", problems, "See help(bbu_train.load).")


def _device(device: str | torch.device | None) -> torch.device | None:
    """Return `device` as torch knows it. Raises InputError if this machine has none of that name."""
    if device is None:
        return None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(["cuda"] if num_gpus else []), *(f"cuda:{index}" for index in range(num_gpus))]
    if str(device) not in devices:
        raise InputError(f"device={device}: this machine has {', '.join(devices)}.")
    return torch.device(device)


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Let kernels run on `device`, also if it is not the first GPU."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise InputError for what the user has to mend, also where `instantiate` wraps it."""
    try:
        yield
    except (InstantiationException, UnreadablePicture) as error:
        cause = cause_of(error)
        if isinstance(cause, InputError | UnreadablePicture):
            raise InputError(str(cause)) from error
        raise
