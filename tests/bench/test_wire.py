import json

from tests.bench import wire
from tests.bench.instant_targets import InstantTargets

TINY = InstantTargets(vocab_size=64, mask_token_id=63, hidden_size=32, max_length=128, top_k=8)


def test_every_way_brings_about_the_same_bytes_and_has_its_figures():
    result = wire.measure(TINY, transfer_bytes=2_000_000, num_rounds=2)
    json.dumps(result)
    assert set(result["ways"]) == {"raw", "tcp", "hidden", "top_k"}
    for name, transfers in result["transfers"].items():
        assert len(transfers) == 2
        assert all(0.9e6 < one["num_bytes"] < 2.2e6 for one in transfers), name
        assert all(one["wall_s"] > 0 for one in transfers)
    assert result["stream_vs_raw"] > 0 and result["stream_vs_tcp"] > 0
    assert result["cpu_s_per_gb"] > 0
    assert "stream_vs_raw" in wire.table(result)
    assert len(wire.figure(result).axes) == 2
