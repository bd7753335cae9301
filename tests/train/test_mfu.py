"""MFU is a share of a peak that no update can beat."""

from gpt2x.train.mfu import Peak


def test_an_update_that_beats_the_peak_raises_it_and_this_is_said_once(capsys):
    peak = Peak(0.2)
    assert peak.mfu(0.1) == 0.5
    assert capsys.readouterr().out == ""
    assert [peak.mfu(0.4), peak.mfu(0.5), peak.mfu(0.25)] == [1.0, 1.0, 0.5]
    out = capsys.readouterr().out
    assert out.count("an update ran at 0.4 TFLOP/s, faster than the peak of 0.2") == out.count("\n") == 1
