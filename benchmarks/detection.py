"""Detection from random weights on a few pictures: bbu_train compared with RT-DETR. AP is in original pixels.

    python benchmarks/detection.py data.root=/data/bccd [seconds=300] [steps=1600] [contenders=bbu_train,rt_detr]
                                   [side=640] [batch=16] [workers=14] [max_new_tokens=2048] [key=value of bbu_train ...]

Both contenders train on the same views, drawn by experiment=bccd_small. Both are scored on validation during training,
and once on test with the weights that had the best AP in validation.

bbu_train  runs the program itself for `steps` steps; choose `steps` so that it takes about `seconds` on your device.
           It is scored by both routes. Further keys, such as `head=...`, are for bbu_train alone.
rt_detr    (detection_peer.py) trains for `seconds` on pictures of `side` x `side` pixels.

Seconds are training time without evaluations. Prints a table and writes outputs/benchmarks/detection.json. Runs on a
CPU too, where it takes days.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
DEFAULTS = {
    "seconds": 300,
    "steps": 1600,
    "contenders": "bbu_train,rt_detr",
    "contender": None,  # set for the process of each contender
    "side": 640,
    "batch": 16,
    "workers": 14,
    "max_new_tokens": 2048,
}
EXPERIMENT = "experiment=bccd_small"
EVALUATION_TIMES = (0.15, 0.3, 0.5, 0.75, 1.0)  # shares of `seconds` at which RT-DETR is scored
SCORES = ("ap", "ap50", "ap75")


def run_overrides(options: DictConfig, overrides: Sequence[str]) -> list[str]:
    names = [f"outputs={OUTPUTS}", "sweep=detection", f"run={time.time_ns()}"]
    return [
        EXPERIMENT,
        *names,
        "tracker=jsonl",
        f"steps={options.steps}",
        f"num_workers={options.workers}",
        *overrides,
    ]


def compose_config(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=overrides)


def train_bbu_train(options: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    words = run_overrides(options, overrides)
    subprocess.run([sys.executable, "-m", "bbu_train", *words], check=True)
    cfg = compose_config(words)
    folder = Path(cfg.folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds, evaluations = 0.0, []
    for row in rows:
        seconds += row.get("time/step_seconds", 0)
        if row["step"] > 0 and "eval/ap" in row:
            evaluations.append({"seconds": seconds} | {name: row[f"eval/{name}"] for name in SCORES})
    return score_test_split(folder, options.max_new_tokens) | {
        "validation": evaluations,
        "steps": rows[-1]["step"],
        "pictures_per_second": rows[-1]["step"] * cfg.sampler.num_samples / seconds,
        "overrides": list(overrides),
    }


def score_test_split(folder: Path, max_new_tokens: int) -> dict[str, Any]:
    """Score both routes with the checkpoint that was best in validation, and count its parameters."""
    from bbu_train.evaluate.split import load_split
    from bbu_train.metrics.detection import detection_metrics
    from bbu_train.predict.trained_run import TrainedRun
    from bbu_train.types.samples import Sample

    run = TrainedRun(str(folder), "best", "both")
    run.set_threads()
    data, test = load_split(run.cfg, "test")
    samples = [Sample(each.id, each.student, ()) for each in test]
    predictor = run.load_predictor(max_new_tokens)
    prompts = predictor.prompts(samples, run.cfg.eval_batch_size, run.cfg.num_workers)
    predictions = [each for group, batch in prompts for each in predictor(group, batch)]
    pictures = [sample.student for sample in samples]
    with safetensors.safe_open(run.saved.folder / "model.safetensors", "pt") as file:
        num_parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (it is no dict)
    return {
        "parameters": num_parameters,
        "test": detection_metrics(pictures, [each.head for each in predictions]),
        "test_generated": detection_metrics(pictures, [each.generated.prediction for each in predictions]),
    }


def train_rt_detr(options: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    from detection_peer import Peer

    from bbu_train import train
    from bbu_train.evaluate.split import load_split

    data_keys = ("data.root=", "augmentation", "seed=")
    cfg = compose_config(run_overrides(options, [word for word in overrides if word.startswith(data_keys)]))
    data = train.build(cfg.data)
    peer = Peer(
        data,
        train.build(cfg.augmentation),
        seed=cfg.seed,
        side=options.side,
        batch_size=options.batch,
        num_workers=options.workers,
    )
    evaluations, best, num_steps = peer.train(options.seconds, [share * options.seconds for share in EVALUATION_TIMES])
    peer.model.load_state_dict(best)
    test = [sample.student for sample in load_split(cfg, "test")[1]]
    return {
        "parameters": sum(parameter.numel() for parameter in peer.model.parameters()),
        "test": peer.score(test, peer.model),
        "validation": evaluations,
        "steps": num_steps,
        "pictures_per_second": num_steps * options.batch / evaluations[-1]["seconds"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| contender | parameters | pictures/s | split | seconds | AP | AP50 | AP75 |", "|---" * 8 + "|"]
    for name, result in results.items():
        head = f"| {name} | {result['parameters'] / 1e6:.1f} M | {result['pictures_per_second']:.0f} |"
        for scores in result["validation"]:
            lines.append(f"{head} validation | {scores['seconds']:.0f} | {cells(scores)} |")
        lines.append(f"{head} test | | {cells(result['test'])} |")
        if "test_generated" in result:
            generated = result["test_generated"]
            lines.append(f"{head} test, generated (F1 {generated['f1']:.3f}) | | {cells(generated)} |")
    return "\n".join(lines)


def cells(scores: dict[str, float]) -> str:
    return " | ".join(f"{scores[name]:.3f}" for name in SCORES)


CONTENDERS = {"bbu_train": train_bbu_train, "rt_detr": train_rt_detr}


def main() -> None:
    own_words = [word for word in sys.argv[1:] if word.split("=")[0] in DEFAULTS]
    overrides = [word for word in sys.argv[1:] if word not in own_words]
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(own_words))
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    if options.contender:
        result = CONTENDERS[options.contender](options, overrides)
        (OUTPUTS / f"detection-{options.contender}.json").write_text(json.dumps(result))
        return
    results = {}
    for contender in options.contenders.split(","):
        print(f"running {contender} ...", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], f"contender={contender}"], check=True)
        results[contender] = json.loads((OUTPUTS / f"detection-{contender}.json").read_text())
        print(table(results), flush=True)
    (OUTPUTS / "detection.json").write_text(json.dumps(OmegaConf.to_container(options) | results))


if __name__ == "__main__":
    main()
