"""The C++ compiler that decoding on a CPU needs, and what it has compiled already. Nothing is left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from recyclegpt.doctor.finding import Check, Finding, Verdict

GROUP = "compiler"
INSTALL = "install g++ (Debian: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install)"
SLOWER = "decoding on a CPU falls back to torch's own kernels, at about half the speed"
PROGRAM = "#include <cmath>\n#include <cstdint>\ndouble answer(double x) { return std::sqrt(x) * std::int64_t{42}; }\n"
PARALLEL = "#include <omp.h>\nint answer() { return omp_get_max_threads(); }\n"
TIMEOUT_S = 30


def found() -> Finding:
    """Which one is used."""
    from recyclegpt.kernels.build import find_compiler

    compiler = find_compiler()
    if compiler is None:
        return Finding(GROUP, "C++ compiler", f"none: {SLOWER}", Verdict.WARNING, f"{INSTALL}, or name one in CXX")
    words = shlex.split(compiler)
    program = shutil.which(words[0]) if words else None
    if program is None:
        return Finding(
            GROUP,
            "C++ compiler",
            f"CXX={compiler}, which does not exist: {SLOWER}",
            Verdict.WARNING,
            f"unset CXX, or let it name a compiler; else {INSTALL}",
        )
    asked = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    version = (asked.stdout.splitlines() or ["version unknown"])[0]
    named = " (named in CXX)" if os.environ.get("CXX") else ""
    return Finding(GROUP, "C++ compiler", f"{program}{named}: {version}")


def works() -> list[Finding]:
    """Whether it makes a library as the kernels need one."""
    from recyclegpt.kernels.build import find_compiler, tuning

    compiler = find_compiler()
    if compiler is None or not _exists(compiler):
        return []
    error = _compile(compiler, PROGRAM, tuning())
    if error is None:
        return [Finding(GROUP, "test program", "compiles (C++20, all instructions of this processor)")]
    return [
        Finding(
            GROUP,
            "test program",
            f"does not compile: {error}. So {SLOWER}",
            Verdict.WARNING,
            f"the compiler needs C++20 and its standard library: {INSTALL}, or name another in CXX",
        )
    ]


def openmp() -> list[Finding]:
    """The kernels use torch's threads; what torch.compile makes for a CPU uses OpenMP."""
    from recyclegpt.kernels.build import find_compiler

    compiler = find_compiler()
    if compiler is None or not _exists(compiler):
        return []
    error = _compile(compiler, PARALLEL, "-fopenmp")
    if error is None:
        return [Finding(GROUP, "OpenMP", "works")]
    return [
        Finding(
            GROUP,
            "OpenMP",
            f"does not work ({error}); only compile=true and decoding.compile=true on a CPU need it",
            Verdict.WARNING,
            "install the compiler's OpenMP (libgomp with g++, libomp with clang++), or leave compile at false",
        )
    ]


def kernels() -> list[Finding]:
    """Whether decoding will have to compile them first."""
    from recyclegpt.kernels.build import find_compiler, is_whole, library_path

    compiler = find_compiler()
    if compiler is None or not _exists(compiler):
        return []
    library = library_path(compiler)
    if not library.exists():
        return [
            Finding(
                GROUP, "kernels", f"not compiled yet: the first decoding does it in about ten seconds, to {library}"
            )
        ]
    if is_whole(library):
        return [Finding(GROUP, "kernels", f"compiled, and as they were written: {library}")]
    return [
        Finding(
            GROUP,
            "kernels",
            f"{library} is not what was compiled (its checksum differs or is missing)",
            Verdict.WARNING,
            f"rm {shlex.quote(str(library))}; the next decoding compiles it anew, also if it is left there",
        )
    ]


def _exists(compiler: str) -> bool:
    words = shlex.split(compiler)
    return bool(words) and shutil.which(words[0]) is not None


def _compile(compiler: str, program: str, *options: str) -> str | None:
    """Compile and link a small library in a temporary folder; the first error, or None."""
    with tempfile.TemporaryDirectory(prefix="recyclegpt-doctor-") as folder:
        source = Path(folder) / "answer.cpp"
        source.write_text(program, encoding="ascii")
        words = [*shlex.split(compiler), "-std=c++20", "-fPIC", "-shared", *options]
        try:
            done = subprocess.run(
                [*words, str(source), "-o", str(source.with_suffix(".so"))],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {TIMEOUT_S} s"
        if not done.returncode:
            return None
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return next((line for line in lines if "error" in line), lines[-1])[:200]


CHECKS: dict[str, Check] = {"C++ compiler": found, "test program": works, "OpenMP": openmp, "kernels": kernels}
