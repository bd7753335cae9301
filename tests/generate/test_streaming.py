"""Texts that arrive side by side are handed on one after another."""

import pytest

from gpt2x.generate.streaming import InputOrder


class Reader:
    def __init__(self):
        self.seen: list[str] = []
        self.order = InputOrder(self.text, self.end)

    def text(self, index, text):
        self.seen.append(f"{index}:{text}")

    def end(self, index, result):
        self.seen.append(f"{index}={result}")

    def take(self):
        seen, self.seen = self.seen, []
        return " ".join(seen)


def test_the_first_text_is_live_and_the_others_wait():
    reader = Reader()
    with reader.order as order:
        order.text(0, "a")
        assert reader.take() == "0:a"
        order.text(1, "k")
        order.text(2, "x")
        order.text(1, "l")
        order.end(1, "KL")
        assert reader.take() == ""
        order.text(0, "b")
        assert reader.take() == "0:b"
        order.end(0, "AB")  # 1 has ended, 2 goes on
        assert reader.take() == "0=AB 1:kl 1=KL 2:x"
        order.text(2, "y")
        assert reader.take() == "2:y"
        order.end(3, "")  # of no text
        order.end(2, "XY")
        assert reader.take() == "2=XY 3="
    assert reader.take() == ""


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_what_has_ended_is_handed_on_when_the_block_is_left_early(fault):
    reader = Reader()

    def fail():
        with reader.order as order:
            order.text(3, "z")
            order.end(3, "Z")
            order.text(0, "a")
            order.text(1, "k")
            order.end(2, "")
            raise fault

    with pytest.raises(fault):
        fail()
    assert reader.take() == "0:a 2= 3:z 3=Z"
