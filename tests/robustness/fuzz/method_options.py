"""Values of the options that methods bring with them, taken from their rows: those of a new method are covered too."""

from __future__ import annotations

from lifedeploy import methods
from tests.robustness.fuzz.case import Case, Place, kind
from tests.robustness.fuzz.options import LINES
from tests.robustness.fuzz.values import LISTS, NUMBERS, ODD_TEXTS


@kind("options of a method", share=12, cheap=False)
def method_options(place: Place) -> Case:
    """One value that nobody meant, and often something else that says how many tokens go on."""
    place.take("data", "weights.safetensors")
    command = place.one_of("export", "export", "train")
    owners = [name for name in methods.names(methods.SLIMMED) if _flags(name)]
    name = place.one_of(*owners)
    flag, switch = place.one_of(*_flags(name).items())
    value = "" if switch else f"={place.one_of(*NUMBERS, *LISTS, *ODD_TEXTS, '1', '4,0,2', '13')}"
    further = place.one_of((), (), ("--rho=0.5",), ("--counts=9,4,1",), ("--drop-layers=6",))
    argv = (command, *LINES[command][1], f"--method={name}", f"{flag}{value}", *further)
    writes = ("artifacts/checkpoints",) if command == "train" else ()
    return Case(f"{command}: {name} {flag} {ascii(value)[:60]} {' '.join(further)}", argv, writes=writes)


def _flags(name: str) -> dict[str, bool]:
    """The options of a method as they are on the line, and whether they take no value."""
    flags = {}
    for option, (item, _) in methods.get(name).option_fields(training=False).items():
        word = option.replace("_", "-")
        switch = isinstance(item.default, bool)
        flags[f"--no-{word}" if switch else f"--{word}"] = switch
    return flags
