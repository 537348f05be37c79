"""What a method's row says of the files of weights that its authors published."""

from __future__ import annotations

from dataclasses import dataclass

from lifedeploy.errors import UsageError
from lifedeploy.text import quoted


@dataclass(frozen=True, kw_only=True)
class Published:
    """How files of the authors are told; their backbone has timm's names.

    A method that has parameters of its own is told by these alone. One that has none is told by any of ``arguments``.
    The arguments that a file has are shown, whatever it is told by.

    Raises:
        UsageError: they are no words.
    """

    # What names of the method's own parameters begin with: ``score_predictor.`` The reducer calls them the same.
    parameters: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()  # of the training script, that no other script has

    def __post_init__(self) -> None:
        for what, words in (("parameters", self.parameters), ("arguments", self.arguments)):
            if not isinstance(words, tuple) or not all(isinstance(word, str) and word for word in words):
                raise UsageError(f"{what} of published files cannot be {quoted(words)}; expected a tuple of words")
