"""What a method's row says of the files of weights that its authors published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lifedeploy.errors import UsageError
from lifedeploy.text import quoted

LAYER = "*"  # in names: the number of a layer


@dataclass(frozen=True)
class Renamed:
    """A module of timm's that authors call otherwise: ``Renamed("blocks.*.norm1", ("norms.*",))``, weight and bias.

    Of a projection that they split, the parts follow each other in timm's order; ``rows`` says how many rows the parts
    have to each other, as many each unless told: ``Renamed("blocks.*.attn.qkv", ("qks.*.qk", "vs.*.v"), rows=(2, 1))``.

    Raises:
        UsageError: they are no such names.
    """

    timm: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = (self.timm, *self.theirs) if _are_words(self.theirs) else ()
        if not self.theirs or not _are_words(names) or len({name.count(LAYER) for name in names}) != 1:
            raise UsageError(
                f"names in published files cannot be {quoted(self.theirs)} for {quoted(self.timm)}; expected a tuple "
                f"of words, with as many {LAYER} in each"
            )
        whole = isinstance(self.rows, tuple) and all(type(count) is int and count > 0 for count in self.rows)
        if not whole or len(self.rows) not in (0, len(self.theirs)):
            raise UsageError(f"rows of {quoted(self.timm)} cannot be {quoted(self.rows)}; expected one for each part")

    @property
    def shares(self) -> tuple[int, ...]:
        """How many rows the parts have to each other."""
        return self.rows or (1,) * len(self.theirs)


@dataclass(frozen=True, kw_only=True)
class Published:
    """How files of the authors are told, and read; their backbone has timm's names, but for those ``renamed``.

    A method that has parameters of its own is told by these alone; one whose backbone has other names by these; one
    that has neither by any of ``arguments``. The arguments that a file has are shown, whatever it is told by.

    Raises:
        UsageError: they are no words, or do not go together.
    """

    # What names of the method's own parameters begin with: ``score_predictor.`` The reducer calls them the same.
    parameters: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()  # of the training script, that no other script has
    # Of those arguments the ones that are options here too, (argument, option): where they differ, that is said.
    options: tuple[tuple[str, str], ...] = ()
    renamed: tuple[Renamed, ...] = ()
    unused: tuple[str, ...] = ()  # what names of tensors begin with that inference does not use: left out, and said
    of: tuple[str, ...] = ()  # methods whose files are this one's too, as they are
    # Whether the backbone computes what it should without the method, so that others can take it: not where its head or
    # its tokens were trained to mean something else.
    backbone_alone: bool = True

    def __post_init__(self) -> None:
        for what in ("parameters", "arguments", "unused", "of"):
            words = getattr(self, what)
            if not _are_words(words):
                raise UsageError(f"{what} of published files cannot be {quoted(words)}; expected a tuple of words")
        renamed = isinstance(self.renamed, tuple) and all(isinstance(module, Renamed) for module in self.renamed)
        if not renamed or _repeats([module.timm for module in self.renamed]):
            raise UsageError("what is renamed in published files is no tuple of Renamed, or is so twice")
        if _repeats([name for module in self.renamed for name in module.theirs]):
            raise UsageError("what is renamed in published files becomes two modules")
        pairs = isinstance(self.options, tuple) and all(_are_words(pair) and len(pair) == 2 for pair in self.options)
        if not pairs or any(argument not in self.arguments for argument, _ in self.options):
            raise UsageError(
                f"options of published files cannot be {quoted(self.options)}; expected pairs of one of its arguments "
                "and an option"
            )

    @property
    def lends_backbone(self) -> bool:
        """Whether other methods can take the backbone of its files: it stands alone, and is all that is in them."""
        return self.backbone_alone and not self.parameters


def _are_words(words: Any) -> bool:
    return isinstance(words, tuple) and all(isinstance(word, str) and word for word in words)


def _repeats(words: Sequence[str]) -> bool:
    return len(set(words)) < len(words)
