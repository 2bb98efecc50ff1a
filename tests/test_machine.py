"""The processor that this process may use, with control groups in a folder made for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagcos_stream import machine


def groups(root: Path, memberships: str, files: dict[str, str]) -> Path:
    """A file system with these lines in /proc/self/cgroup and these files under /sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(memberships)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("memberships", "files", "quota"),
    [
        ("0::/\n", {}, None),  # no limit file: the top group of a machine has none
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # in a container the own group is the top
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),  # an ancestor limits
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/unseen/path\n", {"cpu.max": "200000 100000\n"}, 2.0),  # the host's path, not visible in the container
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "7000\n", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "10000\n"}, 0.7),
        (V1, {"memory/docker/abc/cpu.cfs_quota_us": "7000\n", "memory/docker/abc/cpu.cfs_period_us": "10000\n"}, None),
    ],
)
def test_cpu_quota__of_both_versions(memberships: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    root = groups(tmp_path, memberships, files)
    assert machine.cpu_quota(root) == quota
    cores = machine.affinity()
    assert machine.available_cpus(root) == (cores if quota is None else max(1, min(cores, int(quota))))


GIB = 1 << 30
UNLIMITED = "9223372036854771712\n"  # of version 1


@pytest.mark.parametrize(
    ("memberships", "files", "gib"),
    [
        ("0::/\n", {"memory.stat": "anon 5\n"}, 8),  # the top group of a machine has no limit
        ("0::/\n", {"memory.max": "max\n", "memory.stat": "anon 5\n"}, 8),
        ("0::/\n", {"memory.max": f"{4 * GIB}\n", "memory.stat": f"anon {GIB}\nfile {2 * GIB}\n"}, 3),  # a page cache can go
        ("0::/\n", {"memory.max": f"{4 * GIB}\n", "memory.stat": f"anon {GIB}\nshmem {GIB}\n"}, 2),  # a shared memory cannot
        ("0::/a/b\n", {"a/memory.max": f"{2 * GIB}\n", "a/memory.stat": "anon 0\n", "a/b/memory.max": "max\n"}, 2),
        (
            "0::/a/b\n",
            {"a/memory.max": f"{6 * GIB}\n", "a/memory.stat": f"anon {5 * GIB}\n"}
            | {"a/b/memory.max": f"{3 * GIB}\n", "a/b/memory.stat": f"anon {GIB}\n"},
            1,  # what its neighbours leave
        ),
        ("0::/a\n", {"a/memory.max": f"{GIB}\n", "a/memory.stat": f"anon {2 * GIB}\n"}, 0),
        ("0::/a\n", {"a/memory.max": f"{64 * GIB}\n", "a/memory.stat": "anon 0\n"}, 8),  # more than the machine has
        (V1, {"memory/memory.limit_in_bytes": UNLIMITED, "memory/memory.stat": "total_rss 5\n"}, 8),
        (V1, {"memory/memory.limit_in_bytes": f"{2 * GIB}\n", "memory/memory.stat": f"rss 0\ntotal_rss {GIB}\n"}, 1),
        (
            V1,
            {"memory/docker/abc/memory.limit_in_bytes": f"{3 * GIB}\n", "memory/docker/abc/memory.stat": f"total_rss {GIB}\n"}
            | {"memory/memory.limit_in_bytes": UNLIMITED, "memory/memory.stat": "total_rss 5\n"},
            2,
        ),
        (V1, {"cpu/memory.limit_in_bytes": "5\n", "cpu/memory.stat": "total_rss 0\n"}, 8),
    ],
)
def test_free_memory__of_both_versions(memberships: str, files: dict[str, str], gib: int, tmp_path: Path) -> None:
    root = groups(tmp_path, memberships, files)
    (root / "proc" / "meminfo").write_text(f"MemTotal:  {16 << 20} kB\nMemAvailable:  {8 << 20} kB\nHugePages_Total:   0\n")
    assert machine.free_memory(root) == gib * GIB


def test_free_memory__without_proc_is_all_that_there_is(tmp_path: Path) -> None:
    assert machine.free_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_available_cpus__without_proc_are_the_cores(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.available_cpus(tmp_path) == machine.affinity()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask on this system")
def test_available_cpus__follow_the_affinity_mask() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from tagcos_stream import machine as m; "
    done = subprocess.run([sys.executable, "-c", code + "print(m.available_cpus())"], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_thread_defaults__follow_the_quota_and_leave_what_the_user_set(tmp_path: Path) -> None:
    limited = groups(tmp_path / "limited", "0::/\n", {"cpu.max": "50000 100000\n"})
    free = groups(tmp_path / "free", "0::/\n", {"cpu.max": "max 100000\n"})
    environment: dict[str, str] = {}
    machine.set_environment_defaults(environment, free)
    assert "OMP_NUM_THREADS" not in environment
    assert environment["USE_HUB_KERNELS"] == "0"
    machine.set_environment_defaults(environment, limited)
    expected = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} if machine.affinity() > 1 else {}
    assert {name: value for name, value in environment.items() if name.endswith("_NUM_THREADS")} == expected
    environment = {"OMP_NUM_THREADS": "7"}
    machine.set_environment_defaults(environment, limited)
    assert environment["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_wait_policy__is_passive_unless_the_user_set_one(before: dict[str, str], after: dict[str, str], tmp_path: Path) -> None:
    machine.set_environment_defaults(before, tmp_path, package=tmp_path)
    assert before == after | {"USE_HUB_KERNELS": "0"}


def test_wait_policy__is_set_before_torch_is_imported() -> None:
    code = """
import os, sys
from flows.cli import main
assert "torch" not in sys.modules
sys.argv = ["tagcos", "status", "--root", "none"]
try:
    main.main()
except SystemExit:
    print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "PASSIVE"


def test_instruction_sets__as_cpuinfo_lists_them(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor : 0\nflags : fpu avx avx2 avx512f fma\n\nprocessor : 1\nflags : fpu\n")
    assert machine.instruction_sets(tmp_path) == ["avx2", "avx512f"]
    assert machine.instruction_sets(tmp_path / "none") == []


def test_matrix_rate__is_that_of_a_processor() -> None:
    assert 1e8 < machine.matrix_rate(256, 0.01) < 1e15


def test_environment_defaults__keep_compiled_kernels_where_the_user_may_write(tmp_path: Path) -> None:
    root, read_only = tmp_path / "root", tmp_path / "missing"
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    machine.set_environment_defaults(environment, root, package=tmp_path)
    assert "NUMBA_CACHE_DIR" not in environment
    machine.set_environment_defaults(environment, root, package=read_only)
    assert environment["NUMBA_CACHE_DIR"] == str(tmp_path / "cache" / "tagcos" / "kernels")
    environment["NUMBA_CACHE_DIR"] = "mine"
    machine.set_environment_defaults(environment, root, package=read_only)
    assert environment["NUMBA_CACHE_DIR"] == "mine"
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}  # cannot hold a folder
    machine.set_environment_defaults(environment, root, package=read_only)
    folder = Path(environment["NUMBA_CACHE_DIR"]).parent
    assert (folder.stat().st_mode & 0o777, folder.parent) != (0o755, tmp_path)
    folder.rmdir()
