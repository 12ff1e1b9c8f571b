"""Prints digests of many results of the C++ kernels as JSON: with one thread, and with two. Names the instruction set
too.

    python digests.py SUBJECT

Subjects: `library` stands for the noise, the samples and the latent step in its other forms, `categorical` and
`multinomial` for themselves.
"""

import hashlib
import json
import sys
from collections.abc import Iterator

import categorical_cases
import latent_cases
import multinomial_cases
import torch
from cases import Case
from samples import BF16, BROADCAST, F16, F32, F64, LAID_OUT, OPS, SHAPED, VALUES, sample
from torch import Tensor

import vae_kernels as vk


def digest(tensor: Tensor) -> str:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def noise() -> Iterator[tuple[str, Tensor]]:
    for dtype in (F64, F32, BF16, F16):
        for shape in ((1, 1), (7, 20), (300, 1000), (3, 100001), (1, 400003), (70001, 3)):
            zero = torch.zeros((), dtype=dtype).expand(shape)
            yield f"noise {dtype} {shape}", vk.reparameterize_kl(zero, zero, seed=5)[0]


def library_cases() -> list[Case]:
    shapes = ((300, 1000), (3, 100001), (1, 200003), (70001, 3))
    large = [sample(op, shape, dtypes=dtype) for op in OPS for dtype in (F64, F32, BF16) for shape in shapes]
    large += [
        sample("gaussian", shape, parameter=parameter)
        for shape in shapes
        if shape != (3, 100001)
        for parameter in ((), shape[1:])
    ]
    return [*VALUES[::3], *SHAPED, *LAID_OUT[::3], *BROADCAST, *large, *latent_cases.CASES[::3]]


def categorical() -> list[Case]:
    large = [
        categorical_cases.CategoricalCase(shape, dtype)
        for dtype in (F64, F32, BF16)
        for shape in ((64, 50, 9), (8, 1000, 40), (4, 7, 9000))
    ]
    return [case for case in [*categorical_cases.CASES, *large] if case.batch_dims]


def multinomial() -> list[Case]:
    large = [
        multinomial_cases.MultinomialCase(shape, dtype, x_dtype=dtype)
        for dtype in (F64, F32, BF16)
        for shape in ((64, 50, 9), (8, 1000, 40), (4, 7, 9000))
    ]
    return [case for case in [*multinomial_cases.CASES, *large] if case.batch_dims]


def main(subject: str) -> None:
    vk.use_backend("cpp")
    cases = {"library": library_cases, "categorical": categorical, "multinomial": multinomial}[subject]()
    inputs = [(case, case.make()) for case in cases]
    found = {"isa": torch.ops.vae_kernels_cpp.isa()}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found[threads] = {name: digest(t) for name, t in noise()} if subject == "library" else {}
        for case, tensors in inputs:
            for name, tensor in case.results(tensors=tensors).items():
                found[threads][f"{case} {name}"] = digest(tensor)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
