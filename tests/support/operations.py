"""Records of the operations that PyTorch runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Mode that records the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


class RefusesHostCopies(TorchDispatchMode):
    """Mode that fails if a tensor made of Python numbers is copied into another tensor.

    If the other tensor is on a GPU, the host waits for it, which a CUDA graph cannot hold. A CPU runs the same
    operations, so this needs no GPU.
    """

    def __init__(self):
        super().__init__()
        self._lifted = []  # kept, so that no other tensor gets their memory

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            assert not any(map(source.is_set_to, self._lifted)), "a tensor made of Python numbers is copied"
        result = function(*args, **(kwargs or {}))
        if name == "lift_fresh":
            self._lifted.append(result)
        return result
