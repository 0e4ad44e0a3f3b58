"""A recorder of torch operations and the sizes of their results, for tests that count copies."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = {"clone", "copy", "copy_", "_to_copy", "contiguous", "flip", "stack", "cat", "index", "index_select"}


class Operations(TorchDispatchMode):
    """Context that adds the name of each operation and the number of elements of its result to `done`."""

    def __init__(self):
        super().__init__()
        self.done: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.done.append((function.overloadpacket.__name__, result.numel() if torch.is_tensor(result) else 0))
        return result

    def names(self, least: int) -> list[str]:
        """Return the names of the operations whose result has at least `least` elements."""
        return [name for name, elements in self.done if elements >= least]
