"""`python -m bbu_train.export run=<folder> to=<folder> ...`: a trained model for transformers, vLLM and bbu_train."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from bbu_train.cli import arguments
from bbu_train.errors import InputError
from bbu_train.runs import exported
from bbu_train.runs import folder as run_folder
from bbu_train.runs.config_keys import refuse
from bbu_train.runtime import logs

USAGE = """\
usage: python -m bbu_train.export run=<run folder> to=<folder> [key=value ...]

Writes a trained model into a folder that stock transformers and vLLM load, in the layout of the published checkpoints:

  *.safetensors, config.json, generation_config.json   the language model and the vision tower
  tokenizer*, chat_template.jinja                      as the run used them
  preprocessor_config.json                             with the run's pixel limits
  head/                                                the detection head, what bbu_train.load needs of the run (its
                                                       config, with the paths of its data), and a model card, README.md

The weights are those that validation scored: the moving average, if the run keeps one. bbu_train.load, predict and
evaluate take the folder in place of the run, and model.checkpoint=<folder> trains on from it.

  key         default   meaning
  run         required  run folder, such as outputs/default/20260101-120000-abcdef01
  to          required  folder to write; it appears when it is complete
  checkpoint  best      best, last or a step number; if none was evaluated, best is the last
  dtype       bf16      bf16, as published, or fp32: of all weights but the head's, which keep that of their training
  form        servable  servable: the files above; bbu_train: head/ alone, with all weights, for bbu_train.load: of runs
                        with model.image_position_scale above 0, which no stock model can compute
  overwrite   false     true: replace an exported folder that is there already, with all that lies in it
"""
DEFAULTS = {
    "run": None,
    "to": None,
    "checkpoint": "best",
    "dtype": "bf16",
    "form": exported.SERVABLE,
    "overwrite": False,
}


def main(words: Sequence[str]) -> int:
    return arguments.run_program(lambda options: export(_validate(options)), words, USAGE, DEFAULTS)


def _validate(options: DictConfig) -> DictConfig:
    """Raise InputError that lists every option that is wrong. Reads no file."""
    problems = arguments.missing_values(options, {"run": "a run's folder", "to": "the folder to write"})
    problems += arguments.wrong_choices(options, {"dtype": ("bf16", "fp32"), "form": exported.FORMS})
    problems += arguments.wrong_checkpoint(options.checkpoint)
    refuse(problems)
    return options


def export(options: DictConfig) -> None:
    """Check the run and the folder to write, then write it and say what it holds."""
    logs.start(is_main=True)
    to = _target(options.to, options.overwrite)
    folder = run_folder.on_disk(options.run)
    if exported.is_exported(folder):
        raise InputError(f"run={options.run}: this model is exported already. Give the folder of a run.")
    from bbu_train.export.trained import TrainedWeights
    from bbu_train.export.write import write

    trained = TrainedWeights(folder, options.checkpoint)
    trained.check_form(options.form)
    print(write(trained, options.form, options.dtype, to))


def _target(to: str, may_replace: bool) -> Path:
    """Return the folder to write. Raises InputError if something lies there that must not be replaced."""
    folder = arguments.writable_folder("to", to).resolve()
    if not folder.exists() or not any(folder.iterdir()):
        return folder
    if not may_replace:
        raise InputError(f"to={to} is not empty. Give a new folder, or overwrite=true to replace an exported model.")
    if not (folder / exported.HEAD / exported.RECORD).is_file():
        raise InputError(
            f"to={to}: overwrite=true replaces only an exported model, and there is none. Give a new folder."
        )
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
