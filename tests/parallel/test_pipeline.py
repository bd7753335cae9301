"""The order of work in a pipeline: 1F1B, and messages that never wait for each other."""

import pytest

from gpt2x.config.layout import bubble_fraction
from gpt2x.parallel.pipeline import one_forward_one_backward, operations

SIZES = [(stages, micro_batches) for stages in range(2, 9) for micro_batches in range(1, 10)]
RECEIVE_OF = {"send_forward": ("receive_forward", 1), "send_backward": ("receive_backward", -1)}
SEND_OF = {"receive_forward": ("send_forward", -1), "receive_backward": ("send_backward", 1)}


@pytest.mark.parametrize(("num_stages", "num_micro_batches"), SIZES)
def test_each_backward_follows_its_forward_and_few_inputs_wait(num_stages, num_micro_batches):
    for stage in range(num_stages):
        waiting, most, done = set(), 0, []
        for kind, index in one_forward_one_backward(stage, num_stages, num_micro_batches):
            if kind == "forward":
                waiting.add(index)
            else:
                waiting.remove(index)
                done.append(index)
            most = max(most, len(waiting))
        assert done == list(range(num_micro_batches)), "every micro batch, in order"
        assert not waiting
        assert most == min(num_stages - stage, num_micro_batches)


def run_all(num_stages, num_micro_batches, duration):
    """When all stages are done, where a message is only taken while its receiver waits for it.

    Every stage runs its operations one after the other; `duration` is how long forward and backward take.
    """
    plans = [list(operations(stage, num_stages, num_micro_batches)) for stage in range(num_stages)]
    position, time = [0] * num_stages, [0] * num_stages
    while any(position[stage] < len(plans[stage]) for stage in range(num_stages)):
        moved = False
        for stage in range(num_stages):
            while position[stage] < len(plans[stage]):
                kind, index = plans[stage][position[stage]]
                if kind in duration:
                    time[stage] += duration[kind]
                else:
                    expected, step = (RECEIVE_OF | SEND_OF)[kind]
                    other = stage + step
                    if position[other] == len(plans[other]) or plans[other][position[other]][0] != expected:
                        break
                    assert plans[other][position[other]] == (expected, index), "another micro batch's message"
                    time[stage] = time[other] = max(time[stage], time[other])
                    position[other] += 1
                position[stage] += 1
                moved = True
        heads = [plan[at : at + 1] for plan, at in zip(plans, position, strict=True)]
        assert moved, f"all stages wait for each other: {heads}"
    return max(time)


@pytest.mark.parametrize(("num_stages", "num_micro_batches"), SIZES)
def test_no_stage_waits_for_ever(num_stages, num_micro_batches):
    took = run_all(num_stages, num_micro_batches, {"forward": 1, "backward": 2})
    # the bubble of 1F1B, (P - 1) of M + P - 1: messages that take no time cost none either
    assert took == pytest.approx(3 * num_micro_batches / (1 - bubble_fraction(num_stages, num_micro_batches)))


@pytest.mark.parametrize(("num_stages", "num_micro_batches"), SIZES)
def test_what_a_stage_does(num_stages, num_micro_batches):
    for stage in range(num_stages):
        plan = list(operations(stage, num_stages, num_micro_batches))
        kinds = {"forward", "backward"}
        kinds |= {"receive_forward", "send_backward"} if stage > 0 else set()
        kinds |= {"send_forward", "receive_backward"} if stage < num_stages - 1 else set()
        assert sorted(plan) == sorted((kind, index) for kind in kinds for index in range(num_micro_batches))
        for index in range(num_micro_batches):
            order = ("receive_forward", "forward", "send_forward", "receive_backward", "backward", "send_backward")
            at = [plan.index((kind, index)) for kind in order if kind in kinds]
            assert at == sorted(at)
        # what is received is used before the next one comes: one slot each is enough
        for receive, use in (("receive_forward", "forward"), ("receive_backward", "backward")):
            found = [kind for kind, _ in plan if kind in (receive, use)]
            assert found == ([receive, use] if receive in kinds else [use]) * num_micro_batches
        for make, send in (("forward", "send_forward"), ("backward", "send_backward")):
            found = [kind for kind, _ in plan if kind in (make, send)]
            assert found == ([make, send] if send in kinds else [make]) * num_micro_batches
