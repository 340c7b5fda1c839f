"""Names of detectors, each a plain function that builds one."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from recollect.recipe import Recipe

    Build = TypeVar("Build", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Published:
    """A number its authors report; never measured by us. `ap` is COCO val2017 box AP in percent."""

    ap: float
    source: str


@dataclass(frozen=True)
class ModelEntry:
    """A registered detector: `build(num_classes=..., **options)` makes it, `recipe()` says how it is trained."""

    name: str
    build: Callable[..., nn.Module]
    recipe: Callable[[], Recipe]
    family: str
    paper: str
    staged: bool  # has a staged query decoder, so recollection applies
    published: Published | None = None
    like: Callable[..., nn.Module] | None = None  # the entry function whose further options this one passes on
    masks: bool = False  # learns instance masks, so its targets must hold some

    @property
    def recollects(self) -> bool:
        """Whether this entry trains with recollection unless told otherwise."""
        return self.name.startswith("sqr_")

    @property
    def options(self) -> list[str]:
        """Names of the arguments that `create_model` takes for this detector."""
        names: dict[str, None] = {}
        for function in (self.build, self.like):
            if function is not None:
                parameters = inspect.signature(function).parameters.values()
                names |= {p.name: None for p in parameters if p.kind != p.VAR_KEYWORD}
        return list(names)


_ENTRIES: dict[str, ModelEntry] = {}


def _entries() -> dict[str, ModelEntry]:
    """All entries; the detectors, and torch with them, are imported only once somebody asks."""
    importlib.import_module("recollect.detectors")
    return _ENTRIES


def register(
    recipe: Callable[[], Recipe],
    *,
    family: str,
    paper: str,
    staged: bool = False,
    published: Published | None = None,
    like: Callable[..., nn.Module] | None = None,
    masks: bool = False,
) -> Callable[[Build], Build]:
    """Register an entry function under its own name; a second function of that name is refused."""

    def add(build: Build) -> Build:
        name = build.__name__
        if name in _ENTRIES:
            raise ValueError(f"a detector named {name!r} is already registered, by {_ENTRIES[name].build.__module__}")
        _ENTRIES[name] = ModelEntry(name, build, recipe, family, paper, staged, published, like, masks)
        return build

    return add


def model_entry(name: str) -> ModelEntry:
    """The entry of that name; ValueError with near names if there is none."""
    if name in _entries():
        return _ENTRIES[name]
    near = difflib.get_close_matches(name, _ENTRIES, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`recollect models` lists them"
    raise ValueError(f"there is no detector named {name!r}: {hint}")


def list_models(pattern: str = "*") -> list[str]:
    """Names of registered detectors that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(_entries(), pattern))


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a registered detector: `create_model("sqr_adamixer_r50", num_classes=3)`.

    options are the arguments of the entry function of that name (`num_classes`, `backbone`, ...).
    ValueError for an unknown name, with near ones, or an option that the detector does not have.
    """
    entry = model_entry(name)
    for option in options:
        if option not in entry.options:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(entry.options)}")
    return entry.build(**options)
