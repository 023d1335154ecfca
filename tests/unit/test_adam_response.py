"""benchmarks/adam_response.py: where both ways are the same, it must find them the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import TinyRun

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "adam_response.py"


def test_one_gradient_is_one_step(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_length": 64}
    data = {"path": str(tiny_run.corpus), "batch_tokens": 120}
    config, output = tmp_path / "config.yaml", tmp_path / "rows.json"
    config.write_text(yaml.safe_dump({"data": data, "model": model, "stop": {"updates": 1}}))
    arguments = [config, "--after", "0,3", "--gradients", "1,3", "--draws", "2", "--json", output]
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + 4, "a line for each point"
    rows = json.loads(output.read_text())
    assert [(row["num_updates"], row["num_gradients"]) for row in rows] == [
        (updates, number) for updates in (0, 3) for number in (1, 3) for _ in range(2)
    ]
    for row in rows:
        if row["num_gradients"] == 1:
            assert row["stale"] == row["fresh"] == 1 and row["loss_one"] == row["loss_stale"] == row["loss_fresh"]
            assert row["stale_cosine"] == row["fresh_cosine"] == pytest.approx(1)
        else:
            assert 1 < row["stale"] < 4 and row["loss_one"] != row["loss_stale"] != row["loss_fresh"]
        if row["num_updates"] == 0:
            assert row["step"] == pytest.approx(1, abs=0.1), "Adam's first step: the sign of the gradient"
