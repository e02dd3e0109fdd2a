"""What a frozen vision tower makes of teachers' pictures, kept from step to step."""

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


class TeacherCache:
    """Hidden states by the key of their picture: `gib` GiB at most, of which those go first that were used longest ago.

    What is kept depends on its picture and on frozen weights alone. So neither an empty cache after a resume nor a
    small one changes a number: they take time.
    """

    def __init__(self, gib: float):
        self.max_bytes = int(gib * 2**30)
        self.num_bytes = 0
        self._states: OrderedDict[bytes, Tensor] = OrderedDict()
        self._num_asked = self._num_found = 0

    def states(
        self, key: bytes, compute: Callable[[], Float[Tensor, "merged merge width"]]
    ) -> Float[Tensor, "merged merge width"]:
        """Those of the picture `key`; `compute` makes them if they are not here."""
        self._num_asked += 1
        if key in self._states:
            self._num_found += 1
            self._states.move_to_end(key)
            return self._states[key]
        states = compute()
        self._keep(key, states)
        return states

    def hits(self) -> dict[str, float]:
        """The share of pictures that were here, since this was last asked; nothing if there were none."""
        shares = {"teacher_cache_hits": self._num_found / self._num_asked} if self._num_asked else {}
        self._num_asked = self._num_found = 0
        return shares

    def _keep(self, key: bytes, states: Tensor) -> None:
        if states.nbytes > self.max_bytes:
            return
        assert not states.requires_grad, "what is kept would change with the next update of the vision tower"
        while self.num_bytes + states.nbytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self.num_bytes -= oldest.nbytes
        self._states[key] = states
        self.num_bytes += states.nbytes
