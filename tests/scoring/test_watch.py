"""A job while it runs: what is told of it, and when too many images have no answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lifedeploy.errors import DataError
from lifedeploy.progress import Step
from lifedeploy.scoring.filing import Finished
from lifedeploy.scoring.jobs import Tally, told
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.watch import Watch


def tally(images: int, bad: int = 0) -> Tally:
    return Tally(images=images, bad=bad, examples=tuple((f"{number}.png", "is none") for number in range(min(bad, 10))))


class Watched:
    """A job of so many parts of 100 images, or of shards of 1,000 bytes."""

    def __init__(self, parts: int, *, max_bad: float = 1.0, shards: bool = False, done: dict[int, Tally] | None = None):
        self.steps: list[Step] = []
        every = [
            Part(number=number, shard=f"{number}.tar", size=1000) if shards else Part(number=number, images=100)
            for number in range(parts)
        ]
        images = None if shards else 100 * parts
        self.watch = Watch(every, images, done or {}, max_bad, self.steps.append)
        self.taken = 0

    def follow(self, *tallies: Tally, first: int = 0) -> None:
        def finished() -> Iterator[Finished]:
            for number, one in enumerate(tallies, first):
                self.taken += 1
                yield Finished(number=number, tally=one, engine_s=0.5)

        self.watch.follow(finished())


# --- too many ---------------------------------------------------------------------------------------------------


def test_a_job_ends_as_soon_as_too_many_of_all_its_images_are_bad():
    watched = Watched(10, max_bad=0.01)
    with pytest.raises(DataError) as refused:
        watched.follow(tally(100, 5), tally(100, 5), tally(100, 1), tally(100))
    assert refused.value.message == (
        "11 of 1,000 images have no answer, more than --max-bad 0.01 allows; the first: 0.png: is none"
    )
    assert refused.value.hint == "what is done is kept: with a larger --max-bad the same command goes on"
    assert watched.taken == 3


def test_as_many_as_are_allowed_end_nothing():
    watched = Watched(10, max_bad=0.01)
    watched.follow(tally(100, 10), *[tally(100)] * 9)
    assert watched.watch.tally == Tally(images=1000, bad=10, examples=tally(100, 10).examples)


def test_none_may_be_bad():
    watched = Watched(2, max_bad=0)
    with pytest.raises(DataError, match=r"^1 of 200 images have no answer, more than --max-bad 0 allows; the first: "):
        watched.follow(tally(100), tally(100, 1))
    Watched(2, max_bad=0).follow(tally(100), tally(100))


def test_what_was_done_before_counts():
    watched = Watched(3, max_bad=0.02, done={0: tally(100, 6)})
    with pytest.raises(DataError, match=r"^7 of 300 images have no answer"):
        watched.follow(tally(100, 1), tally(100), first=1)
    assert watched.taken == 1
    again = Watched(3, max_bad=0.02, done={0: tally(100, 6), 1: tally(100, 1)})
    with pytest.raises(DataError, match=r"^7 of 300 images have no answer"):
        again.follow(tally(100), first=2)
    assert again.taken == 0  # nothing is scored that would not change it


def test_of_shards_nothing_is_said_before_a_thousand_images():
    watched = Watched(20, max_bad=0.1, shards=True)
    with pytest.raises(DataError, match=r"^200 of 1,000 images have no answer, more than --max-bad 0.1 allows"):
        watched.follow(tally(600, 200), tally(399), tally(1), tally(1))
    assert watched.taken == 3


def test_of_few_shards_it_is_said_in_the_end():
    watched = Watched(2, max_bad=0.1, shards=True)
    with pytest.raises(DataError, match=r"^20 of 30 images have no answer, more than --max-bad 0.1 allows"):
        watched.follow(tally(20, 20), tally(10))
    assert watched.taken == 2
    Watched(2, max_bad=0.7, shards=True).follow(tally(20, 20), tally(10))


@pytest.mark.parametrize("shards", [False, True])
def test_where_no_image_can_be_read_something_else_is_wrong(shards):
    watched = Watched(2, shards=shards)
    with pytest.raises(DataError) as refused:
        watched.follow(tally(100, 100), tally(100, 100))
    assert refused.value.message == "200 of 200 images have no answer; the first: 0.png: is none"
    assert refused.value.hint is None
    Watched(2, shards=shards).follow(tally(100, 100), tally(100, 99))


def test_shards_without_images_end_nothing():
    watched = Watched(2, max_bad=0, shards=True)
    watched.follow(tally(0), tally(0))
    assert watched.watch.tally == Tally()


def test_an_example_is_said_once_and_on_one_line():
    assert told("a.png", "image a.png does not exist") == "image a.png does not exist"
    assert told("a.png", "it is none") == "a.png: it is none"
    assert told("a\nb.png", "it is\x1b[31m none") == r"a b.png: it is\x1b[31m none"
    assert len(told("a" * 5000, "b" * 5000)) <= 300


def test_the_first_example_is_that_of_the_first_part_whichever_is_done_first():
    watched = Watched(2, max_bad=0.5)
    late = Tally(images=100, bad=100, examples=(("late.png", "is none"),))
    early = Tally(images=100, bad=1, examples=(("early.png", "is none"),))
    finished = [Finished(number=1, tally=late), Finished(number=0, tally=early)]
    with pytest.raises(DataError, match=r"the first: early\.png: is none$"):
        watched.watch.follow(iter(finished))


# --- what is told -----------------------------------------------------------------------------------------------


def test_a_share_is_that_of_all_images():
    watched = Watched(4, done={3: tally(100)})
    watched.watch.seen(32)
    watched.watch.seen(68)
    watched.follow(tally(100), tally(100), tally(100))
    assert [step.share for step in watched.steps] == [0.33, 0.5, 0.5, 0.75, 1.0]
    assert {step.what for step in watched.steps} == {"scoring"}
    assert [step.detail.split(" images")[0] for step in watched.steps] == [
        *("132 of 400", "200 of 400", "200 of 400", "300 of 400", "400 of 400")
    ]
    assert all(step.detail.endswith(" img/s") for step in watched.steps)


def test_a_share_is_that_of_the_bytes_of_shards():
    watched = Watched(4, shards=True, done={0: tally(7)})
    watched.watch.seen(5)
    watched.follow(tally(1500), first=1)
    assert [step.share for step in watched.steps] == [0.25, 0.5]
    assert watched.steps[0].detail.startswith("1 of 4 shards, 12 images")
    assert watched.steps[1].detail.startswith("2 of 4 shards, 1,507 images, ")


def test_empty_shards_are_no_division_by_nothing():
    steps: list[Step] = []
    watch = Watch([Part(number=0, shard="x.tar")], None, {}, 1.0, steps.append)
    watch.follow([Finished(number=0, tally=Tally())])
    assert [step.detail for step in steps] == ["1 of 1 shards, 0 images"]
    assert 0 <= steps[0].share <= 1


def test_what_this_run_did_is_told_apart_from_what_was_there():
    watched = Watched(3, done={0: tally(100)})
    watched.follow(tally(100), tally(100), first=1)
    watch = watched.watch
    assert (watch.before, watch.scored, watch.engine_s, watch.tally.images) == (1, 200, 1.0, 300)
    assert watch.seconds > 0
