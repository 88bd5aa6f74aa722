#!/usr/bin/env bash
# Measure everything on this machine's GPU: correctness first, then decoding speed, training speed and one training run.
# usage: scripts/gpu_report.sh [FOLDER]    (default outputs/gpu-report; needs recyclegpt and pytest on PATH)
set -uo pipefail
out=${1:-outputs/gpu-report}
mkdir -p "$out"
failed=0

part() { # part NAME COMMAND...: run it, keep its log; a failure is reported and the next part runs
    local name=$1
    shift
    echo "== $name: $*"
    if "$@" >"$out/$name.log" 2>&1; then
        echo "   done"
    else
        echo "   failed (exit $?): see $out/$name.log" >&2
        failed=$((failed + 1))
    fi
}

part doctor recyclegpt doctor --json
part tests python -m pytest -m gpu -q
part decode recyclegpt bench model=gpt_125m recycle.num_layers=1 'bench.num_recycled=[1,2,4]' device=cuda \
    "output_dir=$out/decode"
part decode_1b3 recyclegpt bench model=paper_1b3 recycle=paper bench.num_prompts=1 'bench.baselines=[transformers]' \
    device=cuda "output_dir=$out/decode_1b3"
part training recyclegpt bench-training model=gpt_350m device=cuda "output_dir=$out/training"
part train recyclegpt train experiment=gpt_125m_python resume=auto "hydra.run.dir=$out/train"
part trained recyclegpt bench "checkpoint=$out/train" 'bench.num_recycled=[1,2,4]' device=cuda "output_dir=$out/trained"
part report recyclegpt report "$out/train"

# The last line of each benchmark is one JSON document: collect them.
python - "$out" <<'PY'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
documents = {}
for log in sorted(folder.glob("*.log")):
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines and lines[-1].startswith("{"):
        documents[log.stem] = json.loads(lines[-1])
for name in ("result.json", "provenance.json"):
    path = folder / "train" / name
    if path.is_file():
        documents[f"train/{name}"] = json.loads(path.read_text(encoding="utf-8"))
(folder / "report.json").write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")
print(folder / "report.json")
PY
exit $((failed > 0))
