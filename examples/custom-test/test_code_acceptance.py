"""Limits of your own, in plain pytest: measure two cells and compare them."""


def test_code_acceptance(speedbench):
    coding = speedbench.run(category="coding")
    assert coding.acceptance_length > 3.0
    assert coding.acceptance_rate > 0.5


def test_drafts_get_no_worse_from_position_to_position(speedbench):
    writing = speedbench.run(category="writing")
    joint = list(writing.acceptance.joint.values())
    assert joint == sorted(joint, reverse=True)
