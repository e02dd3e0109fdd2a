"""A cache for the vision tower's hidden states of teachers' pictures, which recur from step to step."""

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


class TeacherCache:
    """A least-recently-used cache of at most `gib` GiB, from the key of a picture to its hidden states.

    Cached states depend only on the picture and on frozen weights. So an empty cache after a resume, or a small one,
    costs time but changes no result.
    """

    def __init__(self, gib: float):
        self.max_bytes = int(gib * 2**30)
        self.num_bytes = 0
        self._states: OrderedDict[bytes, Tensor] = OrderedDict()
        self._num_requests = self._num_hits = 0

    def states(
        self, key: bytes, compute: Callable[[], Float[Tensor, "merged merge width"]]
    ) -> Float[Tensor, "merged merge width"]:
        """Return the hidden states of the picture `key`. Call `compute` if they are not cached."""
        self._num_requests += 1
        if key in self._states:
            self._num_hits += 1
            self._states.move_to_end(key)
            return self._states[key]
        states = compute()
        self._keep(key, states)
        return states

    def pop_hit_rate(self) -> dict[str, float]:
        """Return the hit rate since the last call, or an empty dict if there were no requests."""
        rate = {"teacher_cache_hit_rate": self._num_hits / self._num_requests} if self._num_requests else {}
        self._num_requests = self._num_hits = 0
        return rate

    def _keep(self, key: bytes, states: Tensor) -> None:
        if states.nbytes > self.max_bytes:
            return
        assert not states.requires_grad, "cached states would become stale at the next update of the vision tower"
        while self.num_bytes + states.nbytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self.num_bytes -= oldest.nbytes
        self._states[key] = states
        self.num_bytes += states.nbytes
