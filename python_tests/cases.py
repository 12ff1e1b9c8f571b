"""The protocol of all cases: a case is one call of a public function, and knows what its results are compared with."""

import zlib
from collections.abc import Callable

import torch
from error_rule import Expected, check
from torch import Tensor

import vae_kernels as vk

Outputs = Tensor | tuple[Tensor, ...]


class Case:
    """One call. All that it draws at random depends on its name alone, `str(case)`."""

    @property
    def output_dtypes(self) -> dict[str, torch.dtype]:
        """The outputs by name, and the dtype that each is promised to have."""
        raise NotImplementedError

    @property
    def function(self) -> Callable[..., Outputs]:
        """The public function with the settings of this call: a function of tensors alone."""
        raise NotImplementedError

    def make(self) -> dict[str, Tensor]:
        """The tensors by name, the same ones every time; those that can need a gradient do."""
        raise NotImplementedError

    def call(self, tensors: dict[str, Tensor], function: Callable[..., Outputs] | None = None) -> dict[str, Tensor]:
        """The outputs by name; `function` may be another form of the public one, such as a compiled one."""
        return self.named((function or self.function)(*tensors.values()))

    def plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of what people write, in the dtypes of the tensors."""
        raise NotImplementedError

    def expected(self, of_eager: bool = False) -> dict[str, Expected]:
        """The true outputs and gradients. Their magnitudes are those of the kernels' terms, or of eager's."""
        raise NotImplementedError

    def named(self, outputs: Outputs) -> dict[str, Tensor]:
        """The outputs of `function` by name."""
        return dict(zip(self.output_dtypes, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    def generator(self, stream: int = 0) -> torch.Generator:
        """A generator that is seeded by the case's name and the number of the stream."""
        return torch.Generator().manual_seed(zlib.crc32(str(self).encode()) + stream)

    def upstream(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Random gradients of the outputs. They are rounded to the promised dtypes, and have the dtypes of the
        outputs."""
        generator, dtypes = self.generator(1), self.output_dtypes
        return {
            name: torch.randn(o.shape, generator=generator, dtype=torch.float64).to(dtypes[name]).to(o)
            for name, o in outputs.items()
        }

    def results(
        self,
        call: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        tensors: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs, and their gradients as `grad <name>` under the upstream gradients of this case. `call` and
        `tensors` are the case's own unless others are given."""
        tensors = self.make() if tensors is None else tensors
        outputs = (call or self.call)(tensors)
        upstream = self.upstream(outputs)
        wanted = {name: t for name, t in tensors.items() if t.requires_grad}
        gradients = torch.autograd.grad(tuple(outputs.values()), tuple(wanted.values()), tuple(upstream.values()))
        return outputs | {f"grad {name}": g for name, g in zip(wanted, gradients, strict=True)}

    def plain_results(self) -> dict[str, Tensor]:
        """The results of what people write, the outputs in the promised dtypes."""
        dtypes = self.output_dtypes
        return self.results(lambda tensors: {k: v.to(dtypes[k]) for k, v in self.plain(tensors).items()})

    def yardstick(self, backend: str) -> dict[str, Tensor]:
        """The results whose errors a backend's are compared with: eager's, and for eager those of what people write."""
        if backend == "eager":
            return self.plain_results()
        with vk.use_backend("eager"):
            return self.results()

    def check_error_rule(self, backend: str) -> None:
        """Checks the results of `backend`, which must be in use."""
        check(self.results(), self.yardstick(backend), self.expected(of_eager=backend == "eager"))

    def of_inputs(self) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """A function of those tensors alone that need a gradient, and these tensors."""
        tensors = self.make()
        names = [name for name, t in tensors.items() if t.requires_grad]

        def function(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.call(tensors | dict(zip(names, inputs, strict=True))).values())

        return function, tuple(tensors[name] for name in names)
