"""What torch's operations were and how large their results, for tests that count copies."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = {"clone", "copy", "copy_", "_to_copy", "contiguous", "flip", "stack", "cat", "index", "index_select"}


class Operations(TorchDispatchMode):
    """Within it, each operation's name, with the number of elements of its result, is added to `done`."""

    def __init__(self):
        super().__init__()
        self.done: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.done.append((function.overloadpacket.__name__, found.numel() if torch.is_tensor(found) else 0))
        return found

    def names(self, least: int) -> list[str]:
        """Of the operations whose result has at least that many elements."""
        return [name for name, elements in self.done if elements >= least]
