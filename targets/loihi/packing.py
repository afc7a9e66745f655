"""Slices of populations on cores, first-fit, within what a core holds of each resource and of different constants."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spikeport.core.geometry import Pair
from spikeport.targets.loihi.chips import Chip, Usage
from spikeport.targets.loihi.program import Population

#: Cores that are looked at together for one that has room.
WINDOW = 64


@dataclass(frozen=True)
class Slice:
    """The neurons of ``population`` in channels [first, end) at pixels [first, end), row by row."""

    population: str
    channels: Pair
    pixels: Pair
    usage: Usage


@dataclass(frozen=True)
class Core:
    """What lies on one core, and what all of it takes there."""

    slices: tuple[Slice, ...]
    usage: Usage

    def utilisation(self, chip: Chip) -> dict[str, float | None]:
        """Resource -> share of the core's; None where the limit is not public."""
        return {
            name: None if limit is None else getattr(self.usage, name) / limit for name, limit in chip.limits.items()
        }


@dataclass(frozen=True)
class Profiles:
    """Different constants of neurons, and how many a core holds (None: not known to be limited)."""

    thresholds: frozenset[int]
    decays: frozenset[Pair]
    most: tuple[int | None, int | None]

    @property
    def fit(self) -> bool:
        kinds = zip((self.thresholds, self.decays), self.most, strict=True)
        return all(limit is None or len(values) <= limit for values, limit in kinds)

    def __or__(self, other: "Profiles") -> "Profiles":
        return Profiles(self.thresholds | other.thresholds, self.decays | other.decays, self.most)


NO_PROFILES = Profiles(frozenset(), frozenset(), (None, None))


def profiles_of(chip: Chip, population: Population, channels: Pair) -> Profiles:
    """What a range of a population's channels needs; nothing on a chip that is not known to be limited."""
    if chip.thresholds is None and chip.decays is None:
        return NO_PROFILES
    registers = (population.vth, population.du, population.dv)
    vth, du, dv = (np.broadcast_to(r, population.shape[0])[slice(*channels)].tolist() for r in registers)
    return Profiles(frozenset(vth), frozenset(zip(du, dv, strict=True)), (chip.thresholds, chip.decays))


def first_fit(
    slices: list[Slice], allowed: np.ndarray, profiles: Callable[[Slice], Profiles] | None = None
) -> tuple[Core, ...]:
    """Slices on cores, the largest first; cores and their slices then in the program's order.

    Args:
        profiles: which constants a slice needs.
    """
    wanted = np.array([piece.usage for piece in slices], float)
    used = np.zeros_like(wanted)
    held: list[list[int]] = []
    # Cores only fill up: where a slice did not fit, no later one like it does.
    start: dict[tuple[Usage, Profiles], int] = {}
    constants: list[Profiles] = []
    for i in np.argsort(-(wanted / allowed).max(1), kind="stable").tolist():
        needed = profiles(slices[i]) if profiles else NO_PROFILES
        core = start.get((slices[i].usage, needed), 0)
        while core < len(held):
            fits = (used[core : min(core + WINDOW, len(held))] + wanted[i] <= allowed).all(1)
            room = (core + int(k) for k in fits.nonzero()[0] if (constants[core + k] | needed).fit)
            if (found := next(room, None)) is not None:
                core = found
                break
            core += len(fits)
        else:
            held.append([])
            constants.append(needed)
        start[slices[i].usage, needed] = core
        held[core].append(i)
        used[core] += wanted[i]
        constants[core] |= needed
    filled = sorted((sorted(pieces), total) for pieces, total in zip(held, used.tolist(), strict=False))
    return tuple(Core(tuple(slices[i] for i in pieces), Usage(*map(int, total))) for pieces, total in filled)
