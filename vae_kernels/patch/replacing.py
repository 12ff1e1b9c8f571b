"""Replacement and restoration of the methods of another package's classes."""

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import NamedTuple

from .. import extras

_MISSING = object()

# One lock for all packages, because classes belong to the process.
lock = threading.RLock()


class Known(NamedTuple):
    """A function that a replacement relies on, and the digests of its source in all versions that were checked."""

    name: str
    function: Callable
    digests: tuple[str, ...]


class Replacement(NamedTuple):
    """One attribute of a class, and its value while a patch is in force."""

    owner: type
    name: str
    function: Callable
    by: str  # our public function that computes the result

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name} by {self.by}"


class Target(NamedTuple):
    """All replacements in a package, and a function that must be called before the originals are restored."""

    replacements: tuple[Replacement, ...]
    before_undo: Callable[[], None] = lambda: None


def digest(function: Callable) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a function's source; an empty string if it has no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def require(module: str, distribution: str) -> str:
    """Import the package. Returns its version."""
    extras.require(module, distribution)
    return metadata.version(distribution)


def refuse_unknown(distribution: str, version: str, known_versions: str, known: Iterable[Known]) -> None:
    """Refuse versions whose code was not checked.

    Raises:
        RuntimeError: the digest of a function's source is not one of those that were checked.
    """
    changed = [name for name, function, digests in known if digest(function) not in digests]
    if changed:
        raise RuntimeError(
            f"{distribution} {version} cannot be patched: {', '.join(changed)} is not the code that vae_kernels replaces, "
            f"which is that of {distribution} {known_versions}. Install one of these, or a newer vae_kernels, or do without "
            "the patch"
        )


class Package:
    """The state of one package's classes: the original methods, and the patches in force, oldest first."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, ""
        self.target: Target | None = None
        self.originals: dict[tuple[type, str], object] = {}
        self.in_force: list[Patch] = []

    def add(self, patch: "Patch", load: Callable[[], tuple[str, Target]]) -> None:
        with lock:
            if not self.in_force:
                self.version, self.target = load()
                for owner, name, function, _ in self.target.replacements:
                    self.originals[owner, name] = vars(owner).get(name, _MISSING)
                    setattr(owner, name, function)
            self.in_force.append(patch)

    def remove(self, patch: "Patch") -> None:
        with lock:
            if patch not in self.in_force:
                return
            if len(self.in_force) == 1:
                self._restore()
            self.in_force.remove(patch)

    def _restore(self) -> None:
        for owner, name, function, _ in self.target.replacements:
            if (found := vars(owner).get(name)) is not function:
                raise RuntimeError(
                    f"{owner.__name__}.{name} cannot be put back: after the patch it was replaced again, by {found!r}. "
                    "Undo that first"
                )
        self.target.before_undo()
        for (owner, name), original in self.originals.items():
            if original is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self.originals.clear()


class Patch:
    """A patch of a package. It is in force from the call that made it until `undo()`, or until the end of a `with`
    block.

    Patches of one package are counted: the first one replaces the methods, and the end of the last one restores them.
    They apply to the process, not to a thread.
    """

    def __init__(self, package: Package, load: Callable[[], tuple[str, Target]], **options: object) -> None:
        self._package, self._load, self.options = package, load, options
        package.add(self, load)
        self.version = package.version
        self.replaced = tuple(map(str, package.target.replacements))

    @property
    def active(self) -> bool:
        """True if this patch has not been undone."""
        return self in self._package.in_force

    def undo(self) -> None:
        """End this patch. The end of the last patch restores the published methods. A second call does nothing.

        Raises:
            RuntimeError: a method was replaced again after the patch, so that the original cannot be restored.
        """
        self._package.remove(self)

    def __enter__(self) -> "Patch":
        with lock:
            if not self.active:
                self._package.add(self, self._load)
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "in force" if self.active else "undone"
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"<patch of {self._package.name} {self.version}{options}, {state}: {'; '.join(self.replaced)}>"
