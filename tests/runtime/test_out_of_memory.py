"""What counts as a device without memory."""

import pytest
import torch

from bbu_train.errors import InputError
from bbu_train.runtime.out_of_memory import is_out_of_memory


def caused_by(cause, error):
    try:
        raise error from cause
    except Exception as raised:
        return raised


def in_handling(cause, error):
    try:
        try:
            raise cause
        except Exception:
            raise error  # noqa: B904 (its cause is not given on purpose)
    except Exception as raised:
        return raised


def unrelated(cause, error):
    try:
        try:
            raise cause
        except Exception:
            raise error from None
    except Exception as raised:
        return raised


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        CUDA,
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        torch.distributed.DistBackendError(
            "NCCL error, unhandled cuda error. Last error: Cuda failure 2 'out of memory'"
        ),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        caused_by(CUDA, torch._dynamo.exc.TorchDynamoException("backend='inductor' raised an error")),
        in_handling(CUDA, ValueError("while cleaning up")),
    ],
    ids=repr,
)
def test_a_device_without_memory_is_recognised_by_cause(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("out of memory"),
        InputError("A step that runs out of memory: lower model.max_pixels."),
        caused_by(CUDA, InputError("One sample does not fit.")),
        caused_by(InputError("out of memory"), RuntimeError("wrapped")),
        KeyboardInterrupt(),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("out of resource: shared memory, Required: 294912, Hardware limit: 232448"),
        ValueError("out of memory"),
        RuntimeError("DataLoader worker is out of memory."),
        unrelated(CUDA, KeyError("a defect")),
    ],
    ids=repr,
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
