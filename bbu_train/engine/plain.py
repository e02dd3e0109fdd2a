"""One process, or DistributedDataParallel when several were started."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bbu_train import distributed
from bbu_train.errors import InputError
from bbu_train.types import Batch, Losses


class Supervised(nn.Module):
    """The model and its criterion as one module, so that DistributedDataParallel sees all of the forward pass:
    the caption loss needs the matching, and both call the model again."""

    def __init__(self, model: nn.Module, criterion):
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Batch) -> Losses:
        return self.criterion(self.model(batch), batch)


class Plain:
    """Forward, backward and update of one step.

    `bf16` computes in bfloat16 by autocast; weights, gradients and moments stay float32. `groups` names the
    parameters of each learning-rate group, for the norms. `max_grad_norm` of None does not clip.
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
        gradient_checkpointing: bool,
        max_grad_norm: float | None,
    ):
        if precision not in ("bf16", "fp32"):
            raise InputError(f"engine.precision={precision} is unknown; take bf16 or fp32.")
        if num_micro_batches < 1:
            raise InputError(f"engine.num_micro_batches is {num_micro_batches}; it must be at least 1.")
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
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
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

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
        # The norm of a group that no loss reaches is a zero on the CPU, wherever the others are.
        norms = {name: torch.nn.utils.get_total_norm(its).to(self.device) for name, its in gradients.items()}
        total_norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        # One transfer to the host, which waits for the device.
        values = torch.stack([*norms.values(), total_norm, distributed.sum_over_ranks(self.total)]).tolist()
        report = dict(zip([*norms, "total", "objective"], values, strict=True))
        self.total.zero_()
        broken = [name for name, value in report.items() if not abs(value) < float("inf")]
        if broken:
            self.optimizer.zero_grad(set_to_none=True)
            raise InputError(
                f"The step is not finite ({', '.join(broken)}), so no weight was changed and the run stops. "
                f"Its samples: {', '.join(sample_ids)}. Look at them, or lower the learning rates; "
                "the last checkpoint is good."
            )
        if self.max_grad_norm is not None:
            parameters = [parameter for group in self.groups.values() for parameter in group]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, total_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        del report["objective"]
        return report
