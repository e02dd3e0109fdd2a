"""How soon a language model from random weights learns to write where objects are, if its features tell it.

    python benchmarks/perfect_features.py [answers=125] [key=value of bbu_train ...]

`experiment=synthetic_small` without a head, and in place of what the vision tower makes of an image token stands what
the annotations say of its four patches: of the smallest object over each its description and how far its edges are. So
what is not learned here no vision tower is to blame for. Pictures are not read, only their sizes. Else it is the
program's own loop. Prints `eval/loss/student_lm` at each evaluation, and of the answers that the last weights write to
`answers` pictures of validation: F1, AP50, and how many are malformed.
"""

import json
import math
import sys
import time
from pathlib import Path
from types import MethodType

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from bbu_train import train
from bbu_train.conversation import patches
from bbu_train.evaluate.measure import twice_the_longest_answer
from bbu_train.evaluate.split import load
from bbu_train.metrics.detection import detection_metrics
from bbu_train.model import qwen25vl
from bbu_train.predict.run import TrainedRun
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Sample

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
LOSS = "eval/loss/student_lm"
DESCRIBED = 32  # numbers that say an object's description
NEAR = 56.0  # pixels over which the distance to an edge is told finely
OWN = (
    "experiment=synthetic_small",
    "head=none",
    "model.network._target_=perfect_features.build",
    "+optimizer.groups.seeing={pattern: '^seeing', submodule: seeing, lr: 2.0e-3}",
    "tracker=jsonl",
)


class Seeing(nn.Module):
    """What an image token is, from the objects over its patches."""

    def __init__(self, width: int, vocabulary_size: int, merge: int, patch: int):
        super().__init__()
        self.merge, self.patch = merge, patch
        self.word = nn.Embedding(vocabulary_size, DESCRIBED)
        self.told = nn.Sequential(nn.Linear(merge**2 * (DESCRIBED + 5), width), nn.GELU(), nn.Linear(width, width))

    def forward(self, batch: Batch) -> Tensor:
        """In the order of merged features, as the vision tower gives them."""
        if not len(batch.boxes_cxcywh):
            return self.told(self.told[0].weight.new_zeros(len(batch.image_positions), self.told[0].in_features))
        index, pixels = batch.memory, self.merge * self.patch
        sizes = index.vision_sizes[:, None]  # of an image token in its picture
        steps = (torch.arange(self.merge, device=sizes.device) + 0.5) / self.merge - 0.5
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
        centers = index.vision_centers[:, :, None] + offsets * sizes[:, :, None]
        patch = index.vision_sizes / self.merge
        low, high = (batch.boxes_cxcywh[:, :2] + sign / 2 * batch.boxes_cxcywh[:, 2:] for sign in (-1, 1))
        own = batch.sample_of_object == torch.arange(len(sizes), device=sizes.device)[:, None]
        reach = patch[:, None, None, None] / 2
        points = centers[:, :, :, None]
        over = ((points > low - reach) & (points < high + reach)).all(-1) & own[:, None, None]
        area = batch.boxes_cxcywh[:, 2] * batch.boxes_cxcywh[:, 3]
        smallest = torch.where(over, area, math.inf).argmin(-1)
        edges = (
            torch.cat([centers - low[smallest], high[smallest] - centers], dim=-1) / sizes.repeat(1, 1, 2)[:, :, None]
        )
        edges = torch.tanh(edges * pixels / NEAR)
        said = torch.cat(
            [self._descriptions(batch.caption_ids)[smallest], edges, torch.ones_like(edges[..., :1])], dim=-1
        )
        said = (said * over.any(-1, keepdim=True)).flatten(2)
        mask = index.vision_mask
        merged = said.new_zeros(len(batch.image_positions), said.shape[-1])
        return self.told(merged.index_put((index.vision[mask],), said[mask]))

    def _descriptions(self, caption_ids: Tensor) -> Tensor:
        is_word = (caption_ids >= 0)[..., None]
        return (self.word(caption_ids.clamp(min=0)) * is_word).sum(1) / is_word.sum(1)


def build(**arguments) -> qwen25vl.GroundingModel:
    """The project's model, which sees by `Seeing`; its vision tower stays as it is."""
    model = qwen25vl.build(**arguments)
    config, embed = model.backbone.config, model.backbone.get_input_embeddings()
    vision = config.vision_config
    shape = config.text_config.hidden_size, config.text_config.vocab_size, vision.spatial_merge_size, vision.patch_size
    model.seeing = Seeing(*shape).to(embed.weight.device)
    model.encode_images = MethodType(lambda self, batch: self.seeing(batch), model)
    return model


def unread(picture, picture_format) -> Tensor:
    """In place of a picture's patches: as many rows, without pixels."""
    width, height = patches.resized_size(picture, picture_format)
    return torch.zeros(width * height // picture_format.patch_size**2, 1, dtype=torch.uint8)


def written(folder: Path, number: int) -> tuple[dict[str, float], float]:
    """Scores of the answers to the first pictures of validation by the last checkpoint, and how many are malformed."""
    run = TrainedRun(str(folder), "last", "generated", num_teachers=0)
    data, samples = load(run.cfg, "validation")
    samples = [Sample(each.id, each.student, ()) for each in samples[:number]]
    builder = run.builder()
    predictor = run.predictor(twice_the_longest_answer(builder, data.train), builder.max_caption_tokens(data.train))
    prompts = predictor.prompts(samples, len(samples), run.cfg.num_workers)
    answers = [one.generated for some, batch in prompts for one in predictor(some, batch)]
    scores = detection_metrics([each.student for each in samples], [answer.prediction for answer in answers])
    return scores, sum(answer.is_malformed for answer in answers) / len(answers)


def main() -> None:
    mine = [word for word in sys.argv[1:] if word.startswith("answers=")]
    own = OmegaConf.merge({"answers": 125}, OmegaConf.from_cli(mine))
    place = [f"outputs={OUTPUTS}", "sweep=perfect_features", f"run={time.time_ns()}"]
    given = [word for word in sys.argv[1:] if word not in mine]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[*OWN, *place, *given])
    patches.read_patches = unread
    train.train(cfg)
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    print(" ".join(given), *(f"{row['step']}: {row[LOSS]:.3f}" for row in rows if LOSS in row), sep="\n", flush=True)
    scores, malformed = written(Path(cfg.folder), own.answers)
    print(f"F1 {scores['f1']:.3f}, AP50 {scores['ap50']:.3f}, malformed {malformed:.0%} of {own.answers}")


if __name__ == "__main__":
    main()
