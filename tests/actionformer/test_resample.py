"""Features at another stride stand for the same times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.actionformer import resample
from projects.actionformer.features import Source
from projects.actionformer.geometry import Geometry


@given(st.integers(1, 200), st.floats(1, 32), st.floats(1, 32), st.floats(1, 32))
def test_a_feature_that_is_its_own_time_stays_so(length: int, stride: float, window: float, wanted: float) -> None:
    before, after = Geometry(25, stride, window), Geometry(25, wanted, window)
    times = before.seconds(np.arange(length, dtype=np.float64))
    found = resample.resample(times[:, None].astype(np.float32), wanted / stride)[:, 0]
    np.testing.assert_allclose(found, after.seconds(np.arange(len(found))), rtol=1e-4, atol=1e-3)
    assert after.seconds(float(len(found))) > times[-1] - 1e-6


def test_one_step_changes_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)
    np.testing.assert_array_equal(resample.resample(rows, 1), rows)
    np.testing.assert_array_equal(resample.resample(rows, 2), rows[::2])


def test_the_command_keeps_the_record(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "v_a.npy", np.arange(20, dtype=np.float32)[:, None])
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--stride", "8", "--prefix", "v_"]
    with pytest.raises(SystemExit, match=r"v_a.npy: has no record beside it: give --from-stride"):
        resample.main(arguments)
    resample.main([*arguments, "--from-stride", "4", "--window", "16", "--fps", "25"])
    out = Source(tmp_path / "out")
    assert out.read("a")[:, 0].tolist() == list(range(0, 20, 2))
    recorded = out.recorded("a")
    assert recorded is not None
    assert recorded[:3] == (25, 8, 16)
    assert recorded.duration == pytest.approx((19 * 4 + 16) / 25)
    record = {"fps": 25, "stride": 8, "window": 16, "duration": 3.7, "model": "i3d"}
    (tmp_path / "out" / "a.json").write_text(json.dumps(record))
    resample.main([str(tmp_path / "out"), str(tmp_path / "again"), "--stride", "4"])
    again = Source(tmp_path / "again")
    assert again.read("a")[:4, 0].tolist() == [0, 1, 2, 3]
    assert again.recorded("a") == (25, 4, 16, 3.7, "i3d")
    with pytest.raises(SystemExit, match="above 0"):
        resample.main([str(tmp_path / "out"), str(tmp_path / "again"), "--stride", "0"])
