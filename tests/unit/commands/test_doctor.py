"""What `recyclegpt doctor` finds in installations, machines and runs that are ill, each made for the test."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from recyclegpt.checkpoints import load as checkpoint
from recyclegpt.checkpoints.file import sidecar, write_checkpoint
from recyclegpt.commands import doctor
from recyclegpt.commands.main import main
from recyclegpt.doctor import compiler, device, disk, environment, packages, runs
from recyclegpt.doctor.finding import Finding, Verdict, carry_out
from recyclegpt.hardware import cpu as processor
from recyclegpt.kernels import build
from recyclegpt.runs import folder as run_folder
from recyclegpt.runs import resume

OK, WARNING, PROBLEM = Verdict.OK, Verdict.WARNING, Verdict.PROBLEM
Usage = namedtuple("Usage", "total used free")
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run folder as training leaves it, with two checkpoints."""

    def make(
        name: str = "train/default/2026-01-01_00-00-00",
        argv: tuple[str, ...] = ("train", "seed=2", "resume=never"),
        steps: tuple[int, ...] = (5, 10),
        **result: Any,
    ) -> Path:
        run = tmp_path / "outputs" / name
        for step in steps:
            write_checkpoint({"global_step": step, "weight": torch.ones(50)}, run / f"checkpoints/step_{step:07d}.ckpt")
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints/tokenizer.json").write_text("{}")
        facts = {"argv": ["/bin/recyclegpt", *argv], "versions": {"torch": metadata.version("torch")}}
        (run / "provenance.json").write_text(json.dumps(facts))
        if result:
            (run / "result.json").write_text(json.dumps(result))
        return run

    return make


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def of_runs(folder: Path, every: bool = False) -> dict[str, Finding]:
    """Findings on runs by name."""
    return {finding.name: finding for finding in runs.examine(folder, runs.find_runs(folder), every)}


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str | None) -> dict[str, Finding]:
    """The findings on packages where these versions were installed."""
    real = packages.installed_version
    given = {name.replace("_", "-"): version for name, version in installed.items()}
    monkeypatch.setattr(packages, "installed_version", lambda name: given[name] if name in given else real(name))
    return {finding.name: finding for finding in [*packages.required(), *packages.optional()]}


def always(value: Any) -> Callable[..., Any]:
    """A stand-in that returns the same whatever it is given."""

    def stand_in(*arguments: object, **keywords: object) -> Any:
        return value

    return stand_in


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


# The command


def test_a_sound_machine_and_run(
    make_run: MakeRun, outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(status="completed", train={"steps": 10})
    monkeypatch.setattr(disk.shutil, "disk_usage", always(Usage(1e12, 0, 1e12)))
    before = snapshot(outputs.parent)
    assert main(["doctor", str(outputs)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for told in ("completed after 10 steps", "2 (steps 5, 10): as written", "1 below", metadata.version("torch")):
        assert told in out
    assert snapshot(outputs.parent) == before
    assert [path.name for path in outputs.iterdir()] == ["train"]
    assert not any(finding.verdict is PROBLEM for finding in doctor.examine(outputs))


def test_problems_exit_1_and_come_first(
    make_run: MakeRun, outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(status="failed", error="RunError: the loss\nis not finite")
    (run / "checkpoints/step_0000010.ckpt").write_bytes(b"half")
    assert main(["doctor", str(outputs)]) == 1
    out = capsys.readouterr().out
    (remedy,) = [" ".join(out.split("\n1. ")[1].split("\n2. ")[0].split())]
    assert remedy.startswith("run train/default/2026-01-01_00-00-00, step_0000010.ckpt: resume=auto")
    assert "failed: is not finite" in out
    assert "1 problem, " in out.splitlines()[-1]


def test_json_is_one_document(make_run: MakeRun, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run() / "checkpoints/tokenizer.json").unlink()
    assert main(["doctor", str(outputs), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "problem"
    assert {finding["group"] for finding in document["findings"]} == {
        *("environment", "packages", "device", "compiler", "disk", "runs", "run train/default/2026-01-01_00-00-00")
    }
    for finding in document["findings"]:
        assert set(finding) == {"group", "name", "found", "verdict", "remedy"}
        assert bool(finding["remedy"]) == (finding["verdict"] != "ok")


def test_nothing_to_do() -> None:
    text = doctor.as_text([Finding("disk", "cache", "much"), Finding("runs", "found", "none")])
    assert text.endswith("\nwhat to do\nnothing to do")
    assert text.splitlines()[2:5] == ["disk", "  cache  much     ok", "runs"]


def test_a_remedy_of_several_findings_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = [Finding("disk", name, "word " * 30, WARNING, "free space") for name in ("runs", "cache")]
    text = doctor.as_text(found)
    assert text.splitlines()[-3:] == ["1. disk, runs (and 1 more): free space", "", "2 warnings"]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["one", "two"], ["--jsn"], ["--json=1"]])
def test_wrong_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "usage: recyclegpt doctor" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", str(tmp_path / "file")]) == 2
    assert "is a file; give the folder" in capsys.readouterr().err


def test_help_imports_nothing_heavy_and_without_checkpoints_lightning_stays_out(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom recyclegpt.commands.main import main\n"
        "assert main(['doctor', '--help']) == 0\n"
        "heavy = {'torch', 'lightning', 'packaging', 'filelock', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert main(['doctor', sys.argv[1], '--json']) == 0\n"
        "assert 'lightning' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: recyclegpt doctor")


def test_a_check_that_fails_is_a_finding() -> None:
    def broken() -> Finding:
        raise RuntimeError("no such\nthing")

    (finding,) = carry_out("device", "cuda", broken)
    assert finding.verdict is WARNING
    assert finding.found == "could not be checked: RuntimeError: no such"
    with pytest.raises(ValueError, match="a remedy belongs"):
        Finding("device", "cuda", "ill", WARNING)


def test_a_broken_installation_is_a_problem_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert main(["doctor", str(tmp_path)]) == 1
    assert "1. packages, required (and " in capsys.readouterr().out


def test_names_are_those_of_the_rooms_that_write_them() -> None:
    assert (runs.PROVENANCE, runs.RESULT) == (run_folder.PROVENANCE, run_folder.RESULT)
    assert (runs.CHECKPOINTS, runs.TOKENIZER, runs.LOCK) == (checkpoint.FOLDER, checkpoint.TOKENIZER, resume.LOCK)


# Packages


@pytest.mark.parametrize(
    ("package", "version", "verdict", "told"),
    [
        ("lightning", "2.6.2", PROBLEM, "GHSA-w37p-236h-pfx3"),
        ("lightning", "2.6.3", PROBLEM, "GHSA-w37p-236h-pfx3"),
        ("pytorch-lightning", "2.6.3", PROBLEM, "GHSA-w37p-236h-pfx3"),
        ("lightning", "2.6.5", WARNING, "load_from_checkpoint"),
        ("pytorch-lightning", "2.6.1", WARNING, "load_from_checkpoint"),
        ("hydra-core", "1.3.2", WARNING, "GHSA-2cp2-2r3c-7p7r"),
        ("omegaconf", "2.4.0", PROBLEM, "below 2.4"),
        ("datasets", "4.8.0", WARNING, "#8303"),
        ("datasets", "5.1.0", WARNING, "#8669"),
        ("torch", "2.10.0+cu130", WARNING, "outside of the tested range >=2.11,<2.16"),
        ("torch", None, PROBLEM, "missing"),
        ("plotly", "5.0", WARNING, "outside of the tested range"),
    ],
)
def test_known_bad_releases(
    package: str, version: str | None, verdict: Verdict, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = versions(monkeypatch, **{package.replace("-", "_"): version})[package]
    assert finding.verdict is verdict
    assert told in finding.found
    if told.startswith("GHSA-w37p"):
        assert "credential" in finding.remedy
        assert packages.unsafe_to_import() == f"{package} {version}"


def test_the_releases_asked_for_are_none_of_the_bad_ones() -> None:
    for line in metadata.requires("recyclegpt") or []:
        requirement = Requirement(line)
        for bad in packages.KNOWN_BAD:
            if bad.package == requirement.name and bad.verdict is PROBLEM:
                assert not any(requirement.specifier.contains(v.lstrip("=>")) for v in bad.versions), line


def test_the_two_lightnings_have_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = versions(monkeypatch, lightning="2.6.7", pytorch_lightning="2.6.8")["pytorch-lightning"]
    assert (finding.verdict, finding.found) == (WARNING, "2.6.8, while lightning is 2.6.7")


def test_an_optional_package_that_is_missing_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = versions(monkeypatch, matplotlib=None)["matplotlib"]
    assert finding.verdict is OK
    assert "figures of reports; pip install 'recyclegpt[report]'" in finding.found


def test_without_metadata_bad_releases_are_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_requirements", always([]))
    found = versions(monkeypatch, recyclegpt=None, lightning="2.6.2")
    assert found["lightning"].verdict is PROBLEM
    assert packages.this_project().verdict is WARNING


def test_a_malicious_lightning_is_not_imported_to_verify(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    versions(monkeypatch, lightning="2.6.3")
    monkeypatch.setitem(sys.modules, "recyclegpt.checkpoints.file", None)  # importing it would raise
    (finding,) = runs.checkpoints("run", run, busy=False)
    assert (finding.verdict, finding.found) == (WARNING, "not looked at: that would import lightning 2.6.3")


# Environment


def test_python_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.python().verdict is OK
    monkeypatch.setattr("platform.python_version", lambda: "3.14.0")
    assert environment.python().verdict is PROBLEM


@pytest.mark.parametrize(("threads", "variable", "verdict"), [(2, None, OK), (3, None, WARNING), (1, "8", WARNING)])
def test_more_threads_than_cores(
    threads: int, variable: str | None, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(processor, "num_usable", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    finding = environment.threads()
    assert finding.verdict is verdict
    assert verdict is OK or "OMP_NUM_THREADS=2" in finding.remedy


def test_cores_and_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        f"processor\t: {cpu}\nmodel name\t: A CPU\nphysical id\t: 0\ncore id\t\t: {cpu // 2}\nflags\t\t: avx2 fma"
        for cpu in range(8)
    ]
    (tmp_path / "cpuinfo").write_text("\n\n".join(blocks) + "\n\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(os, "sched_getaffinity", always(set(range(6))), raising=False)
    monkeypatch.setattr(processor, "CGROUPS", tmp_path)
    monkeypatch.setattr(processor, "OWN_CGROUPS", tmp_path / "own")
    assert (processor.name(), processor.flags()) == ("A CPU", {"avx2", "fma"})
    assert (processor.num_logical(), processor.num_physical(), processor.num_usable()) == (6, 3, 3)
    (tmp_path / "own").write_text("0::/jobs/one\n")
    (tmp_path / "jobs/one").mkdir(parents=True)
    (tmp_path / "jobs/one/cpu.max").write_text("max 100000\n")
    (tmp_path / "jobs/cpu.max").write_text("150000 100000\n")
    assert (processor.quota(), processor.num_usable()) == (1.5, 2)
    (tmp_path / "own").write_text("3:memory:/a\n2:cpu,cpuacct:/a\n")
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu,cpuacct/cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000")
    assert (processor.quota(), processor.num_usable()) == (0.5, 1)


def test_encoding_and_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", always("ISO-8859-1"))
    assert "locale: ISO-8859-1" in environment.encoding().found
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert environment.temporary_folder().verdict is WARNING
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert environment.temporary_folder().verdict is OK


# Device


def test_formats_follow_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, told in ((True, "bf16-mixed, decoding bfloat16"), (False, "32-true, decoding float32")):
        monkeypatch.setattr("recyclegpt.hardware.dtypes.has_native_bf16", always(native))
        assert told in device.formats().found


def test_a_card_that_torch_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "nvidia_smi", always([]))
    assert [finding.verdict for finding in device.cuda()] == [OK]
    monkeypatch.setattr(device, "nvidia_smi", always(["H200"]))
    monkeypatch.setattr(torch.version, "cuda", None)
    (finding,) = device.cuda()
    assert finding.verdict is WARNING
    assert "built without CUDA" in finding.found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = device.cuda()
    assert "driver" in finding.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = device.cuda()
    assert (finding.verdict, "hides them" in finding.found) == (OK, True)


def test_cards_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="H200", total_memory=140 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", always(facts))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", always(True))
    monkeypatch.setattr(torch.cuda, "_exchange_device", always(-1))
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", always(-1))
    monkeypatch.setattr(device, "nvidia_smi", always(["580.1"]))
    first, second = device.cuda()
    assert first.found == "H200, 140 GiB, compute capability 9.0, driver 580.1, bf16 native"
    assert (first.name, second.name) == ("cuda:0", "cuda:1")


# Compiler


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    finding = compiler.found()
    assert finding.verdict is WARNING
    assert "falls back" in finding.found
    assert "install g++" in finding.remedy
    assert not [*compiler.works(), *compiler.openmp(), *compiler.kernels()]
    monkeypatch.setattr(build, "find_compiler", lambda: "/nonexistent/c++ -O1")
    assert "does not exist" in compiler.found().found
    assert not compiler.works()


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "c++"
    program.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'old 1.0' && exit\necho 'error: no C++20' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    assert compiler.found().found == f"{program} (named in CXX): old 1.0"
    assert [finding.verdict for finding in (*compiler.works(), *compiler.openmp())] == [WARNING, WARNING]
    assert "error: no C++20" in compiler.works()[0].found


def test_cached_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLEGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: sys.executable)
    (finding,) = compiler.kernels()
    assert finding.found.startswith("not compiled yet")
    assert not any(tmp_path.iterdir())
    library = build.library_path(sys.executable)
    library.parent.mkdir()
    library.write_bytes(b"code")
    library.with_suffix(".sha256").write_text(build._checksum(library))
    assert compiler.kernels()[0].verdict is OK
    library.write_bytes(b"half")
    assert compiler.kernels()[0].verdict is WARNING


# Disk


@pytest.mark.parametrize(
    ("free", "checkpoint_bytes", "verdict"),
    [(9e9, 0, OK), (9e9, 2.9e9, OK), (9e9, 3.1e9, WARNING), (4e9, 0, WARNING), (0.1e9, 0, PROBLEM)],
)
def test_free_space(
    free: float, checkpoint_bytes: int, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", always(Usage(1e12, 0, free)))
    finding = disk.room("runs", tmp_path / "not" / "there", checkpoint_bytes)
    assert finding.verdict is verdict
    assert str(tmp_path) in finding.found


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **keywords: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    finding = disk.room("cache", tmp_path)
    assert finding.verdict is PROBLEM
    assert "Read-only file system" in finding.found
    assert "RECYCLEGPT_CACHE" in finding.remedy
    assert disk.promises(tmp_path) == []


def test_promises_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = disk.promises(tmp_path / "new")
    assert finding.verdict is OK
    assert not any(tmp_path.iterdir())

    def fails(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        (finding,) = disk.promises(tmp_path)
    assert (finding.verdict, "fsync" in finding.found) == (PROBLEM, True)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", fails)
        (finding,) = disk.promises(tmp_path)
    assert (finding.verdict, "cannot be locked" in finding.found) == (PROBLEM, True)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", always(None))
        (finding,) = disk.promises(tmp_path)
    assert (finding.verdict, "second process" in finding.found) == (WARNING, True)
    assert not any(tmp_path.iterdir())


# Runs


def test_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert of_runs(runs.DEFAULT)["found"].found == "none below outputs"
    assert of_runs(tmp_path)["found"].verdict is OK
    assert of_runs(tmp_path / "typo")["found"].verdict is WARNING


def test_a_run_that_was_killed_goes_on_with_its_own_command(make_run: MakeRun, outputs: Path) -> None:
    run = make_run()
    finding = of_runs(outputs)["status"]
    assert finding.verdict is WARNING
    assert finding.found.startswith("unfinished")
    assert finding.remedy == f"recyclegpt train seed=2 resume=auto hydra.run.dir={run}"


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (("train", "sweep=smoke", "seed=1,2"), "recyclegpt train sweep=smoke seed=1,2"),
        (("train", "-m", "seed=1,2"), "recyclegpt train -m seed=1,2 sweep.tag=today resume=auto"),
        (("train", "-m", "sweep.tag=x", "resume=auto"), "recyclegpt train -m sweep.tag=x resume=auto"),
    ],
)
def test_a_job_of_a_sweep_goes_on_with_the_sweep(argv: tuple[str, ...], command: str, make_run: MakeRun) -> None:
    assert runs.how_to_continue(make_run("sweeps/adhoc/today/seed-1", argv)) == command


def test_a_run_without_provenance(make_run: MakeRun, outputs: Path) -> None:
    run = make_run(status="failed", error="Stopped: by SIGTERM")
    (run / "provenance.json").unlink()
    assert of_runs(outputs)["status"].remedy.endswith(
        f"the command that started it, with resume=auto hydra.run.dir={run}"
    )
    (run / "result.json").write_text("{")
    assert of_runs(outputs)["status"].verdict is PROBLEM
    (run / "provenance.json").write_text("[")
    assert of_runs(outputs)["status"].found.startswith("could not be checked: ")


def test_damaged_checkpoints(make_run: MakeRun, outputs: Path) -> None:
    run = make_run(steps=(5, 10, 15), status="completed")
    altered = run / "checkpoints/step_0000015.ckpt"
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    found = of_runs(outputs)
    assert found["checkpoints"].found == "2 (steps 5, 10): as written"
    assert found[altered.name].verdict is PROBLEM
    assert "sha256 differs" in found[altered.name].found
    assert "use step 10" in found[altered.name].remedy
    for step in (5, 10):
        (run / f"checkpoints/step_{step:07d}.ckpt").write_bytes(b"cut off")
    assert "none of its checkpoints can be used" in of_runs(outputs)[altered.name].remedy


def test_checkpoints_without_a_checksum(make_run: MakeRun, outputs: Path) -> None:
    run = make_run(status="completed")
    for file in (run / "checkpoints").glob("*.ckpt"):
        sidecar(file).unlink()
    assert of_runs(outputs)["checkpoints"].verdict is WARNING
    (run / "checkpoints/step_0000010.ckpt").write_bytes(b"not torch's")
    found = of_runs(outputs)
    assert found["step_0000010.ckpt"].verdict is PROBLEM
    assert found["checkpoints"].found.startswith("1 (step 5): without a checksum")


def test_what_a_killed_process_leaves(make_run: MakeRun, outputs: Path) -> None:
    run = make_run(status="completed")
    left = [run / "checkpoints/.step_0000015.ckpt.0a1b2c3d.tmp", run / ".result.json.0a1b2c3d.tmp"]
    left += [run / ".provenance.json.123", run / "checkpoints/step_0000020.ckpt.json"]
    for file in left:
        file.touch()
    (run / ".hidden.tmp").touch()
    finding = of_runs(outputs)["left over"]
    assert finding.found.startswith("4 temporary files")
    assert all(str(file) in finding.remedy for file in left)


def test_a_run_that_is_training_now(make_run: MakeRun, outputs: Path) -> None:
    run = make_run()
    (run / ".result.json.0a1b2c3d.tmp").touch()
    sidecar(run / "checkpoints/step_0000010.ckpt").unlink()  # as between the renaming and the checksum
    with resume.locked(run):
        found = of_runs(outputs)
    assert found["status"].found.startswith("running")
    assert {finding.verdict for finding in found.values()} == {OK}
    assert of_runs(outputs)["status"].found.startswith("unfinished")


def test_other_versions_are_told(make_run: MakeRun, outputs: Path) -> None:
    run = make_run(status="completed")
    (run / "provenance.json").write_text(json.dumps({"versions": {"torch": "2.4.0", "python": "3.12.0"}}))
    finding = of_runs(outputs)["versions"]
    assert (finding.verdict, finding.found) == (OK, f"changed since: torch 2.4.0, now {metadata.version('torch')}")


def test_the_newest_run_or_all(make_run: MakeRun, outputs: Path) -> None:
    old = make_run("sweeps/adhoc/today/seed-1", status="failed", error="x")
    for path in old.rglob("*"):
        os.utime(path, (1, 1))
    new = make_run(status="completed")
    (outputs / "broken").symlink_to(outputs / "nowhere")
    assert runs.find_runs(outputs) == [new, old]
    assert runs.newest_checkpoint_bytes([new, old]) == (new / "checkpoints/step_0000010.ckpt").stat().st_size
    groups = {finding.group for finding in runs.examine(outputs, runs.find_runs(outputs), every=True)}
    assert groups == {"runs", "run train/default/2026-01-01_00-00-00", "run sweeps/adhoc/today/seed-1"}
    assert of_runs(outputs)["status"].found == "completed"
    assert of_runs(new)["status"].found == "completed"
