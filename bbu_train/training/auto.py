"""What the word "auto" means on a device: precision, compilation, attention, chunks of logits, workers and threads.

The layout of a step, `engine.gradient_checkpointing` and `engine.num_micro_batches`, needs the model and is chosen by
`training.fit`. On a GPU auto means full speed; on a CPU, exact and undemanding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bbu_train.engine.ddp import PRECISIONS
from bbu_train.errors import InputError
from bbu_train.model import activation_checkpointing, attention
from bbu_train.ops.numbers import is_count
from bbu_train.runs.settings import (
    AUTO,
    AUTO_SETTINGS,
    CHECKPOINTING,
    MICRO_BATCHES,
    PRECISION,
    THREADS,
)
from bbu_train.runtime.screen import Section
from bbu_train.training.machine import Machine

ATTENTION = "model.attention"
CHOICES: Mapping[str, tuple[object, ...]] = {
    PRECISION: PRECISIONS,
    CHECKPOINTING: activation_checkpointing.CHOICES,
    "model.compile": (True, False),
    ATTENTION: attention.CHOICES,
}
MINIMUMS = {MICRO_BATCHES: 1, "model.vocabulary_chunk": 1, "num_workers": 0, THREADS: 1}
MAX_GPU_WORKERS = 6
"""Six workers read a step of eight pictures with teachers as fast as an H200 trains a 3B model on them."""
MAX_GPU_THREADS, MAX_CPU_THREADS = 4, 2
LARGE_CARD_BYTES = 40 * 2**30


@dataclass(frozen=True)
class Setting:
    """What a setting became: the word that was given, the value, and the reason for the value."""

    given: Any
    value: Any
    reason: str


def settings(cfg: DictConfig, machine: Machine, environment: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the value of every setting but those of the layout.

    `environment` is the `environment.json` of the run if it is resumed, else empty: its precision and, on a CPU, its
    threads stay as they were. Raises InputError if this machine would compute in another precision.
    """
    answers = _answers(machine)
    if machine.kind == "cpu" and (stored := recorded(environment, THREADS)) is not None:
        answers[THREADS] = stored, "as the run began"
    result = {}
    for key, (value, reason) in answers.items():
        given = OmegaConf.select(cfg, key)
        result[key] = Setting(given, value, reason) if given == AUTO else Setting(given, given, "given")
    can_run_kernels = machine.kind == "gpu" and result[PRECISION].value != "fp32"
    if not can_run_kernels:
        result[ATTENTION] = _without_kernels(result[ATTENTION], machine, result[PRECISION].value)
    stored = recorded(environment, PRECISION)
    if stored not in (None, result[PRECISION].value):
        raise InputError(
            f"The run began with {PRECISION}={stored}, which auto took there, and here auto takes "
            f"{result[PRECISION].value} ({result[PRECISION].reason}): its results would differ. Resume it on a "
            f"device like the first one, or start a new run with {PRECISION}={stored}."
        )
    return result


def recorded(environment: Mapping[str, Any], key: str) -> Any:
    """Return what the run took for "auto" when it began, or None."""
    recorded = (environment.get("settings") or {}).get(key) or {}
    return recorded.get("value") if recorded.get("given") == AUTO else None


def apply(cfg: DictConfig, chosen: Mapping[str, Setting]) -> DictConfig:
    """Return a copy of the config in which each setting has its value instead of "auto"."""
    applied = cfg.copy()
    for key, setting in chosen.items():
        OmegaConf.update(applied, key, setting.value)
    return applied


def section(machine: Machine, chosen: Mapping[str, Setting]) -> Section:
    """Return what auto took on this machine, and why; then what was given."""
    taken = [f"{key}={_as_text(each.value)} ({each.reason})" for key, each in chosen.items() if each.given == AUTO]
    given = [f"{key}={_as_text(each.value)}" for key, each in chosen.items() if each.given != AUTO]
    memory = f", {machine.total_bytes / 2**30:.1f} GiB" if machine.total_bytes else ""
    cores = f"{machine.num_free_cores} of {machine.num_cores} cores free" if machine.is_here else "cores as here"
    lines = [f"on {machine.name}{memory}, {cores}", *([", ".join(taken)] if taken else [])]
    lines += [f"given: {', '.join(given)}"] if given else []
    return Section("auto", lines)


def problems(cfg: DictConfig) -> Iterator[str]:
    """Yield every setting whose value is neither "auto" nor one that it can have."""
    for key in AUTO_SETTINGS:
        value = OmegaConf.select(cfg, key)
        if value == AUTO:
            continue
        if key in CHOICES and value not in CHOICES[key]:
            yield f"{key}={_as_text(value)}: take auto, {', '.join(map(_as_text, CHOICES[key]))}"
        if key in MINIMUMS and not is_count(value, MINIMUMS[key]):
            yield f"{key}={value}: expected auto or a whole number of at least {MINIMUMS[key]}"


def _answers(machine: Machine) -> dict[str, tuple[Any, str]]:
    """Return the value that auto takes for each setting, and the reason."""
    if machine.kind == "cpu":
        num_threads = min(MAX_CPU_THREADS, machine.num_free_cores)
        return {
            PRECISION: ("fp32", "a CPU gains little from bfloat16"),
            "model.compile": (False, "compiling for a CPU takes longer than it saves"),
            ATTENTION: ("sdpa", "the kernels need a GPU and bf16"),
            "model.vocabulary_chunk": (1024, "fits everywhere"),
            "num_workers": (0, "the cores compute"),
            THREADS: (num_threads, f"free cores, at most {MAX_CPU_THREADS}"),
        }
    bf16 = ("bf16", "float32 masters") if machine.computes_bf16 else ("fp32", f"{machine.name} lacks bfloat16")
    compiles = (True, "faster") if machine.compiles else (False, "Triton is not installed")
    source = "the fastest installed" if machine.is_here else "assumed to be installed"
    is_large = machine.total_bytes >= LARGE_CARD_BYTES
    num_threads = min(MAX_GPU_THREADS, machine.num_cores)
    num_workers = min(MAX_GPU_WORKERS, max(0, machine.num_cores - 1))
    return {
        PRECISION: bf16,
        "model.compile": compiles,
        ATTENTION: (machine.attention, source),
        "model.vocabulary_chunk": (8192 if is_large else 1024, f"{'at least' if is_large else 'less than'} 40 GiB"),
        "num_workers": (num_workers, f"one core stays, at most {MAX_GPU_WORKERS}"),
        THREADS: (num_threads, f"at most {MAX_GPU_THREADS}"),
    }


def _without_kernels(setting: Setting, machine: Machine, precision: str) -> Setting:
    """Return the attention for a device or a precision in which only sdpa runs."""
    if setting.given == AUTO:
        return Setting(AUTO, "sdpa", "the kernels need a GPU and bf16")
    if setting.value != "sdpa":
        raise InputError(
            f"{ATTENTION}={setting.value} needs a GPU and engine.precision=bf16; this run has {machine.name} and "
            f"{precision}. Take {ATTENTION}=auto."
        )
    return setting


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
