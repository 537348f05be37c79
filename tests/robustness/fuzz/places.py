"""Odd surroundings: folders with code of somebody's in them, outputs that are no plain files, disks that are full."""

from __future__ import annotations

from tests.robustness.fuzz.case import MARK, Case, Place, kind
from tests.robustness.fuzz.options import LINES
from tests.robustness.inputs import EXPORT, TINY, TRAIN, devices

_MODULES = ("numpy", "torch", "json", "onnx", "onnxruntime", "sitecustomize", "lifedeploy", "typing", "PIL")
_OUTPUTS = {  # command → options that write a file
    "predict": ("--json",),
    "inspect": ("--json",),
    "evaluate": ("--json",),
    "visualize": ("--output", "--json"),
    "bench": ("--json", "--csv", "--plot"),
    "calibrate": ("--json", "--plot"),
    "doctor": ("--json",),
    "build-engine": ("--json",),
    "score": ("--json",),
}
_ENDINGS = {"--json": ".json", "--csv": ".csv", "--plot": ".png", "--output": ".svg"}


@kind("code beside", share=5, cheap=False)
def code_beside(place: Place) -> Case:
    """Python files in the current folder that carry the names of modules."""
    place.take("image.png")
    place.take_export("fake-fp32")
    for name in (*_MODULES, "evil/evil"):
        place.write(f"{name}.py", f"open({str(place.folder / MARK)!r}, 'w')\n".encode())
    argv = place.one_of(
        ("bench", EXPORT, "--engine=fake", "--batch=1", "--budget=0.1", "--memory"),
        ("doctor",),
        ("build-engine", EXPORT, "--engine=onnxruntime"),
        ("evaluate", f"{EXPORT}/fake-fp32", "--data=hfds/evil"),
        ("predict", f"--model={EXPORT}", "image.png"),
        ("score", f"{EXPORT}/fake-fp32", "image.png", "--out=rows"),
    )
    return Case(f"{argv[0]} in a folder with modules of somebody's", argv, environment={"PYTHONPATH": ""})


@kind("output", share=14)
def output(place: Place) -> Case:
    """A report, table or picture that is to go where no plain file is."""
    command = place.rng.choices(
        sorted(_OUTPUTS), [0.3 if name in ("doctor", "calibrate") else 1 for name in sorted(_OUTPUTS)]
    )[0]
    option = place.one_of(*_OUTPUTS[command])
    place.take("data", "image.png", EXPORT)
    there = devices(place.folder)
    ending = _ENDINGS[option]
    way = place.one_of(
        "null",
        "null",
        "full",
        "pipe",
        "link",
        "link",
        "dangling",
        "loop",
        "folder",
        "below a file",
        "missing",
        "long",
        "there",
        "unwritable",
    )
    name, links, bad = f"out{ending}", (), way in ("full", "loop", "folder", "below a file", "missing", "long")
    if way in ("null", "full", "pipe"):
        bad = bad and way in there
        name = way if option in ("--json", "--csv") else name
        if name == way and way not in there:
            name, bad = f"out{ending}", False
        elif name != way and way in there:
            (place.folder / name).symlink_to(way)
            bad = way == "full"
    elif way in ("link", "dangling"):
        if way == "link":
            place.write(f"far/real{ending}", b"as it was")
        else:
            place.path("far/x")
        (place.folder / name).symlink_to(f"far/real{ending}")
        links = (name,)
    elif way == "loop":
        (place.folder / name).symlink_to(name)
    elif way == "folder":
        (place.folder / name).mkdir()
    elif way in ("below a file", "missing"):
        name = f"{'image.png' if way == 'below a file' else 'nowhere'}/{name}"
    elif way == "long":
        name = "a" * 252 + ending
    elif way == "there":
        place.write(name, b"as it was")
    else:
        place.write(name, b"as it was").chmod(0o400)
    positional, usual = LINES.get(command, ((), ()))
    usual = tuple(word for word in usual if not word.startswith(option))
    argv = (command, *usual, f"{option}={name}", *positional)
    # Nobody knows before that a device is full; what was made till then is whole.
    reports = (f"out{ending}" for ending in _ENDINGS.values())
    writes = ("artifacts", *reports, "lives.png", "rows") if way == "full" else ()
    return Case(f"{command} {option}: {way}", argv, bad=bad, links=links, writes=writes)


@kind("full disk", share=5)
def full_disk(place: Place) -> Case:
    """A disk on which files end after some bytes."""
    place.take("data", "weights.safetensors", "many")
    place.take_export("onnxruntime-fp32")
    lines = {
        ("export", *TINY, "--weights=weights.safetensors", "--no-parity", "--output=out"): 400_000,
        (*TRAIN, "--name=new", "--dense", "--epochs=1"): 1_000_000,
        ("build-engine", EXPORT, "--engine=onnxruntime", "--force"): 1_000_000,
        ("build-engine", EXPORT, "--engine=openvino"): 1_000_000,
        ("calibrate", EXPORT, "--data=data", "--images=4", "--check-images=2"): 300_000,
        ("score", f"{EXPORT}/onnxruntime-fp32", "many", "--out=rows.jsonl"): 30_000,
    }
    argv = place.rng.choices(list(lines), (1, 3, 3, 3, 2, 3))[0]
    limit = place.rng.randrange(5_000, lines[argv])
    about = f"{argv[0]} where files end after {limit:,} bytes"
    says = "cannot be written|File too large|No space left"
    writes = ("artifacts/checkpoints", "rows.jsonl.parts")
    return Case(about, argv, bad=True, says=says, writes=writes, largest_file=limit)


@kind("surroundings", share=5)
def surroundings(place: Place) -> Case:
    """Caches, homes and temporary folders that are none."""
    place.take("data", "image.png")
    place.take_export()
    name = place.one_of(
        "XDG_CACHE_HOME", "HOME", "TMPDIR", "COLUMNS", "SOURCE_DATE_EPOCH", "WORLD_SIZE", "RANK", "LANG"
    )
    places = {
        "a file": str(place.write("file", b"x")),
        "missing": str(place.folder / "no/where"),
        "empty": "",
        "null": "/dev/null",
    }
    numbers = {"a word": "many", "negative": "-1", "huge": "9" * 30, "empty": "", "zero": "0", "odd": "²"}
    about = place.one_of(*(places if name in ("XDG_CACHE_HOME", "HOME", "TMPDIR") else numbers))
    value = (places | numbers)[about]
    argv = place.one_of(
        ("predict", f"--model={EXPORT}", "image.png"),
        ("inspect", EXPORT),
        ("build-engine", EXPORT, f"--engine={place.one_of('fake', 'openvino', 'onnxruntime')}"),
        ("evaluate", EXPORT, "--data=data"),
    )
    return Case(f"{argv[0]} where {name} is {about}", argv, environment={name: value})
