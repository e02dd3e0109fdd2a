"""One process, or DistributedDataParallel when several were started."""

import gc
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bbu_train.errors import InputError
from bbu_train.runtime import distributed
from bbu_train.runtime.host_copy import copy_to_host
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Losses

PRECISIONS = ("fp32", "bf16", "pure_bf16")


class Supervised(nn.Module):
    """The model and its criterion as one module, so that DistributedDataParallel sees all of the forward pass:
    the caption loss needs the matching, and both call the model again."""

    def __init__(self, model: nn.Module, criterion):
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Batch) -> Losses:
        return self.criterion(self.model(batch), batch)


class DdpEngine:
    """Forward, backward and update of one step.

    `bf16` and `pure_bf16` compute in bfloat16 by autocast; of what the model holds in bfloat16 the optimizer has
    float32 masters, or none. `groups` names the parameters of each learning-rate group, for the norms. `max_grad_norm`
    of None does not clip.
    `gradient_checkpointing` other than "none" is a choice of the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion,
        optimizer: torch.optim.Optimizer,
        groups: dict[str, list[nn.Parameter]],
        device: torch.device,
        precision: str,
        num_micro_batches: int,
        gradient_checkpointing: str,
        max_grad_norm: float | None,
    ):
        if precision not in PRECISIONS:
            raise InputError(f"engine.precision={precision} is unknown; take one of {', '.join(PRECISIONS)}.")
        if num_micro_batches < 1:
            raise InputError(f"engine.num_micro_batches is {num_micro_batches}; it must be at least 1.")
        assert getattr(optimizer, "_step_supports_amp_scaling", False), "the optimizer is not fused"
        if gradient_checkpointing != "none":
            model.enable_gradient_checkpointing(gradient_checkpointing)
        self.module = Supervised(model, criterion)
        self.is_distributed = distributed.world_size() > 1
        if self.is_distributed:
            self.module = DistributedDataParallel(self.module, gradient_as_bucket_view=True)
        self.optimizer = optimizer
        self.groups = groups
        self.device = device
        self.precision = precision
        self.num_micro_batches = num_micro_batches
        self.max_grad_norm = max_grad_norm
        self.total = torch.zeros((), device=device)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "fp32")

    def __call__(self, batch: Batch) -> Losses:
        with self.autocast():
            return self.module(batch)

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of a micro-batch: ranks exchange gradients at the last one only."""
        return self.module.no_sync() if self.is_distributed and not last else nullcontext()

    def backward(self, objective: Tensor) -> None:
        self.total += objective.detach()
        # Ranks hold parts of one sum, and DistributedDataParallel averages: undo the division.
        (objective * distributed.world_size()).backward()

    def step(self, sample_ids: list[str]) -> dict[str, float]:
        """Clip, update, and give the gradient norm of each group before clipping, and of all as "total".

        If the objective or a gradient is not finite, on any rank, no weight changes and InputError says so.
        """
        gradients = {name: [p.grad for p in its if p.grad is not None] for name, its in self.groups.items()}
        norms = {name: self._norm(its) for name, its in gradients.items()}
        total_norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        values = torch.stack([*norms.values(), total_norm, distributed.sum_over_ranks(self.total)])
        arrived = copy_to_host(values)
        self._update(total_norm, is_broken=~values.isfinite().all())
        # The host waits for the gradients only, and prepares the next step while the device does the update.
        report = dict(zip([*norms, "total", "objective"], arrived().tolist(), strict=True))
        broken = [name for name, value in report.items() if not math.isfinite(value)]
        if broken:
            raise InputError(
                f"The step is not finite ({', '.join(broken)}), so no weight was changed and the run stops. "
                f"Its samples: {', '.join(sample_ids)}. Look at them, or lower the learning rates; "
                "the last checkpoint is good."
            )
        del report["objective"]
        return report

    def close(self) -> None:
        """Let the model go while the ranks are still joined. No step can follow.

        Left to the end of the interpreter, DistributedDataParallel may go after the threads that it talks through, and
        the process aborts although its work is done.
        """
        self.module = None
        gc.collect()

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """In float32, also of bfloat16 gradients, of which torch's own would be rounded to three digits."""
        each: list[Tensor] = []
        for dtype in dict.fromkeys(its.dtype for its in gradients):  # together they would take a kernel for each tensor
            each += torch._foreach_norm([its for its in gradients if its.dtype == dtype], 2, dtype=torch.float32)
        return torch.linalg.vector_norm(torch.stack(each)) if each else torch.zeros((), device=self.device)

    def _update(self, total_norm: Tensor, is_broken: Tensor) -> None:
        """The optimizer's step, unless `is_broken`, on gradients divided by how far their norm is above the limit.

        A fused optimizer takes both from the device, as it does for torch's GradScaler: the host does not wait to
        decide, and the gradients are not read and written once more to be clipped.
        """
        above = torch.ones_like(total_norm) if self.max_grad_norm is None else total_norm / self.max_grad_norm
        self.optimizer.grad_scale, self.optimizer.found_inf = above.clamp(min=1), is_broken.float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.total.zero_()
