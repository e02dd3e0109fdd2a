"""head/README.md: how to load an exported model, what it was asked in training, and its figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bbu_train.runs import exported
from bbu_train.runtime.nested import leaves

CLASS_METRIC = "eval/ap50/"
DECIDING = (
    "model",
    "head",
    "data",
    "augmentation",
    "conversation",
    "sampler",
    "loss",
    "optimizer",
    "average",
    "schedule",
)
"""The config groups whose choices decide what a model learns."""

SERVABLE = """\
```python
from transformers import AutoTokenizer, AutoImageProcessor, Qwen2_5_VLForConditionalGeneration  # or AutoProcessor
model = Qwen2_5_VLForConditionalGeneration.from_pretrained("<folder>", dtype="auto")
```

`vllm serve <folder>` serves it. Ask of every picture what was asked in training, with greedy decoding, as bbu_train
does and generation_config.json says:

```python
messages = [
    {{"role": "system", "content": {system!r}}},
    {{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]}},
]
```

The answer is JSON, with `bbox_2d` in pixels of the resized picture (the image processor's, from {min_pixels} to
{max_pixels} pixels). config.json has the layout of transformers 5."""

OWN = """\
Stock transformers cannot compute this model: with `model.image_position_scale={scale}` each image token has the sine
encoding of its row and column added. `bbu_train.load` does."""

CARD = """\
---
{front}
---

# {title}

Qwen2.5-VL, fine-tuned by bbu_train to find and describe objects in pictures; step {step} of the run {run}{commit}.

## Load it

```python
import bbu_train
model = bbu_train.load("<folder>"{route})
for result in model.{method}("/data/new"):
    print(result.image, result.objects)  # boxes in pixels of the picture, scores, descriptions
```

{use}

## Figures

On the validation pictures{unmeasured}

{metrics}

## Classes

{classes}

## Training

{training}
"""


def render(
    cfg: DictConfig,
    environment: Mapping[str, Any],
    step: int,
    metrics: Mapping[str, float],
    form: str,
) -> str:
    """Return the card. `cfg` is the run's config, `metrics` are those of the checkpoint, named as in metrics.jsonl."""
    model, commit, choices = cfg.model, environment.get("git_commit"), environment.get("choices", {})
    is_pretrained = model.weights == "pretrained"
    front = ["library_name: transformers", "pipeline_tag: image-text-to-text"]
    front += [f"base_model: {model.checkpoint}"] if is_pretrained else []
    has_head = "num_queries" in cfg.head
    conversation = cfg.conversation
    use = SERVABLE.format(
        system=conversation.system,
        question=conversation.question,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
    )
    losses = OmegaConf.to_container(cfg.loss, resolve=True)
    training = [
        ("weights before training", OmegaConf.select(cfg, "init") or (model.checkpoint if is_pretrained else "random")),
        ("steps", cfg.steps),
        *((group, choices[group]) for group in DECIDING if group in choices),
        ("conversation.layout", cfg.conversation.layout),
        *((f"loss.{key}", value) for key, value in leaves(losses) if "weight" in key),
    ]
    return CARD.format(
        front="\n".join(front),
        title=cfg.run,
        step=step,
        run=cfg.run,
        commit=f" (bbu_train, commit {commit})" if commit else "",
        route="" if has_head else ', route="generated"',
        method="predict" if has_head else "generate",
        use=use if form == exported.SERVABLE else OWN.format(scale=model.image_position_scale),
        unmeasured=":" if metrics else ": not measured at this step.",
        metrics=_table(("metric", "value"), _figures(metrics)),
        classes=_table(("class", "training objects", "validation objects", "AP50"), _classes(environment, metrics)),
        training=_table(("", ""), training),
    )


def _figures(metrics: Mapping[str, float]) -> Iterable[Sequence[str]]:
    return ((name, f"{value:.4g}") for name, value in metrics.items() if not name.startswith(CLASS_METRIC))


def _classes(environment: Mapping[str, Any], metrics: Mapping[str, float]) -> Iterable[Sequence[str]]:
    """Yield each class with its objects in both splits and its AP50, the most frequent first."""
    splits = environment.get("data", {}).get("splits", {})
    by_split = [splits.get(name, {}).get("num_objects_by_class", {}) for name in ("train", "validation")]
    names = {name for counts in by_split for name in counts}
    for name in sorted(names, key=lambda name: (*(-counts.get(name, 0) for counts in by_split), name)):
        ap50 = metrics.get(f"{CLASS_METRIC}{name}")
        yield name, *(str(counts.get(name, 0)) for counts in by_split), "" if ap50 is None else f"{ap50:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
