"""Limits of your own, in plain pytest: measure two cells and compare them."""


def test_math_acceptance(speedbench):
    math = speedbench.run(category="math")
    assert math.acceptance_length > 3.0
    assert math.acceptance_rate > 0.5


def test_drafts_get_no_worse_from_position_to_position(speedbench):
    qa = speedbench.run(category="qa")
    joint = list(qa.acceptance.joint.values())
    assert joint == sorted(joint, reverse=True)
