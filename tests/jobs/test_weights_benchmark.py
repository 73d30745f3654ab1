"""The benchmark of the store, on the smallest checkpoint that it makes: one block of full width."""

import json

import pytest

from scripts.cli import main


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_conversion_stays_within_its_memory(tmp_path, capfd):
    out = tmp_path / "out.json"
    assert (
        main(
            ["cache", "benchmark", "--gigabytes", "0.5", "--rounds", "1", "--folder", str(tmp_path), "--json", str(out)]
        )
        == 0
    )
    text, errors = capfd.readouterr()
    assert errors == ""
    assert "of the copy's rate" in text
    assert "compare their checksums" in text
    found = json.loads(out.read_text())
    assert found["checkpoint"]["bytes"] > 0.5e9
    assert 0 < found["convert"]["extra_bytes"] <= found["convert"]["limit_bytes"]
    assert found["convert"]["stored_bytes"] == pytest.approx(found["checkpoint"]["bytes"], rel=0.01)
    assert list(tmp_path.iterdir()) == [out], "the scratch folder is gone"
