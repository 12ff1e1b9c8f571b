"""Where only plain PyTorch gives right results."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a functorch transform (vmap, func.grad, jvp, …) or forward-mode differentiation is running.

    An `autograd.Function` around an opaque op gives an error there, and silently wrong gradients when compiled
    (pytorch #193279), so the public functions answer with their eager version.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def traced() -> bool:
    """Whether this code is traced (compiled, exported, by `make_fx` or `torch.jit.trace`): values are an example's."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return torch.compiler.is_compiling() or torch.jit.is_tracing() or get_proxy_mode() is not None


def readable(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read: not of meta and fake tensors, nor under `vmap` and `functionalize`."""
    from torch._subclasses.fake_tensor import is_fake

    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return not (tensor.is_meta or is_fake(tensor) or functorch.is_functorch_wrapped_tensor(tensor))


def dense(gradient: Tensor | None) -> Tensor | None:
    """An upstream gradient as kernels and formulas take it: `F.embedding(z, sparse=True)` sends a sparse one."""
    # Dynamo refuses to look at a layout here.
    if gradient is None or torch.compiler.is_compiling() or gradient.layout is torch.strided:
        return gradient
    return gradient.to_dense()


def with_dense_gradients(result: Tensor) -> Tensor:
    """What plain PyTorch computed, so that its formulas meet dense gradients alone. Neither compiled code nor transforms
    send others."""
    if not result.requires_grad or torch.compiler.is_compiling() or active():
        return result
    return _DenseGradients.apply(result)


class _DenseGradients(torch.autograd.Function):
    """The identity; a hook may not change a gradient's layout."""

    @staticmethod
    def forward(ctx, result):
        return result.detach()  # unlike a view, it may be modified in place

    @staticmethod
    def backward(ctx, grad):
        return dense(grad)


def only_eager(upstream: Tensor | None) -> bool:
    """Whether a backward pass must take the eager formulas: for gradients of gradients, and within `vmap` or by
    `is_grads_batched` for several upstream gradients at once."""
    if torch.is_grad_enabled():
        return True
    if upstream is None or torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(upstream)
