"""Images decoded beside the engine: in their order, so many at a time, and no thread left when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from lifedeploy.data.preprocess import to_pixels
from lifedeploy.errors import DataError, ImageError
from lifedeploy.scoring.decoding import Decoded, decoded
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.spec import PreprocessSpec
from tests.pictures import picture

SPEC = PreprocessSpec(image_size=(8, 8))
PARTS = [Part(number=number) for number in range(3)]


def threads() -> list[str]:
    """Those of decoding that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "feed"))]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert threads() == []
    yield
    assert threads() == []


def item(number: int, read: Callable[[], Image.Image] | None = None) -> Item:
    return Item(f"{number}.png", read or (lambda: picture(number)))


def numbers(images: list[Decoded]) -> list[int]:
    """The number that each shows."""
    return [int(image.pixels[0, 0, 0]) for image in images if image.pixels is not None]


def listed(given: Iterator[tuple[Part, Decoded | None]]) -> list[tuple[int, str | None]]:
    return [(part.number, image and image.name) for part, image in given]


def test_every_part_is_followed_by_its_end():
    lengths = {0: 2, 1: 0, 2: 1}
    items = {number: [item(10 * number + index) for index in range(length)] for number, length in lengths.items()}
    given = listed(decoded(PARTS, lambda part: iter(items[part.number]), SPEC, workers=2, ahead=2))
    assert given == [(0, "0.png"), (0, "1.png"), (0, None), (1, None), (2, "20.png"), (2, None)]


def test_no_parts_are_none():
    assert listed(decoded([], lambda part: iter([]), SPEC, workers=1, ahead=1)) == []


def test_pixels_are_those_that_the_model_gets():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    ((_, image), _) = decoded(PARTS[:1], lambda part: iter([item(1, lambda: photo)]), SPEC, workers=1, ahead=1)
    assert np.array_equal(image.pixels, to_pixels(photo, SPEC))
    assert (image.name, image.problem) == ("1.png", "")


def test_images_keep_their_order_whichever_is_decoded_first():
    """Each waits until the one after it is there."""
    ready = [threading.Event() for _ in range(5)]

    def late(number: int) -> Callable[[], Image.Image]:
        def read() -> Image.Image:
            assert number == 3 or ready[number + 1].wait(10)
            ready[number].set()
            return picture(number)

        return read

    items = [item(number, late(number)) for number in range(4)]
    given = [image for _, image in decoded(PARTS[:1], lambda part: iter(items), SPEC, workers=4, ahead=4)]
    assert numbers(given[:-1]) == [0, 1, 2, 3]
    assert given[-1] is None


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (4, 2), (3, 8)])
def test_only_so_many_images_are_underway(workers, ahead):
    begun = taken = most = 0

    def items(part: Part) -> Iterator[Item]:
        nonlocal begun, most
        for number in range(30):
            begun += 1
            most = max(most, begun - taken)
            yield item(number)

    with closing(decoded(PARTS, items, SPEC, workers=workers, ahead=ahead)) as given:
        for number, _ in enumerate(given):
            taken += 1
            if number % 10 == 0:
                time.sleep(0.02)  # the others get as far as they may
    # Those that wait to be asked for, the one that waits for its place, and the one that is being handed over.
    assert ahead <= most <= ahead + 2
    assert begun == 90


def test_images_are_decoded_before_they_are_asked_for():
    there = threading.Barrier(3, timeout=10)  # two threads that decode, and whoever looks at them

    def read() -> Image.Image:
        there.wait()
        return picture(1)

    items = [item(0), item(1, read), item(2, read)]
    with closing(decoded(PARTS[:1], lambda part: iter(items), SPEC, workers=2, ahead=4)) as given:
        next(given)
        there.wait()  # nobody has asked for the second and the third
        assert numbers([image for _, image in given if image]) == [1, 1]


def test_an_image_that_cannot_be_read_is_a_result():
    def read() -> Image.Image:
        raise ImageError("2.png is none")

    items = [item(1), item(2, read), item(3)]
    given = [image for _, image in decoded(PARTS[:1], lambda part: iter(items), SPEC, workers=2, ahead=3)][:-1]
    assert [(image.name, image.problem) for image in given] == [
        ("1.png", ""),
        ("2.png", "2.png is none"),
        ("3.png", ""),
    ]
    assert [image.pixels is None for image in given] == [False, True, False]


@pytest.mark.parametrize("error", [DataError("the store is gone"), ValueError("a mistake"), OSError(5, "I/O")])
def test_what_ends_a_listing_arrives_behind_the_images_before_it(error):
    def items(part: Part) -> Iterator[Item]:
        yield item(1)
        yield item(2)
        raise error

    given = decoded(PARTS, items, SPEC, workers=2, ahead=2)
    assert [next(given)[1].name, next(given)[1].name] == ["1.png", "2.png"]
    with pytest.raises(type(error)) as raised:
        next(given)
    assert raised.value is error


@pytest.mark.parametrize("error", [DataError("not reached"), MemoryError("too much")])
def test_an_error_that_is_not_the_images_own_arrives(error):
    def read() -> Image.Image:
        raise error

    items = [item(1), item(2, read), *(item(number) for number in range(3, 50))]
    given = decoded(PARTS, lambda part: iter(items), SPEC, workers=2, ahead=3)
    assert next(given)[1].name == "1.png"
    with pytest.raises(type(error)) as raised:
        next(given)
    assert raised.value is error


def test_an_error_of_the_parts_themselves_arrives():
    def parts() -> Iterator[Part]:
        yield PARTS[0]
        raise DataError("no more parts")

    with pytest.raises(DataError, match="no more parts"):
        list(decoded(parts(), lambda part: iter([item(1)]), SPEC, workers=1, ahead=5))


@pytest.mark.parametrize("asked", [1, 4, 9])
def test_who_asks_no_more_leaves_no_thread(asked):
    left: list[str] = []

    def items(part: Part) -> Iterator[Item]:
        try:
            for number in range(1000):
                yield item(number)
        finally:
            left.append("closed")

    given = decoded(PARTS, items, SPEC, workers=3, ahead=4)
    for _ in range(asked):
        next(given)
    assert threads()
    given.close()
    assert threads() == []
    assert left == ["closed"]


def test_what_is_being_decoded_is_waited_for_and_nothing_else_is_begun():
    begun: list[int] = []
    going = threading.Event()

    def slow(number: int) -> Callable[[], Image.Image]:
        def read() -> Image.Image:
            begun.append(number)
            going.set()
            time.sleep(0.05)
            return picture(number)

        return read

    items = [item(0), *(item(number, slow(number)) for number in range(1, 20))]
    given = decoded(PARTS[:1], lambda part: iter(items), SPEC, workers=1, ahead=10)
    next(given)
    assert going.wait(10)
    given.close()
    assert len(begun) <= 2


def test_an_interrupt_leaves_no_thread():
    given = decoded(PARTS, lambda part: (item(number) for number in range(1000)), SPEC, workers=2, ahead=2)
    next(given)
    with pytest.raises(KeyboardInterrupt):
        given.throw(KeyboardInterrupt())
    assert threads() == []


def test_nothing_begins_before_it_is_asked_for():
    def items(part: Part) -> Iterator[Item]:
        raise AssertionError("nobody has asked")

    given = decoded(PARTS, items, SPEC, workers=1, ahead=1)
    assert threads() == []
    given.close()
