"""Which tensors say what was kept, and how they are read."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.kept import NOTHING_KEPT, KeptTokens, is_kept_name, kept_layer, kept_name
from lifedeploy.schedule import Schedule

SCHEDULE = Schedule.from_counts(16, 6, (11, 11, 6), (2, 3, 5))
ANSWERS = {
    "kept_2": np.array([[3, 1, 4, 15, 9, 2, 6, 5, 8, 7, -1]]),
    "kept_5": np.array([[1, 15, 9, -1, 5, -1]]),
}


def test_names_say_after_which_layer():
    assert [kept_layer(name) for name in (kept_name(7), "kept_x", "kept_1_0", "logits")] == [7, None, None, None]
    assert [name for name in ("kept_7", "life_order", "kept_", "logits") if is_kept_name(name)] == [
        "kept_7",
        "life_order",
    ]


def test_what_ranks_once_keeps_the_first_of_the_first():
    once = KeptTokens.of_method(SCHEDULE, "once")
    assert (once.taps, once.last_tap) == (("kept_2",), ("kept_2",))
    assert once.after(2, ANSWERS).tolist() == ANSWERS["kept_2"].tolist()
    assert once.after(3, ANSWERS).tolist() == ANSWERS["kept_2"].tolist()
    assert once.survivors(ANSWERS).tolist() == once.whole(ANSWERS).tolist() == [[3, 1, 4, 15, 9, 2]]


def test_what_chooses_anew_says_so_wherever_tokens_leave():
    anew = KeptTokens.of_method(SCHEDULE, "every drop")
    assert (anew.taps, anew.last_tap, anew.leaving) == (("kept_2", "kept_5"), ("kept_5",), (2, 5))
    assert anew.after(3, ANSWERS).tolist() == ANSWERS["kept_2"].tolist()  # nothing leaves there
    assert anew.survivors(ANSWERS).tolist() == ANSWERS["kept_5"].tolist()


def test_the_whole_of_what_was_kept_tells_drops_apart_and_comes_apart_again():
    anew = KeptTokens.of_method(SCHEDULE, "every drop")
    whole = anew.whole(ANSWERS)
    assert whole.shape == (1, 17)
    assert np.count_nonzero(whole == -1) == 3
    assert len(np.unique(whole[whole >= 0])) == 14  # 1, 15, 9 and 5 are there twice, and told apart
    assert {name: part.tolist() for name, part in anew.parts(whole).items()} == {
        name: part.tolist() for name, part in ANSWERS.items()
    }
    changed = ANSWERS | {"kept_2": np.array([[3, 1, 4, 15, 9, 2, 6, 5, 8, 0, -1]])}
    assert np.count_nonzero(anew.whole(changed) != whole) == 1  # though the survivors are the same


@pytest.mark.parametrize("kept", [NOTHING_KEPT, KeptTokens.of_method(SCHEDULE, "none")])
def test_what_chooses_nothing_says_nothing(kept):
    assert not kept and kept.taps == kept.last_tap == ()


def test_a_tensor_of_a_layer_after_which_nothing_leaves_is_read_and_counts_for_nothing():
    more = KeptTokens.of(SCHEDULE, (2, 3, 5))
    assert more.taps == ("kept_2", "kept_3", "kept_5")
    answers = ANSWERS | {"kept_3": ANSWERS["kept_2"][:, ::-1]}
    assert more.after(3, answers).tolist() == answers["kept_3"].tolist()
    assert more.whole(answers).tolist() == KeptTokens.of_method(SCHEDULE, "every drop").whole(ANSWERS).tolist()
