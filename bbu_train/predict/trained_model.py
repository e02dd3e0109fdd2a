"""`bbu_train.load`: a trained model as a Python object that finds and describes the objects in pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from hydra.errors import InstantiationException
from PIL import Image

from bbu_train.cli.main import cause_of
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.images.colors import ClassColors
from bbu_train.images.files import UnreadablePicture
from bbu_train.predict import MAX_NEW_TOKENS
from bbu_train.predict import python_arguments as arguments
from bbu_train.predict.detections import ImageDetections, generated_objects, objects_of_head, on_disk
from bbu_train.predict.exported_run import open_run
from bbu_train.predict.pictures import build_samples
from bbu_train.predict.python_arguments import Source
from bbu_train.predict.routes import PicturePredictions
from bbu_train.predict.trained_run import ROUTES, TrainedRun
from bbu_train.runs import folder as run_folder


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
        for result in model.predict(["a.jpg", "b.jpg"]):
            print(result.image, result.objects)

    run         the folder of the run, wherever it lies now, or one that `python -m bbu_train.export` wrote
    checkpoint  the one that was best in validation, the last one, or that of a step; if none was evaluated, a warning
                says that the last one is the best
    route       "generated" for a run without a trained head
    device      "cpu", "cuda" or "cuda:1"; None: a GPU if there is one
    data_root   the folder of the run's data, if it lies elsewhere now; only `teachers` need it

    The weights are those that validation scored: the moving average, if the run keeps one. Predictions equal those of
    `python -m bbu_train.predict`. Raises InputError if there is no such run or checkpoint, if a file is damaged, and if
    the run has no trained head although `route` needs it.
    """
    checkpoint = arguments.plain(checkpoint)
    problems = arguments.path_problems("run", run) + arguments.checkpoint_problems(checkpoint)
    problems += arguments.choice_problems("route", route, ROUTES)
    arguments.refuse(problems + ([] if data_root is None else arguments.path_problems("data_root", data_root)))
    with _plain_errors():
        trained_run = open_run(run_folder.on_disk(run), checkpoint, route, arguments.device_of(device))
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
    ) -> list[ImageDetections]:
        """Return what the head finds in each picture, in their order.

        images       files (str or Path) and PIL images, one, or an iterable of several; also a folder or a pattern such
                     as "new/**/*.jpg", whose pictures come sorted
        threshold    the lowest score of an object, 0 to 1; None: `self.threshold`
        teachers     example pictures with answers before each picture, drawn from the run's training pictures
        batch_size   pictures at a time; None: the run's eval_batch_size
        num_workers  processes that read pictures in advance

        Boxes are in pixels of the upright picture: turned as its EXIF orientation says. Raises InputError that names
        every picture that cannot be read.
        """
        return self._find("head", images, threshold, teachers, MAX_NEW_TOKENS, batch_size, num_workers)

    def generate(
        self,
        images: Source | Iterable[Source],
        *,
        teachers: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int | None = None,
        num_workers: int = 0,
    ) -> list[ImageDetections]:
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
    ) -> list[ImageDetections]:
        batch_size = self._run.cfg.eval_batch_size if batch_size is None else batch_size
        minima = {"teachers": 0, "max_new_tokens": 1, "batch_size": 1, "num_workers": 0}
        counts = map(arguments.plain, (teachers, max_new_tokens, batch_size, num_workers))
        values = dict(zip(minima, counts, strict=True))
        threshold = arguments.plain(threshold)
        arguments.refuse(arguments.threshold_problems(threshold) + arguments.count_problems(values, minima))
        if route not in self._predictor.routes:
            raise InputError(f'The model was loaded for its other route. Load it with route="{route}" or "both".')
        names, sources = zip(*arguments.find_sources(images), strict=True)
        predictor = replace(self._predictor, routes=(route,), max_new_tokens=values["max_new_tokens"])
        num_teachers = values["teachers"]
        with _plain_errors(), on_disk(sources, names) as paths, _current(predictor.device):
            data = self._data_for(num_teachers)
            samples = build_samples(paths, self._run.picture_format, data, num_teachers, names)
            prompts = predictor.prompts(samples, values["batch_size"], values["num_workers"])
            predictions = [each for group, batch in prompts for each in predictor(group, batch)]
        lowest = self.threshold if threshold is None else threshold
        return [self._detections(*each, lowest) for each in zip(sources, predictions, strict=True)]

    def _data_for(self, num_teachers: int) -> Splits | None:
        """Return the run's data, which is read when teachers are first asked for."""
        if num_teachers and self._data is None:
            self._data = self._run.load_data(should_show_truth=False, num_teachers=num_teachers)
        return self._data if num_teachers else None

    def _detections(
        self, source: Path | Image.Image, predictions: PicturePredictions, threshold: float
    ) -> ImageDetections:
        size = predictions.sample.student.width, predictions.sample.student.height
        if predictions.head is not None:
            return ImageDetections(
                source, *size, objects_of_head(predictions.head, threshold), threshold, colors=self._colors
            )
        answer = predictions.generated
        assert answer is not None
        objects = generated_objects(answer.prediction)
        return ImageDetections(source, *size, objects, 0.0, answer.text, answer.is_malformed, self._colors)


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
