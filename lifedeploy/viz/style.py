"""What pictures have in common: a method has the same colour everywhere, names are drawn as they are, and a picture is
written as a whole, the same bytes for the same numbers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal
from zlib import crc32

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.optional import require, require_installed
from lifedeploy.text import printable, shortened
from lifedeploy.writing import atomic_file, saving

_LONGEST = 240  # characters of a line: a longer one leaves no room for the picture
_DPI = 150  # a figure is laid out as it is written
_LINE_OF_NAME = 24  # characters beside a bar or a point
_LINES_OF_NAME = 3
FORMATS = (".png", ".svg", ".pdf")
# Both formats would hold the moment they were written at; SVG names its parts by random numbers without a salt.
_WITHOUT_DATE: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_SAME_AGAIN: Any = {"svg.hashsalt": "lifedeploy"}

_BASELINE, _BOUND, _USUAL = "#8c8c8c", "#6baed6", "#1b6ca8"
_OTHERS = ["#c2571a", "#4f9d69", "#8c6bb1", "#d4a017", "#b5446e", "#3f8f8f", "#7a5c3e", "#e377c2", "#5254a3", "#9bb33b"]


def colour(method: str) -> str:
    """Of a method: of those that are neither baseline nor bound the usual one's own, then one for each of ours, in the
    order of the table; of others one that their name says."""
    role = methods.role_of(method)
    if role != methods.SLIMMED:
        return _BASELINE if role == methods.BASELINE else _BOUND
    ours = [name for name in methods.names(methods.SLIMMED) if methods.built_in(name) is not None]
    place = ours.index(method) - 1 if method in ours else crc32(method.encode())
    return _USUAL if method == methods.DEFAULT else _OTHERS[place % len(_OTHERS)]


def tidy(axis: Any) -> None:
    """Two spines, a grid behind everything, small numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def in_lines(name: str) -> str:
    """A name as it stands beside a bar or a point: in up to three short lines, of a longer one beginning and end.

    A training run is called by all its settings that are not the usual ones.
    """
    line = shortened(name, _LINE_OF_NAME * _LINES_OF_NAME)
    lines = wrap(line, _LINE_OF_NAME)
    if len(lines) > _LINES_OF_NAME:  # breaks between words leave lines half empty
        lines = [line[start : start + _LINE_OF_NAME] for start in range(0, len(line), _LINE_OF_NAME)]
    return "\n".join(lines)


def title(axis: Any, text: str) -> None:
    """What a row of axes is about, in a line or some."""
    lines = (shortened(line, 100) for line in text.split("\n"))
    axis.set_title("\n".join(lines), loc="left", fontsize=10, fontweight="bold")


def check_format(path: Path) -> None:
    """Refuse, before any measuring, a file that no plot can be written to.

    Raises:
        UsageError: another ending.
        NotInstalledError: there is no matplotlib to write it.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is no plot file: its ending must be one of {', '.join(FORMATS)}")
    require_installed("matplotlib", extra="plot")


def load_matplotlib() -> None:
    """Import matplotlib, before anything of it is: without the settings of the current folder, which it would obey,
    LaTeX and all, and without the user's, which would make other pictures.

    Raises:
        NotInstalledError: it does not import.
    """
    if "matplotlib" in sys.modules:
        return
    os.environ.update(MPLBACKEND="agg", MATPLOTLIBRC=os.devnull)
    here = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    os.chdir(Path(__file__).parent)  # it looks for its settings in the current folder first
    try:
        require("matplotlib", extra="plot")
    finally:
        os.fchdir(here)
        os.close(here)


def new_figure(
    path: Path, width: float, height: float, *, layout: Literal["constrained", "compressed"] = "constrained"
) -> Any:
    """An empty matplotlib figure of that many inches, which is to be written to ``path``.

    Raises:
        UsageError: a format that cannot be written.
    """
    check_format(path)
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout)  # letters are not as wide at every resolution
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure of ``new_figure``, in the format that the file's ending says.

    Raises:
        OSError, ArtifactError: it cannot be written.
    """
    from matplotlib import rc_context

    ending = path.suffix.lower()
    with atomic_file(path) as temporary, as_text(figure), rc_context(_SAME_AGAIN), saving(path):
        figure.savefig(temporary, format=ending[1:], dpi=_DPI, metadata=_WITHOUT_DATE.get(ending))


@contextmanager
def as_text(figure: Any) -> Iterator[None]:
    """For the block, in which the figure is laid out or drawn, and from then on: what is written in it is text.

    Between two dollars in a name there is no mathematics, and a control character in it would be no XML. A letter that
    the font lacks is seen in the picture, as a box: nothing to warn of.
    """
    from matplotlib.text import Text

    numbers = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _of_ticks(axis)}
    for text in figure.findobj(Text):
        if id(text) not in numbers:  # the powers of ten of an axis are mathematics
            text.set_parse_math(False)
        text.set_usetex(False)
        text.set_text("\n".join(map(_line, text.get_text().split("\n"))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _line(text: str) -> str:
    return printable(text) if len(text) <= _LONGEST else shortened(text, _LONGEST)


def _of_ticks(axis: Any) -> list[Any]:
    return [*axis.get_ticklabels(which="both"), axis.get_offset_text()]
