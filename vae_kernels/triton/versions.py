"""A check of the installed versions. The import raises ImportError with the reason if they are not supported."""

import numpy as np
import triton

OLDEST = (3, 6)


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


if _major_minor(triton.__version__) < OLDEST:
    raise ImportError(f"triton {triton.__version__} is installed, 3.6 or later is needed")
if (
    triton.knobs.runtime.interpret
    and _major_minor(triton.__version__) == (3, 6)
    and _major_minor(np.__version__) > (2, 3)
):
    raise ImportError(
        f"the interpreter of triton {triton.__version__} needs a numpy before 2.4, {np.__version__} is installed"
    )
