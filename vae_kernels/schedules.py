"""Schedules for beta or the capacity during training."""


def linear_schedule(step: int, steps: int, *, start: float = 0.0, stop: float = 1.0) -> float:
    """Rise linearly from `start` at step 0 to `stop` at step `steps`, then stay at `stop`.

        start + (stop − start) · min(step / steps, 1)

    Args:
        step: steps done, from 0.
        steps: the number of steps until `stop` is reached; 0 for `stop` at once.

    Raises:
        ValueError: `step` or `steps` is negative.

    Sources: Bowman et al. 2016, "Generating Sentences from a Continuous Space", section 3.1, and Sønderby et al. 2016,
    "Ladder Variational Autoencoders", section 2.3, for beta; Burgess et al. 2018 for the capacity.

    >>> import vae_kernels as vk
    >>> [vk.linear_schedule(step, 4) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _not_negative("step", step)
    _not_negative("steps", steps)
    return stop if step >= steps else start + (stop - start) * (step / steps)


def cyclical_schedule(
    step: int, steps: int, *, cycles: int = 4, ratio: float = 0.5, start: float = 0.0, stop: float = 1.0
) -> float:
    """Repeat `cycles` equal cycles: each rises linearly for the fraction `ratio` of its steps, then stays at `stop`.

        start + (stop − start) · min(τ / ratio, 1),    τ = (step mod T) / T,    T = steps / cycles

    From step `steps` on the value is `stop`.

    Args:
        step: steps done, from 0.
        steps: the number of steps of the whole training.
        cycles: M, at least 1.
        ratio: R, the rising fraction of a cycle, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    Source: Fu et al. 2019, "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing", section 4.1.
    M = 4 and R = ½ are the paper's defaults.

    >>> import vae_kernels as vk
    >>> [vk.cyclical_schedule(step, 8, cycles=2) for step in range(9)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """
    _not_negative("step", step)
    _not_negative("steps", steps)
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    if step >= steps:
        return stop
    # Integer arithmetic makes each cycle begin exactly at its step.
    position = (step * cycles) % steps / steps
    return start + (stop - start) * min(position / ratio, 1.0)


def _not_negative(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
