import numpy as np
import pytest

from teacher_server.engine.admission import Load, Pace, late_s


def _load(
    num_tokens: int, *, client: str = "a", deadline_s: float = 10.0, num_steps: int = 1
) -> Load:
    return Load(
        client_id=client,
        deadline_s=deadline_s,
        num_tokens=num_tokens,
        num_steps=num_steps,
        step_tokens=num_tokens // num_steps,
    )


def _late_s(new: Load, *admitted: Load, tokens_per_s: float = 100.0) -> float:
    return late_s(new, admitted, now_s=0.0, tokens_per_s=tokens_per_s, max_batch_tokens=50)


def test_nothing_is_late_while_no_speed_is_known_or_nothing_else_is_to_be_done():
    assert _late_s(_load(10_000), _load(10_000), tokens_per_s=0.0) == 0
    assert _late_s(_load(10_000)) == 0
    assert _late_s(_load(10_000), _load(0)) == 0


def test_what_does_not_fit_before_its_deadline_is_late():
    assert _late_s(_load(300), _load(300)) == 0
    assert _late_s(_load(600), _load(600)) == pytest.approx(1.25 * 12.5 - 10)


def test_a_light_client_is_in_time_beside_one_with_hours_of_work():
    assert _late_s(_load(50, client="light"), _load(10**6, deadline_s=10**5)) == 0


def test_a_long_trajectory_is_late_where_each_of_its_steps_waits_for_a_batch():
    heavy = _load(10**5, deadline_s=10**5)
    assert _late_s(_load(50, client="light", num_steps=10), heavy) == 0
    assert _late_s(_load(50, client="light", num_steps=20), heavy) > 0


def test_a_trainer_with_requests_in_flight_is_let_in_where_the_device_has_the_time():
    """Few rows of many steps make small batches, whatever the budget is."""
    rows = _load(8 * 128 * 200, deadline_s=600.0, num_steps=200)
    for num_ahead in range(1, 5):
        ahead = [rows] * num_ahead
        late = late_s(rows, ahead, now_s=0.0, tokens_per_s=3000.0, max_batch_tokens=8192)
        assert late == 0, num_ahead
    assert late_s(rows, [rows] * 9, now_s=0.0, tokens_per_s=3000.0, max_batch_tokens=8192) > 0


def test_who_would_make_an_admitted_request_late_is_kept_out_but_a_lost_one_keeps_nobody_out():
    others = [_load(10**4, client=name, deadline_s=1e6) for name in "bcd"]
    mine = _load(180)
    assert _late_s(others[1], mine, others[0]) == 0
    assert _late_s(others[2], mine, *others[:2]) == 0
    many = [_load(10**4, client=str(index), deadline_s=1e6) for index in range(4)]
    assert _late_s(many[3], mine, *many[:3]) > 0
    assert _late_s(many[3], _load(1900), *many[:3]) == 0


def test_admitted_requests_end_in_time_under_fair_sharing():
    random = np.random.default_rng(0)
    admitted: list[Load] = []
    for _ in range(200):
        new = _load(
            int(random.integers(10, 400)),
            client=str(random.integers(6)),
            deadline_s=float(random.uniform(5, 60)),
        )
        if not late_s(new, admitted, now_s=0.0, tokens_per_s=100.0, max_batch_tokens=50):
            admitted.append(new)
    assert 5 < len(admitted) < 150
    ends = _shared_fairly(admitted)
    assert all(end_s <= load.deadline_s for load, end_s in zip(admitted, ends, strict=True))


def _shared_fairly(loads: list[Load]) -> list[float]:
    """When each ends: all clients alike, a client's oldest deadline first; 100 tokens a second."""
    left = [float(load.num_tokens) for load in loads]
    ends, now_s = [0.0] * len(loads), 0.0
    while any(left):
        heads: dict[str, int] = {}
        for index in sorted(range(len(loads)), key=lambda index: loads[index].deadline_s):
            if left[index]:
                heads.setdefault(loads[index].client_id, index)
        part = min(left[index] for index in heads.values())
        now_s += part * len(heads) / 100
        for index in heads.values():
            left[index] -= part
            if not left[index]:
                ends[index] = now_s
    return ends


def test_the_pace_is_that_of_the_last_steps():
    pace = Pace()
    assert pace.tokens_per_s == 0
    for _ in range(100):
        pace.add(10, 1.0)
    for _ in range(50):
        pace.add(1000, 1.0)
    assert 950 < pace.tokens_per_s < 1000
