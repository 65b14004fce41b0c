"""The number of cores, from files as Linux shows them in a container, in a service and outside of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftvit import environment


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        ("0::/", {}, []),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/docker/1a", {"cpu.max": "50000 100000"}, [0.5]),  # the container sees its own group as the root
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "c/cpu.max": "1 1"}, [3]),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("2:cpuset:/\n1:cpu:/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, [2.5]),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"}, [2]),
        ("0::/../x", {"cpu.max": "400000 100000"}, [4]),
        ("0::/", {"cpu.max": ""}, []),
        ("0::/", {"cpu.max": "100000 0"}, []),
    ],
)
def test_quotas_are_those_of_the_group_and_the_ones_above(
    groups: str, files: dict[str, str], quotas: list[float], tmp_path: Path
) -> None:
    (tmp_path / "groups").write_text(groups + "\n")
    for name, text in files.items():
        place = tmp_path / "mounted" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + "\n")
    assert environment._read_quotas(tmp_path / "groups", tmp_path / "mounted") == quotas


def test_systems_without_control_groups_have_no_quota(tmp_path: Path) -> None:
    assert environment._read_quotas(tmp_path / "groups", tmp_path) == []


@pytest.mark.parametrize(
    ("cores", "quotas", "count"),
    [(8, [], 8), (8, [2.5, 4], 3), (8, [0.2], 1), (2, [16], 2), (1, [1.5], 1), (4, [0], 1)],
)
def test_cores_are_limited_by_the_smallest_quota(
    cores: int, quotas: list[float], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(environment, "_read_quotas", lambda *_: quotas)
    assert environment.count_cores() == count
