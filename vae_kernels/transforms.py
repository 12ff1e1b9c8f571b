"""Detection of cases in which only the eager formulas are correct, and conversion of gradients to dense ones."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """True within a functorch transform (vmap, func.grad, jvp, …) or forward-mode differentiation.

    An `autograd.Function` around an opaque op raises an error there, and when compiled it gives wrong gradients
    silently (pytorch #193279). The public functions use the eager formulas instead.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def traced() -> bool:
    """True if this code is traced (compile, export, `make_fx`, `torch.jit.trace`): values are only examples there."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return torch.compiler.is_compiling() or torch.jit.is_tracing() or get_proxy_mode() is not None


def readable(tensor: Tensor) -> bool:
    """True if the tensor's values can be read: not for meta and fake tensors, nor under `vmap` and `functionalize`."""
    from torch._subclasses.fake_tensor import is_fake

    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return not (tensor.is_meta or is_fake(tensor) or functorch.is_functorch_wrapped_tensor(tensor))


def dense(gradient: Tensor | None) -> Tensor | None:
    """The upstream gradient, dense for kernels and formulas. `F.embedding(z, sparse=True)` sends a sparse one."""
    # Dynamo cannot trace `gradient.layout` here.
    if gradient is None or torch.compiler.is_compiling() or gradient.layout is torch.strided:
        return gradient
    return gradient.to_dense()


def with_dense_gradients(result: Tensor) -> Tensor:
    """An eager result with a node behind it that makes upstream gradients dense. Compiled code and transforms send
    dense gradients only, and need no such node."""
    if not result.requires_grad or torch.compiler.is_compiling() or active():
        return result
    return _DenseGradients.apply(result)


class _DenseGradients(torch.autograd.Function):
    """Identity, with a dense gradient. A hook cannot do this: it may not change a gradient's layout."""

    @staticmethod
    def forward(ctx, result):
        return result.detach()  # unlike a view, it may be modified in place

    @staticmethod
    def backward(ctx, grad):
        return dense(grad)


def only_eager(upstream: Tensor | None) -> bool:
    """True if a backward pass must use the eager formulas: for gradients of gradients, and for several upstream
    gradients at once, which come from `vmap` or `is_grads_batched`."""
    if torch.is_grad_enabled():
        return True
    if upstream is None or torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(upstream)
