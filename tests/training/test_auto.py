"""What "auto" becomes on each kind of machine, and what of it a run keeps."""

from dataclasses import asdict, replace

import pytest

from bbu_train.errors import InputError
from bbu_train.runs import identity, resume
from bbu_train.runs.settings import AUTO, AUTO_SETTINGS, ROUNDING_ONLY_KEYS
from bbu_train.training import auto
from bbu_train.training.machine import Machine, cpu

H200 = Machine("gpu", "NVIDIA H200", 140 * 2**30, 139 * 2**30, True, True, "flash_attention_2", 16, 16, is_here=True)
CPU = cpu(num_cores=8, num_free_cores=1)


def values(cfg, machine, environment=None):
    return {key: setting.value for key, setting in auto.settings(cfg, machine, environment or {}).items()}


def recorded(cfg, machine):
    """What environment.json of a run on this machine has."""
    return {"settings": {key: asdict(setting) for key, setting in auto.settings(cfg, machine, {}).items()}}


def test_a_large_model_is_auto_everywhere_and_auto_leaves_nothing_open(config):
    cfg = config("model=qwen25vl3b")
    for machine in (CPU, H200):
        settings = auto.settings(cfg, machine, {})
        assert settings.keys() == AUTO_SETTINGS.keys() - {"engine.gradient_checkpointing", "engine.num_micro_batches"}
        assert all(setting.given == AUTO != setting.value for setting in settings.values())


def test_a_gpu_computes_at_full_speed(config):
    assert values(config("model=qwen25vl3b"), H200) == {
        "engine.precision": "bf16",
        "model.compile": True,
        "model.attention": "flash_attention_2",
        "model.vocabulary_chunk": 8192,
        "num_workers": 6,
        "threads": 4,
    }


def test_a_gpu_takes_what_it_has(config):
    cfg = config("model=qwen25vl3b")
    old = replace(H200, computes_bf16=False, compiles=False, total_bytes=24 * 2**30, num_cores=2)
    assert values(cfg, old) == {
        "engine.precision": "fp32",
        "model.compile": False,
        "model.attention": "sdpa",  # the kernels need half precision
        "model.vocabulary_chunk": 1024,
        "num_workers": 1,
        "threads": 2,
    }


def test_a_cpu_stays_exact_and_takes_only_free_cores(config):
    cfg = config("model=qwen25vl3b")
    assert values(cfg, CPU) == {
        "engine.precision": "fp32",
        "model.compile": False,
        "model.attention": "sdpa",
        "model.vocabulary_chunk": 1024,
        "num_workers": 0,
        "threads": 1,
    }
    assert values(cfg, replace(CPU, num_free_cores=8))["threads"] == 2


def test_what_is_given_is_kept(config):
    given = {"engine.precision": "pure_bf16", "model.compile": False, "num_workers": 3, "threads": 7}
    cfg = config("model=qwen25vl3b", *(f"{key}={value}" for key, value in given.items()))
    assert {key: values(cfg, H200)[key] for key in given} == given
    applied = auto.apply(cfg, auto.settings(cfg, H200, {}))
    assert (applied.model.compile, applied.model.network.attention) == (False, "flash_attention_2")
    assert cfg.model.attention == AUTO


def test_a_run_that_goes_on_keeps_its_threads_on_a_cpu_and_takes_what_a_gpu_has(config):
    cfg = config("model=qwen25vl3b")
    assert values(cfg, replace(CPU, num_free_cores=2), recorded(cfg, CPU))["threads"] == 1
    small = replace(H200, num_cores=2)
    assert values(cfg, H200, recorded(cfg, small))["threads"] == 4


def test_a_run_does_not_go_on_in_another_precision(config):
    cfg = config("model=qwen25vl3b")
    with pytest.raises(InputError, match=r"began with engine.precision=bf16, .* here auto takes fp32 \(a CPU gains"):
        auto.settings(cfg, CPU, recorded(cfg, H200))
    auto.settings(config("model=qwen25vl3b", "engine.precision=bf16"), CPU, recorded(cfg, H200))


def test_a_section_says_what_auto_took_and_why(config):
    cfg = config("model=qwen25vl3b", "threads=3")
    machine, taken, given = auto.section(H200, auto.settings(cfg, H200, {})).lines
    assert machine == "on NVIDIA H200, 140.0 GiB, 16 of 16 cores free"
    assert taken.startswith("engine.precision=bf16 (float32 masters), ")
    assert given == "given: threads=3"


@pytest.mark.parametrize("overrides", [["model.attention=varlen"], ["model.attention=flash_attention_2"]])
def test_a_kernel_is_refused_where_it_cannot_run(config, overrides):
    for machine, precision in ((CPU, "bf16"), (H200, "fp32")):
        with pytest.raises(
            InputError, match=r"model.attention=\w+ needs a GPU and engine.precision=bf16; this run has"
        ):
            auto.settings(config(*overrides, f"engine.precision={precision}"), machine, {})


@pytest.mark.parametrize("key", ROUNDING_ONLY_KEYS)
def test_the_layout_of_a_step_leaves_the_identity(config, key):
    cfg = config("model=qwen25vl3b")
    other = config("model=qwen25vl3b", f"{key}={str(AUTO_SETTINGS[key]).lower()}")
    assert identity.run_identity(cfg) == identity.run_identity(other)


def test_precision_stays_in_the_identity_as_the_word_that_was_given(config):
    assert identity.run_identity(config()) != identity.run_identity(config("engine.precision=fp32"))


def test_threads_stay_in_the_identity_only_on_a_cpu(config):
    for device, differs in (("cpu", True), ("gpu", False)):
        pair = [config("++about.device=" + device, f"threads={number}") for number in (1, 2)]
        assert (identity.run_identity(pair[0]) != identity.run_identity(pair[1])) is differs


def test_a_run_that_began_on_a_cpu_goes_on_with_any_threads_on_a_gpu(config):
    stored = config("++about.device=cpu", "threads=1")
    for given in ("threads=4", "threads=auto"):
        assert resume._differences(stored, config("++about.device=gpu", given), None) == []
        assert len(resume._differences(stored, config("++about.device=cpu", given), None)) == 1
