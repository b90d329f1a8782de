"""Curves of growing batch, image and threads."""

import json

import pytest

from benchmarks import scaling
from kernels import dispatch


@pytest.fixture(scope="module")
def points():
    places = {"batch": (1, 2), "side": (32, 64), "threads": (1,)}
    return scaling.measure(2, lambda what: None, places)


def test_one_thing_grows_at_a_time(points, monkeypatch):
    assert {(p.batch, p.side) for p in points if p.axis == "batch"} == {(1, 224), (2, 224)}
    assert {(p.batch, p.side) for p in points if p.axis == "side"} == {(8, 32), (8, 64)}
    assert all(p.threads == 1 for p in points if p.axis == "threads")
    assert {p.kind for p in points} == set(scaling.KINDS)
    assert dispatch.get_num_threads() == max(p.threads for p in points)


def test_the_cost_is_that_of_an_image_of_the_full_size():
    point = scaling.Point("side", "inference", batch=4, side=112, threads=1, seconds=2.0)
    assert point.cost == 2.0 and point.place == 112


def test_files(points, tmp_path):
    paths = scaling.save(tmp_path, points, "A machine.")
    text, stored = paths[0].read_text(), json.loads(paths[1].read_text())
    assert "A machine." in text and text.count("| inference") == len(points) // 2
    assert len(stored["points"]) == len(points)
    assert paths[2].read_bytes().startswith(b"\x89PNG")
