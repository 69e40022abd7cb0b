"""300 damaged calls of every verb; `python -m tests.fuzz --cases 10000` makes more."""

from hypothesis import HealthCheck, given, settings

from .cases import cases
from .run import check, new_world


def test_no_damaged_call_escapes(tokens_folder, tmp_path_factory):
    world = new_world(tmp_path_factory.mktemp("fuzz") / "world", tokens_folder)
    seen = []

    @settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def one(case):
        seen.append(check(case, world))

    one()
    assert len(seen) >= 300 and {"ok", "refused"} <= set(seen)
