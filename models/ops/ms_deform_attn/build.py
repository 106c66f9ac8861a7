"""The compiled CPU library: where it lies, how it is compiled, when it is loaded.

Three folders are looked through: the package itself (built ahead of time), the user's cache
(`MS_DEFORM_ATTN_CACHE`, else `$XDG_CACHE_HOME/ms_deform_attn`, else `~/.cache/ms_deform_attn`) and, where that cannot
be written, a private folder of the temporary directory. The file name carries a digest of everything the machine code
depends on, so a library of another torch or of older sources is never loaded. `MS_DEFORM_ATTN_COMPILE=0` never
compiles.
"""

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock, Timeout

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE / "csrc"

# What decides between instruction sets includes torch's headers and is compiled for every machine; the kernel includes
# none of them, so that no inline function that others link against is ever compiled for AVX-512.
OPERATOR_FLAGS = ("-O2", "-DNDEBUG")
KERNEL_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-DNDEBUG")
SHARED_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
INSTRUCTION_SETS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ),
}
PROBES = {  # a function that only a compiler and an assembler that know the instruction set can translate
    "avx2": "#include <immintrin.h>\n__m256 f(__m256 a) { return _mm256_fmadd_ps(a, a, a); }\n",
    "avx512": "#include <immintrin.h>\n__m512 f(__m512 a) { return _mm512_fmadd_ps(a, a, a); }\n",
}
STANDARDS = ("-std=c++20", "-std=c++17")  # the newest torch asks for the first, torch 2.9 is content with the second
SECONDS_TO_WAIT = 600  # for another process that compiles


class BuildError(RuntimeError):
    """There is no compiled library: one sentence says why."""


class UnloadableError(BuildError):
    """There is a compiled library that cannot be loaded from where it lies."""


class CompilationDisabled(BuildError):
    """There is no compiled library, and `MS_DEFORM_ATTN_COMPILE=0` asks not to compile one."""


_loading = threading.RLock()


@cache
def available() -> bool:
    """Whether the compiled kernel can be called; the first call loads or compiles it and warns once where it cannot."""
    with _loading:
        failure = _outcome()
        if failure is not None and not isinstance(failure, CompilationDisabled):
            _warn(str(failure))
    return failure is None


def load() -> None:
    """Make `torch.ops.ms_deform_attn_cpu` available, compiling it where it was never compiled; raises BuildError."""
    with _loading:
        failure = _outcome()
    if failure is not None:
        raise failure


@cache
def _outcome() -> BuildError | None:
    try:
        _load(library())
    except BuildError as error:
        return error
    return None


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise UnloadableError(f"{path} cannot be loaded ({error.__cause__ or error})") from error


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"ms_deform_attn: no compiled CPU kernel: {reason}. Calls on the CPU use pure PyTorch, about 5x slower for "
        "large maps and 3x for few queries. With a C++ compiler (g++) on the PATH the kernel is compiled at the first "
        "call; MS_DEFORM_ATTN_COMPILE=0 chooses pure PyTorch without this warning",
        stacklevel=3,
    )


def library() -> Path:
    """The library of this torch and these sources: found, or compiled into the first folder that can be written.

    Raises BuildError where it is not found and cannot be compiled, ValueError for another MS_DEFORM_ATTN_COMPILE than
    0 and 1.
    """
    wanted = os.environ.get("MS_DEFORM_ATTN_COMPILE") or "1"
    if wanted not in ("0", "1"):
        raise ValueError(f"MS_DEFORM_ATTN_COMPILE={wanted!r} is not understood: 0 never compiles, 1 does (default)")
    name = file_name()
    if (PACKAGE / name).is_file():
        return PACKAGE / name
    refused, folders = [], []
    for prepare in (cache_folder, temporary_folder):
        with suppress(OSError):
            folders.append(prepare(create=False))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    for prepare in (cache_folder, temporary_folder) if wanted == "1" else ():
        try:
            return compile_into(prepare(create=True))
        except (OSError, UnloadableError) as error:  # the latter where a mount forbids to execute what lies on it
            refused.append(str(error))
    if wanted == "0":
        raise CompilationDisabled("none was built ahead of time and MS_DEFORM_ATTN_COMPILE=0 asks not to compile")
    raise BuildError(f"no folder can be used ({'; '.join(refused)}): set MS_DEFORM_ATTN_CACHE to one that can")


def file_name() -> str:
    """`ms_deform_attn_cpu-DIGEST.so`; no version of Python in it, since the library knows nothing of Python."""
    digest = hashlib.sha256()
    facts = (
        *(OPERATOR_FLAGS, KERNEL_FLAGS, SHARED_FLAGS, INSTRUCTION_SETS, STANDARDS),
        *(torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi(), _openmp_flags()),
        *(sys.platform, platform.machine(), platform.libc_ver()),
    )
    digest.update(repr(facts).encode())
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return f"ms_deform_attn_cpu-{digest.hexdigest()[:20]}.so"


def _sources() -> list[Path]:
    sources = sorted(path for path in SOURCES.glob("*") if path.suffix in (".cpp", ".h"))
    missing = {"operator.cpp", "kernel.cpp", "clang_threads.cpp"} - {path.name for path in sources}
    if missing:
        raise BuildError(f"{SOURCES} lacks {' and '.join(sorted(missing))}: install the package again")
    return sources


def cache_folder(create: bool) -> Path:
    """The user's cache; raises OSError where it is to be written and cannot be, or where the user has no home."""
    chosen = os.environ.get("MS_DEFORM_ATTN_CACHE")
    try:
        if chosen:
            folder = Path(chosen).expanduser().absolute()
        else:
            shared = os.environ.get("XDG_CACHE_HOME", "")
            # the specification of these directories: a relative path is to be ignored
            folder = (Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()) / "ms_deform_attn"
    except RuntimeError as error:  # containers run as users that nobody knows
        raise OSError(str(error)) from error
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_folder(create: bool) -> Path:
    """A folder of the temporary directory that nobody but this user can write; raises OSError where there is none.

    Anybody may create that name first, so owner and mode are verified before anything in it is trusted.
    """
    if os.name != "posix":
        raise PermissionError("owner and mode of a temporary folder can be verified on POSIX systems alone")
    folder = Path(tempfile.gettempdir()) / f"ms_deform_attn-{os.getuid()}"
    if create:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    elif not os.path.lexists(folder):
        return folder
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def compile_into(folder: Path) -> Path:
    """Compile the library into `folder` unless it is there; of several processes one compiles, the others wait.

    Raises BuildError where it cannot be compiled and OSError where the folder cannot be written.
    """
    if os.name != "posix":
        raise BuildError(f"the CPU kernel is compiled on Linux and macOS, this is {platform.system()}")
    path = folder / file_name()
    log = path.with_suffix(".log")
    began = time.time()
    try:
        with FileLock(f"{path}.lock", timeout=SECONDS_TO_WAIT):
            if path.is_file():
                return path
            if log.is_file() and log.stat().st_mtime > began:  # failed while this process waited: it would fail again
                raise BuildError(_first_error(log))
            for left in folder.glob(f"{path.stem}.build-*"):  # of processes that were killed; nobody else is here now
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{path.stem}.build-", dir=folder) as scratch:
                os.replace(_compile(Path(scratch), log), path)
            try:
                _load(path)
            except BuildError as error:  # what cannot be loaded where it was made is not kept for others
                log.write_text(f"error: {error}\n")
                path.unlink()
                raise
            log.unlink(missing_ok=True)
    except Timeout as error:
        raise BuildError(f"another process has held {path}.lock for {SECONDS_TO_WAIT} s") from error
    except NotImplementedError as error:  # filelock: a file system that cannot lock
        raise OSError(f"{folder} is on a file system without locks") from error
    return path


def _compile(scratch: Path, log: Path) -> Path:
    compiler = _compiler()
    standard = next((flag for flag in STANDARDS if _accepts(compiler, (flag,), "", scratch)), None)
    if standard is None:
        raise BuildError(f"{shlex.join(compiler)} cannot compile C++17 (an empty file with {STANDARDS[-1]} fails)")
    known = [
        name
        for name, flags in INSTRUCTION_SETS.items()
        if platform.machine().lower() in ("x86_64", "amd64") and _accepts(compiler, flags, PROBES[name], scratch)
    ]
    print(
        f"ms_deform_attn: compiling the CPU kernel once (about half a minute) into {log.parent}",
        file=sys.stderr,
        flush=True,
    )

    torch_flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", *_openmp_flags()]
    for include in _cpp_extension().include_paths():
        torch_flags += ["-isystem", include]  # warnings of torch's headers are not ours to mend
    # torch's headers include omp.h for these two, and some installations of clang have none: ours is looked at last
    (scratch / "omp.h").write_text('extern "C" int omp_get_num_threads();\nextern "C" int omp_get_thread_num();\n')
    torch_flags += ["-idirafter", str(scratch)]
    units = {
        "operator": ("operator.cpp", [*OPERATOR_FLAGS, *torch_flags, *(f"-DHAVE_{name.upper()}" for name in known)]),
        "clang_threads": ("clang_threads.cpp", [*OPERATOR_FLAGS, *_openmp_flags()]),
        "baseline": ("kernel.cpp", [*KERNEL_FLAGS, "-DCAPABILITY=baseline"]),
    }
    for name in known:
        units[name] = ("kernel.cpp", [*KERNEL_FLAGS, f"-DCAPABILITY={name}", *INSTRUCTION_SETS[name]])
    commands = [
        [*compiler, standard, *SHARED_FLAGS, *flags, "-c", str(SOURCES / source), "-o", str(scratch / f"{name}.o")]
        for name, (source, flags) in units.items()
    ]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        finished = list(pool.map(_run, commands))
    built = scratch / "library.so"
    if all(result.returncode == 0 for result in finished):
        objects = [str(scratch / f"{name}.o") for name in units]
        finished.append(_run([*compiler, "-shared", *objects, *_link_flags(), "-o", str(built)]))
    if any(result.returncode for result in finished):
        log.write_text("\n".join(f"$ {shlex.join(result.args)}\n{result.stdout}" for result in finished))
        raise BuildError(_first_error(log))
    with open(built, "rb") as file:
        os.fsync(file.fileno())  # a name that points to half a library after a power cut would be loaded for ever
    return built


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # errors are looked for in English
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, f"error: {command[0]} cannot be started ({error})\n")


def _first_error(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    first = next((line for line in lines if re.search(r"error\b", line) and not line.startswith("$ ")), "no error line")
    return f"the compiler failed with {first.strip()!r} (all it said: {log})"


def _compiler() -> list[str]:
    """The command of the C++ compiler: `CXX` where it is set (as for torch's extensions), else the first usual name."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    if chosen:
        raise BuildError(f"CXX={chosen!r} is no command on the PATH")
    raise BuildError("no C++ compiler (c++, g++ or clang++) is on the PATH")


def _accepts(compiler: list[str], flags: tuple[str, ...], source: str, scratch: Path) -> bool:
    probe = scratch / "probe.cpp"
    probe.write_text(source)
    return _run([*compiler, *flags, "-c", str(probe), "-o", str(scratch / "probe.o")]).returncode == 0


def _cpp_extension() -> ModuleType:
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a CUDA toolkit without a GPU, which is no matter of a CPU library
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise BuildError(f"torch.utils.cpp_extension cannot be imported ({error}): pip install setuptools") from error
    finally:
        logger.setLevel(level)
    return cpp_extension


def _openmp_flags() -> tuple[str, ...]:
    """What makes at::parallel_for parallel: nothing where torch has threads of its own, OpenMP where it has not."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return ()
    return ("-Xpreprocessor", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)


def _link_flags() -> list[str]:
    """Link against torch alone: OpenMP is left undefined and found in the runtime that torch brought.

    Linking with -fopenmp would name the system's runtime, and a process with two of them has two pools of threads.
    `now` resolves everything when the library is loaded: a missing symbol is an error then, not a crash later.
    """
    libraries = [*(f"-L{path}" for path in _cpp_extension().library_paths()), "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        return [*libraries, "-undefined", "dynamic_lookup"]
    return [*libraries, "-Wl,-z,now"]
