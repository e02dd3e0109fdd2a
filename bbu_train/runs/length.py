"""The length of a run: a number of `steps`, or of `epochs`, which become steps once the data is read.

A config names both keys, and one of them decides: `epochs` if it is not null, else `steps`. Where epochs decide,
`training.setup.prepare` sets `steps` to their number, and a run's config.yaml holds both. No torch is needed here.
"""

from collections.abc import Collection, Iterator

from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_count, is_number

STEPS, EPOCHS = "steps", "epochs"
MOST = {STEPS: 100_000_000, EPOCHS: 100_000}
"""What is above this would take hours to plan, and is surely a typing error."""
ENDED_EARLY = "stopping/ended"
"""The metric, of value 1, by which metrics.jsonl says that a run ended before its last step (conf/stopping)."""
WARMUP = "schedule.num_warmup_steps"
FULL_WARMUP = "about.full_warmup"
"""What the files say of WARMUP, where a run is too short for it. The identity holds this number."""


def decided_by_epochs(cfg: DictConfig) -> bool:
    """Whether the number of steps follows from `epochs`. Configs of older runs lack that key."""
    return OmegaConf.select(cfg, EPOCHS) is not None


def derived_key(cfg: DictConfig) -> str:
    """Return the one of STEPS and EPOCHS that follows from the other."""
    return STEPS if decided_by_epochs(cfg) else EPOCHS


def choose_length(cfg: DictConfig, given_keys: Collection[str]) -> None:
    """Set the key that does not decide the length to null: what the command gives wins over an experiment's file.

    `given_keys` are those of the command. Raises InputError if it gives both, or if nothing decides.
    """
    epochs, steps = OmegaConf.select(cfg, EPOCHS), OmegaConf.select(cfg, STEPS)
    if STEPS in given_keys and steps is not None and epochs is not None:
        if EPOCHS in given_keys:
            raise InputError(
                f"epochs={epochs} and steps={steps}: both say how long the run is. Give one of them; epochs are turned "
                "into steps once the data is read."
            )
        cfg.epochs = epochs = None
    if epochs is not None:
        cfg.steps = None
    elif steps is None:
        raise InputError("steps=null and epochs=null: a run needs a length. Give steps=..., or epochs=... .")


def problems_of_length(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the key that decides the length, with what would work."""
    key = EPOCHS if decided_by_epochs(cfg) else STEPS
    value, most = OmegaConf.select(cfg, key), MOST[key]
    if key == EPOCHS and not (is_number(value) and value > 0):
        yield f"epochs={value}: expected a number above 0, such as 3 or 0.5; steps=0 evaluates without training"
    elif key == STEPS and not is_count(value):
        in_epochs = value if is_number(value) and 0 < value < 1 else "..."
        whole = f"steps={value:.0f}" if is_number(value) and value >= 1 else "0 to evaluate without training"
        given = "null" if value is None else value
        yield f"steps={given}: expected a whole number: {whole}, or epochs={in_epochs} for a length in epochs"
    elif is_number(value) and value > most:
        yield f"{key}={value}: every step is planned before the first one, so expected at most {most:,}"


def shorten_warmup(cfg: DictConfig, given_keys: Collection[str]) -> None:
    """Shorten a warm-up that does not fit into the run to a tenth of its steps, unless the command gives it.

    Nothing happens before the number of steps is known. A schedule that has a length of its own must have room for the
    warm-up, any other the run. FULL_WARMUP keeps the number that was there.
    """
    warmup = OmegaConf.select(cfg, WARMUP)
    num_steps = OmegaConf.select(cfg, "schedule.num_steps", default=OmegaConf.select(cfg, STEPS))
    if WARMUP in given_keys or not (is_count(warmup) and is_count(num_steps)) or warmup <= num_steps:
        return
    with open_dict(cfg):
        OmegaConf.update(cfg, FULL_WARMUP, warmup)
        OmegaConf.update(cfg, WARMUP, num_steps // 10)
