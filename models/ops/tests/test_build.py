"""Finding, compiling and loading: mostly with small sources in place of the kernel's, which take half a second."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ms_deform_attn import build

OPS = Path(__file__).parents[1]
ROOT = OPS.parents[1]

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler on the PATH"
)


def forget() -> None:
    for cached in (build.available, build._outcome, build._warn):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Sources of one function each instead of the kernel's; cache and temporary directory below tmp_path."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "kernel.cpp").write_text("namespace CAPABILITY { int answer() { return 42; } }\n")
    (sources / "operator.cpp").write_text(
        'namespace baseline { int answer(); }\nextern "C" int operator_answer() { return baseline::answer(); }\n'
    )
    shutil.copy(build.SOURCES / "clang_threads.cpp", sources)
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "package").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("MS_DEFORM_ATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MS_DEFORM_ATTN_COMPILE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return sources


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A compiler that writes down its arguments, one line a call, and may be told to do more."""
    script, calls = tmp_path / "compiler", tmp_path / "calls"
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))

    def make(extra: str = "") -> Path:
        script.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{extra}\nexec {real} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return calls

    return make


def links(calls: Path) -> int:
    return sum("-shared" in line for line in calls.read_text().splitlines())


def unwritable(tmp_path: Path) -> str:
    """No user can make a folder below a file, not even root."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "cache")


def in_a_process(sources: Path, **environment: str) -> "subprocess.Popen[str]":
    code = (
        "import sys; from pathlib import Path; from ms_deform_attn import build\n"
        "build.SOURCES = Path(sys.argv[1]); build.PACKAGE = Path('/nowhere'); print(build.library())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(sources)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_compiles_once_with_a_notice_and_is_found_again(small, recorded, capfd, tmp_path):
    calls = recorded()
    path = build.library()
    assert path.parent == tmp_path / "cache"
    notice = capfd.readouterr().err
    assert notice.startswith("ms_deform_attn: compiling the CPU kernel once (about ") and notice.count("\n") == 1
    assert build.library() == path and links(calls) == 1
    assert capfd.readouterr().err == ""
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}
    assert build.available()
    build.load()


def test_the_package_comes_first_then_the_cache(small, tmp_path):
    assert build.library().parent == tmp_path / "cache"
    build.compile_into(build.PACKAGE)
    assert build.library().parent == tmp_path / "package"


@pytest.mark.parametrize(
    ("cache", "xdg", "expected"),
    [("{}/mine", "{}/xdg", "{}/mine"), (None, "{}/xdg", "{}/xdg/ms_deform_attn")]
    + [(None, given, "{}/.cache/ms_deform_attn") for given in (None, "", "relative")],
)
def test_cache_folder(cache, xdg, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, given in (("MS_DEFORM_ATTN_CACHE", cache), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given.format(tmp_path))
    assert build.cache_folder(create=True) == Path(expected.format(tmp_path))
    assert Path(expected.format(tmp_path)).is_dir()


def test_name_knows_sources_flags_and_torch_but_not_python(small, monkeypatch):
    names = [build.file_name()]
    assert names[0] == build.file_name()
    (small / "operator.cpp").write_text((small / "operator.cpp").read_text() + "// newer\n")
    names.append(build.file_name())
    (small / "kernel.h").write_text("")
    names.append(build.file_name())
    monkeypatch.setattr(build, "KERNEL_FLAGS", ("-O1",))
    names.append(build.file_name())
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    names.append(build.file_name())
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    names.append(build.file_name())
    assert len(set(names)) == len(names)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert build.file_name() == names[-1]


def test_the_compiler_is_told_what_the_machine_needs(small, recorded):
    calls = recorded()
    build.library()
    lines = [line for line in calls.read_text().splitlines() if str(small) in line]
    operator = next(line for line in lines if "operator.cpp" in line)
    kernels = [line for line in lines if "kernel.cpp" in line]
    assert "-isystem" in operator and "-march" not in operator and "-mavx" not in operator
    assert not any("torch" in line.lower() for line in kernels)
    if build.platform.machine().lower() in ("x86_64", "amd64"):
        assert "-DHAVE_AVX2 -DHAVE_AVX512" in operator
        capabilities = {word for line in kernels for word in line.split() if word.startswith("-DCAPABILITY")}
        assert capabilities == {"-DCAPABILITY=baseline", "-DCAPABILITY=avx2", "-DCAPABILITY=avx512"}
    else:
        assert "HAVE_AVX" not in operator and len(kernels) == 1


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch was built without OpenMP")
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_compiler_shares_the_threads_of_torch(compiler, small, monkeypatch):
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler} on the PATH")
    monkeypatch.setenv("CXX", compiler)
    (small / "operator.cpp").write_text(
        """extern "C" __attribute__((visibility("default"))) int region(int start, long step, double* total) {
             int threads = start;
             #pragma omp parallel
             {
               #pragma omp atomic
               threads += step;
               #pragma omp atomic
               *total += 0.5;
             }
             return threads;
           }"""
    )
    region = ctypes.CDLL(str(build.library())).region
    before = torch.get_num_threads()
    try:
        for threads in (3, 1):
            torch.set_num_threads(threads)  # sets the number for the runtime of torch alone
            total = ctypes.c_double(1.0)
            assert region(100, ctypes.c_long(7), ctypes.byref(total)) == 100 + 7 * threads
            assert total.value == 1.0 + 0.5 * threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(build.platform.machine().lower() not in ("x86_64", "amd64"), reason="instruction sets of x86-64")
def test_a_compiler_without_avx512_compiles_the_others(small, recorded):
    calls = recorded('case "$*" in *-mavx512f*) echo "error: unrecognized option -mavx512f"; exit 1;; esac')
    build.library()
    operator = next(line for line in calls.read_text().splitlines() if str(small / "operator.cpp") in line)
    assert "-DHAVE_AVX2" in operator and "-DHAVE_AVX512" not in operator


def test_a_compile_error_is_quoted_with_its_log(small, tmp_path):
    source = (small / "operator.cpp").read_text()
    (small / "operator.cpp").write_text(source + "int wrong() { return undeclared; }\n")
    with pytest.raises(build.BuildError, match=r"operator.cpp:3:.*undeclared") as caught:
        build.library()
    (log,) = (tmp_path / "cache").glob("*.log")
    assert str(log) in str(caught.value) and "\n" not in str(caught.value)
    assert log.read_text().startswith("$ ") and "-DCAPABILITY=baseline" in log.read_text()
    assert not list((tmp_path / "cache").glob("*.so")) and not list((tmp_path / "cache").glob("*.build-*"))
    (small / "operator.cpp").write_text(source)
    assert build.library().is_file()


def test_a_library_that_cannot_be_loaded_is_not_kept(small, tmp_path):
    with open(small / "operator.cpp", "a") as source:
        source.write('int nowhere(); extern "C" int call() { return nowhere(); }\n')
    with pytest.raises(build.BuildError, match=r"cannot be loaded .*undefined symbol: .*nowhere"):
        build.library()
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("", r"no C\+\+ compiler \(c\+\+, g\+\+ or clang\+\+\)"), ("no-such-g++ -v", "CXX='no-such-g.*' is no command")],
)
def test_without_a_compiler_it_warns_once(compiler, message, small, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(
        UserWarning, match=message + r".*5x slower for large maps and 3x for few queries.*compiler"
    ) as warned:
        assert not build.available()
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not build.available()
    with pytest.raises(build.BuildError, match=message):
        build.load()


def test_compile_0_is_a_choice_and_no_warning(small, monkeypatch, tmp_path):
    monkeypatch.setenv("MS_DEFORM_ATTN_COMPILE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not build.available()
    with pytest.raises(build.CompilationDisabled, match="MS_DEFORM_ATTN_COMPILE=0"):
        build.load()
    assert not (tmp_path / "cache").exists() and not list((tmp_path / "temporary").iterdir())
    build.compile_into(build.cache_folder(create=True))
    forget()
    assert build.available()  # what is built is used


def test_compile_must_be_0_or_1(small, monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_COMPILE", "no")
    with pytest.raises(ValueError, match="MS_DEFORM_ATTN_COMPILE='no' is not understood: 0 never compiles"):
        build.available()


def test_an_unwritable_cache_gives_way_to_a_private_temporary_folder(small, monkeypatch, tmp_path):
    monkeypatch.setenv("MS_DEFORM_ATTN_CACHE", unwritable(tmp_path))
    path = build.library()
    assert path.parent == tmp_path / "temporary" / f"ms_deform_attn-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700 and path.parent.stat().st_uid == os.getuid()
    assert build.library() == path
    monkeypatch.setenv("MS_DEFORM_ATTN_COMPILE", "0")
    assert build.library() == path


@pytest.mark.parametrize("planted", ["writable by others", "readable by others", "a link", "of another user"])
def test_a_temporary_folder_that_others_may_write_is_not_trusted(planted, small, monkeypatch, tmp_path):
    monkeypatch.setenv("MS_DEFORM_ATTN_CACHE", unwritable(tmp_path))
    folder = tmp_path / "temporary" / f"ms_deform_attn-{os.getuid()}"
    if planted == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod({"writable by others": 0o777, "readable by others": 0o744}.get(planted, 0o700))
    (folder / build.file_name()).write_bytes(b"")
    if planted == "of another user":
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        folder.rename(folder.with_name(f"ms_deform_attn-{user + 1}"))
    for wanted in ("0", "1"):
        monkeypatch.setenv("MS_DEFORM_ATTN_COMPILE", wanted)
        with pytest.raises(build.BuildError):
            build.library()
    with pytest.raises(build.BuildError, match=r"no folder can be used \(.*Not a directory.*; .* not a folder of"):
        build.library()


def test_two_processes_compile_once(small, recorded, tmp_path):
    calls = recorded('case "$*" in *-shared*) sleep 1.5;; esac')  # long enough for both to meet
    ranks = [in_a_process(small) for _ in range(2)]
    shown = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], shown
    assert shown[0][0] == shown[1][0] and Path(shown[0][0].strip()).is_file()
    assert links(calls) == 1 and sum("compiling" in errors for _, errors in shown) == 1


def test_those_who_waited_for_a_failure_do_not_repeat_it(small, recorded, tmp_path):
    calls = recorded('sleep 0.2\ncase "$*" in *kernel.cpp*) echo "error: no"; exit 1;; esac')

    def attempt(_: int) -> str:
        with pytest.raises(build.BuildError) as caught:
            build.compile_into(build.cache_folder(create=True))
        return str(caught.value)

    with ThreadPoolExecutor(3) as pool:
        messages = set(pool.map(attempt, range(3)))
    assert len(messages) == 1 and "failed with 'error: no'" in messages.pop()
    assert sum("operator.cpp" in line for line in calls.read_text().splitlines()) == 1


def test_a_killed_compile_blocks_nobody(small, recorded, tmp_path):
    calls = recorded('case "$*" in *kernel.cpp*) exec sleep 10;; esac')
    killed = in_a_process(small)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if list((tmp_path / "cache").glob("*.build-*/operator.o")) and "kernel.cpp" in calls.read_text():
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list((tmp_path / "cache").glob("*.build-*"))  # what it left behind
    recorded()
    began = time.monotonic()
    assert build.library().is_file() and time.monotonic() - began < 60
    assert not list((tmp_path / "cache").glob("*.build-*"))


def test_a_user_without_a_home_has_the_temporary_folder(small, monkeypatch):
    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MS_DEFORM_ATTN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "expanduser", nowhere)
    assert build.library().parent == build.temporary_folder(create=False)


def test_a_cache_that_forbids_execution_is_passed_over(small, monkeypatch):
    """And what the temporary folder then holds is found the next time without compiling again."""
    load = build._load

    def loads(path):
        if path.parent == build.cache_folder(create=False):
            raise build.UnloadableError("Operation not permitted")
        load(path)

    monkeypatch.setattr(build, "_load", loads)
    made = build.library()
    assert made.parent == build.temporary_folder(create=False)
    monkeypatch.setattr(build, "compile_into", None)
    assert build.library() == made


def test_the_user_hears_who_is_waited_for(small, monkeypatch):
    monkeypatch.setattr(build, "SECONDS_TO_WAIT", 0.2)
    path = build.cache_folder(create=True) / build.file_name()
    with (
        build.FileLock(f"{path}.lock"),
        pytest.raises(build.BuildError, match=r"another process has held .*\.lock for 0.2 s"),
    ):
        build.library()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernel itself, compiled with every warning an error; by another process, for each loads one library only."""
    folder = tmp_path_factory.mktemp("compiled")
    code = "import pathlib, sys; from ms_deform_attn import build; print(build.compile_into(pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "CXX": f"{os.environ.get('CXX') or 'c++'} -Werror"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.strip())


SHOW = """
import json, sys, torch
torch.set_num_threads(2)
from ms_deform_attn import ms_deform_attn, paths
value = torch.randn(1, 64 * 64, 8, 32, requires_grad=True)
locations, weights = torch.rand(1, 4096, 8, 1, 4, 2), torch.rand(1, 4096, 8, 1, 4)
ms_deform_attn(value, torch.tensor([[64, 64]]), locations, weights).sum().backward()
maps = {line.split()[-1] for line in open("/proc/self/maps")} if sys.platform == "linux" else ()
runtimes = [name for name in maps if any(part in name for part in ("libgomp", "libomp", "libiomp"))]
library = [name for name in maps if "ms_deform_attn_cpu" in name]
print(json.dumps([paths.chosen_path(value).name, runtimes, library]))
"""


def shown_by_a_process(**environment: str) -> tuple[list, str]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_kernel_is_free_of_warnings_and_shares_the_threads_of_torch(compiled):
    (path, runtimes, library), errors = shown_by_a_process(MS_DEFORM_ATTN_CACHE=str(compiled.parent), PATH="")
    assert path == "compiled" and library == [str(compiled)] and errors == ""
    assert len(runtimes) == 1, "two OpenMP runtimes in one process have two pools of threads"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("temporary_is_seeded", [True, False])
def test_no_cache_and_no_compiler(temporary_is_seeded, compiled, tmp_path):
    folder = tmp_path / f"ms_deform_attn-{os.getuid()}"
    folder.mkdir(mode=0o700)
    if temporary_is_seeded:
        shutil.copy(compiled, folder)
    (path, _, library), errors = shown_by_a_process(
        MS_DEFORM_ATTN_CACHE=unwritable(tmp_path), TMPDIR=str(tmp_path), PATH="", CXX=""
    )
    if temporary_is_seeded:
        assert path == "compiled" and library == [str(folder / compiled.name)] and errors == ""
    else:
        assert path == "weighted_rows" and library == [] and errors.count("no C++ compiler") == 1


def test_ahead_of_time_by_make_sh(small, tmp_path):
    ops = tmp_path / "ops"
    shutil.copytree(
        OPS, ops, ignore=shutil.ignore_patterns("*.so", "csrc", "__pycache__", "tests", "build", "*.egg-info")
    )
    shutil.copytree(small, ops / "ms_deform_attn" / "csrc")
    done = subprocess.run(
        ["sh", "make.sh"], cwd=ops, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (library,) = (ops / "ms_deform_attn").glob("*.so")
    assert str(library) in done.stdout and library.name == build.file_name()
    (ops / "ms_deform_attn" / "csrc" / "kernel.cpp").write_text("wrong\n")
    failed = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ops, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "ms_deform_attn: the compiler failed with" in failed.stderr


@pytest.mark.parametrize("project", [".", "models/ops"])
def test_installations_bring_the_sources_and_no_library(project, tmp_path):
    packages = tmp_path / "models" / "ops" / "ms_deform_attn", tmp_path / "lightning_xai"
    shutil.copytree(build.PACKAGE, packages[0], ignore=shutil.ignore_patterns("__pycache__"))
    packages[1].mkdir()
    (packages[1] / "__init__.py").write_text("")
    (packages[0] / "ms_deform_attn_cpu-0.so").write_text("")
    for name in ("pyproject.toml", "setup.py", "README.md", "models/ops/setup.py"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path / name)
    if not (tmp_path / project / "setup.py").is_file():
        pytest.skip("the operator stands alone here")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")],
        cwd=tmp_path / project,
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": ""},
    )
    installed = tmp_path / "lib" / "ms_deform_attn"
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert names == {
        *(path.name for path in build.PACKAGE.glob("*.py")),
        *(f"csrc/{path.name}" for path in build._sources()),
    }
