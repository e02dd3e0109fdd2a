"""The engine for one process, or for several with DistributedDataParallel (DDP)."""

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bbu_train.errors import InputError, listed
from bbu_train.runtime import distributed
from bbu_train.runtime.host_copy import copy_to_host
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Losses, Outputs

PRECISIONS = ("fp32", "bf16", "pure_bf16")


class ModelWithCriterion(nn.Module):
    """The model and its criterion as one module, so that DDP sees the whole forward pass.

    The criterion calls the model again: the caption loss is computed after the matching.
    """

    def __init__(self, model: nn.Module, criterion: Callable[[Outputs, Batch], Losses]) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Batch) -> Losses:
        return self.criterion(self.model(batch), batch)


def _wrap(module: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


class DdpEngine:
    """Forward, backward and update of one step.

    model                   the model
    criterion               computes loss sums from the model's outputs
    optimizer               must be fused: it reads `grad_scale` and `found_inf` on the device
    groups                  parameters of each learning-rate group, for the gradient norms
    device                  of the model
    precision               "fp32", "bf16" or "pure_bf16". The last two compute under bfloat16 autocast with bfloat16
                            weights; with "bf16" the optimizer also keeps float32 master weights
    num_micro_batches       parts of a step on each rank
    gradient_checkpointing  a choice that the model understands
    max_grad_norm           limit of the gradient norm over all groups; None does not clip
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Outputs, Batch], Losses],
        optimizer: torch.optim.Optimizer,
        groups: dict[str, list[nn.Parameter]],
        device: torch.device,
        precision: str,
        num_micro_batches: int,
        gradient_checkpointing: str,
        max_grad_norm: float | None,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"engine.precision={precision} is unknown; take one of {', '.join(PRECISIONS)}.")
        assert getattr(optimizer, "_step_supports_amp_scaling", False), "the optimizer is not fused"
        self.model, self.gradient_checkpointing = model, "none"
        self.lay_out(gradient_checkpointing, num_micro_batches)
        self.is_distributed = distributed.world_size() > 1
        self.module = ModelWithCriterion(model, criterion)
        if self.is_distributed:
            self.module = _wrap(self.module)
        self.is_reducer_armed = False
        self.optimizer = optimizer
        self.groups = groups
        self.device = device
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.objective_sum = torch.zeros((), device=device)

    def lay_out(self, gradient_checkpointing: str, num_micro_batches: int) -> None:
        """Do the next steps in this layout. It changes their results by rounding only."""
        if num_micro_batches < 1:
            raise InputError(f"engine.num_micro_batches is {num_micro_batches}; it must be at least 1.")
        if gradient_checkpointing != self.gradient_checkpointing:
            self.model.set_activation_checkpointing(gradient_checkpointing)
        self.gradient_checkpointing = gradient_checkpointing
        self.num_micro_batches = num_micro_batches

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "fp32")

    def __call__(self, batch: Batch) -> Losses:
        with self.autocast():
            return self.module(batch)

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Return the context for forward and backward of a micro-batch: ranks exchange gradients only at the last."""
        self.is_reducer_armed = self.is_distributed and last
        return self.module.no_sync() if self.is_distributed and not last else nullcontext()

    def backward(self, objective: Tensor) -> None:
        """Add the gradients of one micro-batch's share of the step's objective."""
        self.objective_sum += objective.detach()
        # The ranks' gradients must be added, but DDP averages them: undo its division.
        (objective * distributed.world_size()).backward()

    def step(self, sample_ids: list[str]) -> dict[str, float]:
        """Clip the gradients and update the weights. Return each group's gradient norm before clipping, and "total".

        Raises InputError if the objective or a gradient is not finite on any rank; then no rank has changed a weight.
        """
        gradients = {name: [p.grad for p in group if p.grad is not None] for name, group in self.groups.items()}
        norms = {name: self._norm(group) for name, group in gradients.items()}
        total_norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        values = torch.stack([*norms.values(), total_norm, distributed.sum_over_ranks(self.objective_sum)])
        arrived = copy_to_host(values)
        self._update(total_norm, is_non_finite=~values.isfinite().all())
        # The host waits for the gradients only, and prepares the next step while the device updates the weights.
        self.is_reducer_armed = False
        report = dict(zip([*norms, "total", "objective"], arrived().tolist(), strict=True))
        non_finite = [name for name, value in report.items() if not math.isfinite(value)]
        if non_finite:
            raise InputError(
                f"The step is not finite ({', '.join(non_finite)}), so no weight was changed and the run stops. "
                f"Its samples: {listed(sample_ids)}. Look at them, or lower the learning rates; "
                "the last checkpoint is good."
            )
        del report["objective"]
        return report

    def discard(self) -> None:
        """Forget the micro-batches since the last step, so that the step can be attempted again.

        If some were already exchanged between the ranks, all ranks call this together.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.objective_sum.zero_()
        if self.is_reducer_armed:  # a backward pass that ended early leaves it waiting for the other gradients
            module, self.module = self.module.module, None
            gc.collect()  # the old reducer takes its hooks off the parameters when it is destroyed
            self.module = _wrap(module)
            self.is_reducer_armed = False

    def close(self) -> None:
        """Release the model while the ranks are still connected. No step can follow.

        If DDP is destroyed after its communication threads, the process aborts at exit, so it must be released now.
        """
        self.module = self.model = None
        gc.collect()

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm in float32. torch would return that of bfloat16 gradients in bfloat16, with three digits."""
        norms: list[Tensor] = []
        for dtype in dict.fromkeys(
            grad.dtype for grad in gradients
        ):  # mixed dtypes would take a kernel for each tensor
            norms += torch._foreach_norm([grad for grad in gradients if grad.dtype == dtype], 2, dtype=torch.float32)
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.device)

    def _update(self, total_norm: Tensor, is_non_finite: Tensor) -> None:
        """Make the optimizer's step with clipped gradients, or none if `is_non_finite`; reset gradients and objective.

        A fused optimizer reads the divisor of the gradients and `found_inf` on the device, as it does for torch's
        GradScaler. So the host need not wait for the decision, and clipping needs no pass over the gradients.
        """
        ratio = torch.ones_like(total_norm) if self.max_grad_norm is None else total_norm / self.max_grad_norm
        self.optimizer.grad_scale, self.optimizer.found_inf = ratio.clamp(min=1), is_non_finite.float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective_sum.zero_()
