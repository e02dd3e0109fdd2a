"""A checkpoint is restored into the tensors that are there, and nothing of its files stays in memory."""

from pathlib import Path

import pytest
import torch

from bbu_train.average.ema import ExponentialMovingAverage
from bbu_train.checkpoint.committed import FILES, Checkpoint
from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import InputError
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.training.progress import Progress, Saver, restore


class Trained:
    def __init__(self):
        self.model = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
        self.optimizer = MixedAdamW([{"params": [*self.model.parameters()]}], has_masters=True, lr=0.1)
        self.average = ExponentialMovingAverage(self.model, self.optimizer, decay=0.1, num_steps=100)

    def update(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.average.update(1)

    def tensors(self):
        states = [self.optimizer.state[parameter] for parameter in self.model.parameters()]
        return [*self.model.parameters(), *self.average.averages.values(), *(t for s in states for t in s.values())]


def mapped_files(folder: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if str(folder) in line}


@pytest.fixture
def saved(tmp_path) -> tuple[Trained, Checkpoint]:
    trained, checkpoints = Trained(), LocalCheckpoints(tmp_path, 2, "eval/ap50", "max")
    trained.update()
    saver = Saver(checkpoints, trained.optimizer, trained.average, is_periodic=False, grace_seconds=None)
    saver.save(Progress(7, 0, {"eval/ap50": 0.5}, 7))
    saver.finish()
    saver.close()
    return trained, checkpoints.latest()


def test_a_checkpoint_is_mapped_while_it_is_restored_and_not_afterwards(saved, tmp_path):
    trained, checkpoint = saved
    contents = checkpoint.weights(), checkpoint.state()
    assert mapped_files(tmp_path) == {*FILES}
    del contents
    restored = Trained()
    progress = restore(checkpoint, restored.model, restored.optimizer, restored.average)
    assert mapped_files(tmp_path) == set()
    assert progress == Progress(7, 7, {"eval/ap50": 0.5}, 7)
    assert all(torch.equal(*pair) for pair in zip(trained.tensors(), restored.tensors(), strict=True))


def test_a_damaged_checkpoint_is_not_restored(saved):
    _, checkpoint = saved
    path = checkpoint.folder / "state.pt"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    restored = Trained()
    before = [tensor.clone() for tensor in restored.tensors()]
    with pytest.raises(InputError, match="SHA-256"):
        restore(checkpoint, restored.model, restored.optimizer, restored.average)
    assert all(torch.equal(*pair) for pair in zip(before, restored.tensors(), strict=True))
