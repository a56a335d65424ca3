"""A second device for a machine that has none: its tensors compute on the CPU, but mix with the CPU's own no more."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

# A device that torch knows everywhere, and on which nothing could be computed without FarDevice.
FAR = torch.device("meta")


class FarTensor(torch.Tensor):
    """A tensor that says it is on FAR; ``near`` holds its values."""

    def __new__(cls, near):
        sizes = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, near.size(), **sizes, dtype=near.dtype, device=FAR)

    def __init__(self, near):
        self.near = near

    def tolist(self):
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        raise AssertionError(f"{operator} outside of FarDevice")


class FarDevice(TorchDispatchMode):
    """Inside it ``.to(FAR)`` and ``.cpu()`` move tensors; an operator on both devices raises, as CUDA's do.

    moved: how many tensors were moved to FAR.
    """

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        far = any(isinstance(t, FarTensor) for t in tensors)
        if operator is torch.ops.aten._to_copy.default:
            target = kwargs.get("device") or args[0].device
            self.moved += target == FAR and not far
            far = target == FAR
        elif far and any(t.dim() for t in tensors if not isinstance(t, FarTensor)):
            raise RuntimeError(f"{operator}: expected all tensors to be on the same device")
        else:
            far = far or kwargs.get("device") == FAR
        if kwargs.get("device") == FAR:
            kwargs["device"] = torch.device("cpu")
        inner = tree_map_only(FarTensor, lambda t: t.near, (args, kwargs))
        found = operator(*inner[0], **inner[1])
        if not far:
            return found
        found = tree_map_only(torch.Tensor, FarTensor, found)
        return return_and_correct_aliasing(operator, args, kwargs, found)
