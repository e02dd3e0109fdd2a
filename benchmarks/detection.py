"""How well a model from scratch finds what is in a few pictures, beside RT-DETR, in original pixels.

    python benchmarks/detection.py data.root=/data/bccd [seconds=300] [steps=1600] [contenders=ours,peer] [side=640]
                                   [batch=16] [workers=14] [max_new_tokens=2048] [key=value of bbu_train ...]

Both see the views that experiment=bccd_small draws, are scored on validation meanwhile, and with the weights that were
best there by AP once on test. Ours goes through the program itself: `steps` is how far it comes in `seconds` on your
device. The peer (detection_peer.py) stops after `seconds`, with pictures of `side` x `side` pixels. Seconds are those
of training, evaluations left out. Further keys are ours alone: `head=...`.
Prints a table and writes outputs/benchmarks/detection.json. It runs on a CPU, too, where it takes days.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import safetensors
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs/benchmarks").absolute()
OWN_KEYS = {
    **{"seconds": 300, "steps": 1600, "contenders": "ours,peer", "contender": None, "side": 640, "batch": 16},
    **{"workers": 14, "max_new_tokens": 2048},
}
EXPERIMENT = "experiment=bccd_small"
MOMENTS = (0.15, 0.3, 0.5, 0.75, 1.0)  # of the time, at which the peer is scored
SCORES = ("ap", "ap50", "ap75")


def overrides_of(own, given: Sequence[str]) -> list[str]:
    place = [f"outputs={OUTPUTS}", "sweep=detection", f"run={time.time_ns()}", "tracker=jsonl", f"steps={own.steps}"]
    return [EXPERIMENT, *place, f"num_workers={own.workers}", *given]


def configured(overrides: list[str]):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=overrides)


def ours(own, given: Sequence[str]) -> dict:
    overrides = overrides_of(own, given)
    subprocess.run([sys.executable, "-m", "bbu_train", *overrides], check=True)
    cfg = configured(overrides)
    folder = Path(cfg.folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds, evaluations = 0.0, []
    for row in rows:
        seconds += row.get("time/step_seconds", 0)
        if row["step"] > 0 and "eval/ap" in row:
            evaluations.append({"seconds": seconds} | {name: row[f"eval/{name}"] for name in SCORES})
    return tested(folder, own.max_new_tokens) | {
        "validation": evaluations,
        "steps": rows[-1]["step"],
        "pictures_per_second": rows[-1]["step"] * cfg.sampler.num_samples / seconds,
        "overrides": list(given),
    }


def tested(folder: Path, max_new_tokens: int) -> dict:
    """Both routes on the test split, by the checkpoint that was best in validation, and how many parameters it has."""
    from bbu_train.evaluate.split import load
    from bbu_train.metrics.detection import detection_metrics
    from bbu_train.predict.run import TrainedRun
    from bbu_train.types.samples import Sample

    run = TrainedRun(str(folder), "best", "both", num_teachers=0)
    data, test = load(run.cfg, "test")
    samples = [Sample(each.id, each.student, ()) for each in test]
    predictor = run.predictor(max_new_tokens, run.builder().max_caption_tokens(data.train))
    prompts = predictor.prompts(samples, run.cfg.eval_batch_size, run.cfg.num_workers)
    found = [one for some, batch in prompts for one in predictor(some, batch)]
    pictures = [sample.student for sample in samples]
    with safetensors.safe_open(run.saved.folder / "model.safetensors", "pt") as file:
        num_parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (it is no dict)
    return {
        "parameters": num_parameters,
        "test": detection_metrics(pictures, [one.head for one in found]),
        "test_generated": detection_metrics(pictures, [one.generated.prediction for one in found]),
    }


def peer(own, given: Sequence[str]) -> dict:
    from detection_peer import Peer

    from bbu_train import train
    from bbu_train.evaluate.split import load

    data_keys = ("data.root=", "augmentation", "seed=")
    cfg = configured(overrides_of(own, [word for word in given if word.startswith(data_keys)]))
    data = train.build(cfg.data)
    contender = Peer(
        data,
        train.build(cfg.augmentation),
        seed=cfg.seed,
        side=own.side,
        batch_size=own.batch,
        num_workers=own.workers,
    )
    evaluations, best, num_steps = contender.train(own.seconds, [share * own.seconds for share in MOMENTS])
    contender.model.load_state_dict(best)
    test = [sample.student for sample in load(cfg, "test")[1]]
    return {
        "parameters": sum(parameter.numel() for parameter in contender.model.parameters()),
        "test": contender.scored(test, contender.model),
        "validation": evaluations,
        "steps": num_steps,
        "pictures_per_second": num_steps * own.batch / evaluations[-1]["seconds"],
    }


def table(results: dict[str, dict]) -> str:
    lines = ["| how | parameters | pictures/s | split | after s | AP | AP50 | AP75 |", "|---" * 8 + "|"]
    for name, its in results.items():
        head = f"| {name} | {its['parameters'] / 1e6:.1f} M | {its['pictures_per_second']:.0f} |"
        for each in its["validation"]:
            lines.append(f"{head} validation | {each['seconds']:.0f} | {cells(each)} |")
        lines.append(f"{head} test | | {cells(its['test'])} |")
        if "test_generated" in its:
            written = its["test_generated"]
            lines.append(f"{head} test, written (F1 {written['f1']:.3f}) | | {cells(written)} |")
    return "\n".join(lines)


def cells(scores: dict[str, float]) -> str:
    return " | ".join(f"{scores[name]:.3f}" for name in SCORES)


CONTENDERS = {"ours": ours, "peer": peer}


def main() -> None:
    mine = [argument for argument in sys.argv[1:] if argument.split("=")[0] in OWN_KEYS]
    given = [argument for argument in sys.argv[1:] if argument not in mine]
    own = OmegaConf.merge(OWN_KEYS, OmegaConf.from_cli(mine))
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    if own.contender:
        result = CONTENDERS[own.contender](own, given)
        (OUTPUTS / f"detection-{own.contender}.json").write_text(json.dumps(result))
        return
    results = {}
    for contender in own.contenders.split(","):
        print(f"running {contender} ...", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], f"contender={contender}"], check=True)
        results[contender] = json.loads((OUTPUTS / f"detection-{contender}.json").read_text())
        print(table(results), flush=True)
    (OUTPUTS / "detection.json").write_text(json.dumps(OmegaConf.to_container(own) | results))


if __name__ == "__main__":
    main()
