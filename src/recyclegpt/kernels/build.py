"""Compile the kernels for this processor, once, and load them: ten to thirty seconds the first time, then nothing."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".cpp", ".h"))
# Strictly IEEE (no -ffast-math): a result may not depend on how many rows were given. The stable ABI of torch 2.11.
FLAGS = (
    "-std=c++20",
    "-w",
    "-O3",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
)
TIMEOUT_S = 300


class KernelsUnavailableError(Exception):
    """Why this machine decodes with torch's own kernels, in words for its user."""


@functools.cache
def load() -> None:
    """Register the operators `torch.ops.recyclegpt.*`, compiling them if this processor has not done so yet.

    Raises:
        KernelsUnavailableError: there is no C++ compiler, it fails, or the result cannot be loaded.
    """
    compiler = find_compiler()
    if compiler is None:
        raise KernelsUnavailableError("no C++ compiler was found; install g++, or name one in CXX")
    library = library_path(compiler)
    if not is_whole(library):
        _compile(compiler, library)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise KernelsUnavailableError(f"{library} cannot be loaded ({error}); delete it to compile anew") from error


def is_whole(library: Path) -> bool:
    """Whether the file is what was compiled: half a library, as a full disk leaves it, would kill the process."""
    try:
        return library.with_suffix(".sha256").read_text(encoding="ascii") == _checksum(library)
    except OSError:
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_compiler() -> str | None:
    """The C++ compiler's command line: `CXX`, else the first of the usual names; None where there is none."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def folder() -> Path:
    """Where compiled kernels are kept: `RECYCLEGPT_CACHE` or `~/.cache/recyclegpt`, as the token caches are."""
    return Path(os.environ.get("RECYCLEGPT_CACHE") or "~/.cache/recyclegpt").expanduser() / "kernels"


def library_path(compiler: str) -> Path:
    """Where the library that this compiler makes for this processor is kept, compiled already or not."""
    return folder() / f"kernels-{_key(compiler)}.so"


def tuning() -> str:
    """The option that makes a compiler use all instructions of this processor."""
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"


def _compile(compiler: str, library: Path) -> None:
    includes = [f"-I{path}" for path in include_paths()]
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu"]

    def run(*arguments: str) -> None:
        command = [*shlex.split(compiler), *FLAGS, tuning(), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            errors = [line for line in lines if "error" in line] or lines[-1:]
            raise KernelsUnavailableError(f"the compiler {compiler} failed: {errors[0]}")

    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        print("compiling the C++ kernels for this processor, once: about ten seconds", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
            # Several processes may build at once: each into its own file, and the last one renames it into place.
            built = Path(temporary) / library.name
            objects = {built.with_name(f"{path.stem}.o"): path for path in SOURCES if path.suffix == ".cpp"}
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda file: run("-c", *includes, str(objects[file]), "-o", str(file)), objects))
            run(*map(str, objects), "-o", str(built), *libraries)
            checksum = built.with_suffix(".sha256")
            checksum.write_text(_checksum(built), encoding="ascii")
            if library.is_dir():
                raise KernelsUnavailableError(f"{library} is a folder; remove it")
            built.replace(library)
            checksum.replace(library.with_suffix(".sha256"))
    except FileNotFoundError as error:
        raise KernelsUnavailableError(f"there is no compiler {compiler}, which CXX names") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailableError(f"they cannot be compiled in {library.parent} ({error})") from error


def _key(compiler: str) -> str:
    """Names what was compiled: sources, torch, compiler and the processor's instruction set (a home may be shared)."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    digest.update(repr((torch.__version__, compiler, FLAGS, platform.machine(), features)).encode())
    return digest.hexdigest()[:16]
