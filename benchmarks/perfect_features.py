"""How soon a language model with random weights learns to generate boxes if its image features are perfect.

    python benchmarks/perfect_features.py [answers=125] [key=value of bbu_train ...]

Trains `experiment=synthetic_small` without a head, by the program's own loop. In place of the vision tower's features,
each image token gets features computed from the annotations: for each of its four patches, the description of the
smallest object there and the distances to that object's edges. A failure to learn is therefore no fault of the vision
tower. Pictures are not read, only their sizes.

Prints `eval/loss/student_lm` at each evaluation. Then scores the answers that the last checkpoint generates for the
first `answers` pictures of validation: F1, AP50, and the share of malformed answers. Runs on a GPU or a CPU.
"""

import json
import math
import sys
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from bbu_train import train
from bbu_train.conversation import patches
from bbu_train.evaluate.measure import default_max_new_tokens
from bbu_train.evaluate.split import load_split
from bbu_train.metrics.detection import detection_metrics
from bbu_train.model import qwen25vl
from bbu_train.predict.trained_run import TrainedRun
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Picture, PictureFormat, Sample

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
LOSS = "eval/loss/student_lm"
DESCRIPTION_WIDTH = 32  # channels of an object's description
DISTANCE_SCALE = 56.0  # pixels; distances to edges are squashed by tanh(distance / scale)
OVERRIDES = (
    "experiment=synthetic_small",
    "head=none",
    "model.network._target_=perfect_features.build",
    "+optimizer.groups.annotations={pattern: '^annotation_features', submodule: annotation_features, lr: 2.0e-3}",
    "tracker=jsonl",
)


class AnnotationFeatures(nn.Module):
    """Features of image tokens, from the objects that cover their patches."""

    def __init__(self, width: int, vocabulary_size: int, merge_size: int, patch_size: int):
        super().__init__()
        self.merge_size, self.patch_size = merge_size, patch_size
        self.word = nn.Embedding(vocabulary_size, DESCRIPTION_WIDTH)
        num_inputs = merge_size**2 * (DESCRIPTION_WIDTH + 5)  # of each patch: description, four distances, presence
        self.mlp = nn.Sequential(nn.Linear(num_inputs, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, batch: Batch) -> Tensor:
        """Return features in the order in which the vision tower gives them."""
        if not len(batch.boxes_cxcywh):
            return self.mlp(self.mlp[0].weight.new_zeros(len(batch.image_positions), self.mlp[0].in_features))
        index = batch.memory
        token_sizes = index.vision_sizes[:, None]  # width and height in the picture
        low, high = (batch.boxes_cxcywh[:, :2] + sign / 2 * batch.boxes_cxcywh[:, 2:] for sign in (-1, 1))
        centers = self._patch_centers(index.vision_centers, token_sizes)
        covers = self._covers(batch, centers, index.vision_sizes / self.merge_size, low, high)
        area = batch.boxes_cxcywh[:, 2] * batch.boxes_cxcywh[:, 3]
        smallest = torch.where(covers, area, math.inf).argmin(-1)
        distances = torch.cat([centers - low[smallest], high[smallest] - centers], dim=-1)
        in_tokens = distances / token_sizes.repeat(1, 1, 2)[:, :, None]
        edges = torch.tanh(in_tokens * (self.merge_size * self.patch_size) / DISTANCE_SCALE)
        descriptions = self._descriptions(batch.caption_ids)[smallest]
        inputs = torch.cat([descriptions, edges, torch.ones_like(edges[..., :1])], dim=-1)
        inputs = (inputs * covers.any(-1, keepdim=True)).flatten(2)
        mask = index.vision_mask
        merged = inputs.new_zeros(len(batch.image_positions), inputs.shape[-1])
        return self.mlp(merged.index_put((index.vision[mask],), inputs[mask]))

    def _patch_centers(self, token_centers: Tensor, token_sizes: Tensor) -> Tensor:
        """Centres of the patches of each image token, of shape (samples, tokens, patches, 2)."""
        steps = (torch.arange(self.merge_size, device=token_sizes.device) + 0.5) / self.merge_size - 0.5
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
        return token_centers[:, :, None] + offsets * token_sizes[:, :, None]

    def _covers(self, batch: Batch, centers: Tensor, patch_sizes: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Whether each object overlaps each patch of its own sample: (samples, tokens, patches, objects)."""
        samples = torch.arange(len(patch_sizes), device=patch_sizes.device)
        is_own = batch.sample_of_object == samples[:, None]
        reach = patch_sizes[:, None, None, None] / 2
        points = centers[:, :, :, None]
        return ((points > low - reach) & (points < high + reach)).all(-1) & is_own[:, None, None]

    def _descriptions(self, caption_ids: Tensor) -> Tensor:
        """The mean word embedding of each object's description."""
        is_word = (caption_ids >= 0)[..., None]
        return (self.word(caption_ids.clamp(min=0)) * is_word).sum(1) / is_word.sum(1)


def build(**arguments: Any) -> qwen25vl.GroundingModel:
    """Build the model of bbu_train, but with `AnnotationFeatures` in place of the output of the vision tower."""
    model = qwen25vl.build(**arguments)
    config, embed = model.backbone.config, model.backbone.get_input_embeddings()
    vision = config.vision_config
    shape = config.text_config.hidden_size, config.text_config.vocab_size, vision.spatial_merge_size, vision.patch_size
    model.annotation_features = AnnotationFeatures(*shape).to(embed.weight.device)
    model.encode_images = MethodType(lambda self, batch: self.annotation_features(batch), model)
    return model


def unread_patches(picture: Picture, picture_format: PictureFormat) -> Tensor:
    """Return as many rows as the picture has patches, without pixels."""
    width, height = patches.resized_size(picture, picture_format)
    return torch.zeros(width * height // picture_format.patch_size**2, 1, dtype=torch.uint8)


def score_answers(folder: Path, num_answers: int) -> tuple[dict[str, float], float]:
    """Score the last checkpoint's answers to the first pictures of validation; return metrics and malformed share."""
    run = TrainedRun(str(folder), "last", "generated")
    run.set_threads()
    data, samples = load_split(run.cfg, "validation")
    samples = [Sample(each.id, each.student, ()) for each in samples[:num_answers]]
    builder = run.make_builder()
    max_new_tokens = default_max_new_tokens(builder, data.train)
    predictor = run.load_predictor(max_new_tokens)
    prompts = predictor.prompts(samples, len(samples), run.cfg.num_workers)
    answers = [each.generated for group, batch in prompts for each in predictor(group, batch)]
    scores = detection_metrics([each.student for each in samples], [answer.prediction for answer in answers])
    return scores, sum(answer.is_malformed for answer in answers) / len(answers)


def main() -> None:
    own_words = [word for word in sys.argv[1:] if word.startswith("answers=")]
    options = OmegaConf.merge({"answers": 125}, OmegaConf.from_cli(own_words))
    names = [f"outputs={OUTPUTS}", "sweep=perfect_features", f"run={time.time_ns()}"]
    overrides = [word for word in sys.argv[1:] if word not in own_words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[*OVERRIDES, *names, *overrides])
    patches.read_patches = unread_patches
    train.train(cfg)
    rows = [json.loads(line) for line in (Path(cfg.folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [f"{row['step']}: {row[LOSS]:.3f}" for row in rows if LOSS in row]
    print(" ".join(overrides), *losses, sep="\n", flush=True)
    scores, malformed = score_answers(Path(cfg.folder), options.answers)
    print(f"F1 {scores['f1']:.3f}, AP50 {scores['ap50']:.3f}, malformed {malformed:.0%} of {options.answers}")


if __name__ == "__main__":
    main()
