"""A small config tree with groups, a sweep and run folders of its own."""

from pathlib import Path

import pytest

TREE = {
    "train.yaml": """\
defaults:
  - _self_
  - data: stdlib
  - experiment: null
  - sweep: null
name: default
seed: 1
depth: 2
also_depth: ${depth}
loss:
  recycle_weight: 0.3
  schedule: null
paths:
  output_dir: ${hydra:runtime.output_dir}
hydra:
  run:
    dir: ${oc.env:RUNS}/${name}
  sweep:
    dir: ${oc.env:RUNS}/sweep
    subdir: ${folder_name:${hydra.job.override_dirname}}
  job:
    config:
      override_dirname: {kv_sep: "-", item_sep: _, exclude_keys: [sweep]}
""",
    "data/stdlib.yaml": "rows: 1\n",
    "data/text_files.yaml": "rows: 2\npaths: ???\n",
    "data/tiny.yaml": "rows: 3\n",
    "experiment/deep.yaml": "# @package _global_\ndefaults:\n  - override /data: tiny\ndepth: 12\n",
    "sweep/depths.yaml": """\
# @package _global_
defaults:
  - override /hydra/sweeper: controlled
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      depth: 1,2
      loss.recycle_weight: 0.1,0.3
      seed: 1,2
    controls:
      no_data: [data=tiny]
      heavy: [loss.recycle_weight=9, depth=7]
""",
}


@pytest.fixture
def conf_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf"
    for name, text in TREE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return folder
