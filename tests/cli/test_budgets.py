"""Methods that have a budget of their own: what a line cannot ask of them is said in one, before anything is made."""

from __future__ import annotations

import pytest

EVERY = "it computes every token, and masks those that halted"
HALF = "half of the patches, from a third of the layers on"
MERGE = "it merges as many tokens in every layer as 13 of 196 in 12"


def behind(method: str) -> str:
    return (
        f"drop layer 6 is out of range: {method} drops behind a layer, and behind the last of 6 there is none; 1 to 5 "
        "are allowed"
    )


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        # test_vit has 6 layers and 100 patches.
        (
            "tome --r 200",
            "r 200 merges 1200 tokens in 6 layers, and there are 100",
            "--r 16 at most, in every layer",
        ),
        (
            "tome --r 30,30,30",
            "layer 3 has 40 patch tokens, of which at most 20 can be merged, and 30 are asked for",
            "a smaller --r",
        ),
        (
            "tome --rho 0.3",
            "layer 6 has 19 patch tokens, of which at most 9 can be merged, and 16 are asked for",
            "a larger --rho",
        ),
        (
            "tome --r 1,2,3,4,5,6,7",
            "r has 7 numbers, for 6 layers that merge",
            "a single number, or 6 at most, the first layer's first",
        ),
        (
            "tome --r 1,2 --inflect 1",
            "inflect says how r changes from layer to layer, and r has a number for each already",
            "--inflect with a single number as --r, or no --inflect",
        ),
        (
            "tome --r 13 --rho 0.7",
            "r 13 and keep rate 0.7 both say how many tokens are merged",
            "--r and --inflect, or --rho",
        ),
        ("tome --r x", "r is 'x': expected a number, or one for each layer, as 16,16,14", None),
        ("tome --r -5", "r is '-5': expected a number, or one for each layer, as 16,16,14", None),
        ("tome --inflect 2", "Invalid value for '--inflect': 2 is not allowed; it must be in [-1, 1]", None),
        ("tome --counts 9,5,3", f"tome takes no token counts: {MERGE}", "--rho"),
        (
            "tome --drop-layers 7",
            "drop layer 7 is out of range: this backbone has 6 layers, so 1 to 6 are allowed",
            None,
        ),
        ("tome --graph order-once", "tome chooses anew at every drop, so its graph cannot be order-once", None),
        ("evo-vit --rho 0.7", f"evo-vit takes no keep rate: {HALF}", "leave it out"),
        ("evo-vit --counts 9,5", f"evo-vit takes no token counts: {HALF}", "leave them out"),
        ("evo-vit --drop-layers 2,6", behind("evo-vit"), None),
        ("evo-vit --r 3", "evo-vit has no option --r; it is one of tome", "lifedeploy export --method tome --help"),
        ("avit --rho 0.7", f"avit takes no keep rate: {EVERY}", "leave it out"),
        ("avit --counts 9,5", f"avit takes no token counts: {EVERY}", "leave them out"),
        ("avit --drop-layers 2,4", "avit drops nothing, so it has no drop layers", "--method avit-ranked"),
        (
            "avit --gate-scale 0",
            "Invalid value for '--gate-scale': 0 is not allowed; it must be in [0.001, 1,000]",
            None,
        ),
        ("avit-ranked --drop-layers 2,6", behind("avit-ranked"), None),
        (
            "avit-ranked --with-life",
            "avit-ranked predicts no lives, so its graph can give none",
            "without --with-life",
        ),
        ("ia-red2 --drop-layers 2,6", behind("ia-red2"), None),
        ("life --drop-layers 6", behind("life"), None),
    ],
)
def test_what_a_budget_has_no_place_for_is_refused_in_one_line(line, error, hint, lifedeploy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = lifedeploy("export", "--method", *line.split(), "--backbone", "test_vit", "--weights", "random")
    assert (ended.code, ended.out) == (2, "")
    assert ended.lines[0].startswith(f"error: {error}")
    assert ended.lines[0] == f"error: {error}" or "order-once" in line or "Invalid value" in error
    assert [said.removeprefix("hint: ") for said in ended.lines[1:]][:1] == ([] if hint is None else [hint])
    assert list(tmp_path.iterdir()) == []
