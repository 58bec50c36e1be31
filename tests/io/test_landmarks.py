# SPDX-License-Identifier: Apache-2.0
"""Landmarks of ANTs' and 3D Slicer's files come out in mm, RAS; others are refused."""

import json

import numpy as np
import pytest
import torch

from common.io.images import Image
from common.io.landmarks import Landmarks, load_landmarks, save_landmarks

AFFINE = np.array([[0.0, -2.0, 0.0, 40.0], [1.5, 0.0, 0.0, -60.0], [0.0, 0.0, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])
IMAGE = Image(torch.zeros(20, 22, 12), AFFINE, (1.5, 2.0, 3.0))
POINTS = np.array([[20.0, -50.0, 16.0], [4.5, -37.25, 40.0]])  # mm, RAS


def file(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["csv", "fcsv"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    save_landmarks(tmp_path / f"p.{suffix}", Landmarks(POINTS, ("apex", 'left, "base"')))
    again = load_landmarks(tmp_path / f"p.{suffix}", IMAGE)
    np.testing.assert_allclose(again.points_mm, POINTS, atol=1e-6)
    assert again.names == ("apex", 'left, "base"')


def test_the_columns_say_what_they_count_in(tmp_path):
    lps = POINTS * [-1, -1, 1]
    voxels = (POINTS - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T
    for columns, values in (("x,y,z,t", np.pad(lps, ((0, 0), (0, 1)))), ("R,A,S", POINTS), ("i, j, k", voxels)):
        rows = "\n".join(",".join(map(str, row)) for row in values)
        found = load_landmarks(file(tmp_path / "p.csv", f"{columns}\n{rows}\n"), IMAGE)
        np.testing.assert_allclose(found.points_mm, POINTS, atol=1e-9)
        assert found.names == ("F-1", "F-2")


@pytest.mark.parametrize("system", ["LPS", "RAS", "0", "1"])
def test_slicers_files_say_their_system(tmp_path, system):
    signs = [-1, -1, 1] if system in ("LPS", "1") else [1, 1, 1]
    rows = "\n".join(f"v_{n},{x},{y},{z},0,0,0,1,1,1,0,P{n},," for n, (x, y, z) in enumerate(POINTS * signs))
    head = "# Markups fiducial file version = 4.10\n# CoordinateSystem = " + system
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
    found = load_landmarks(file(tmp_path / "p.fcsv", f"{head}\n{columns}\n{rows}\n"), IMAGE)
    np.testing.assert_allclose(found.points_mm, POINTS)
    assert found.names == ("P0", "P1")
    if system in ("LPS", "RAS"):
        points = [{"label": f"P{n}", "position": list(point)} for n, point in enumerate(POINTS * signs)]
        markup = {"markups": [{"coordinateSystem": system, "controlPoints": points}]}
        found = load_landmarks(file(tmp_path / "p.mrk.json", json.dumps(markup)), IMAGE)
        np.testing.assert_allclose(found.points_mm, POINTS)


def test_points_of_a_plane_need_no_third_column(tmp_path):
    plane = Image(torch.zeros(20, 22), np.diag([-1.0, -1.0, 1.0, 1.0]) + np.eye(4)[:, 2:3] @ [[0, 0, 0, 7]], (1.0, 1.0))
    found = load_landmarks(file(tmp_path / "p.csv", "x,y\n3,4\n"), plane)
    np.testing.assert_allclose(found.points_mm, [[-3, -4, 7]])
    found = load_landmarks(tmp_path / "p.csv", None, plane=plane)  # of an image of that plane that is not known
    np.testing.assert_allclose(found.points_mm, [[-3, -4, 7]])


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fixed_points: expected a CSV file .* there is no .*none.csv"):
        load_landmarks(tmp_path / "none.csv", IMAGE, "fixed_points")
    for text, message in (
        ("a,b,c\n1,2,3\n", "its columns are"),
        ("x,y,z\n1,2,three\n", "could not convert"),
        ("x,y,z\n", "its columns are|at least one point"),
        ("x,y,z\n1,2,nan\n", "finite numbers"),
        ("x,y,z\n900,2,3\n", r"points inside the image; 1 of 1 are not, the first is number 1 at \[-900.0"),
        ("x,y,z\n20,-50,16\n", "RAS and LPS are mixed up"),
    ):
        with pytest.raises(ValueError, match=f"moving_points: .*({message})"):
            load_landmarks(file(tmp_path / "p.csv", text), IMAGE, "moving_points")
    for text in (
        "[]",
        '{"markups": []}',
        '{"markups": [1]}',
        '{"markups": [{"controlPoints": [], "coordinateSystem": 1}]}',
    ):
        with pytest.raises(ValueError, match="points: expected a CSV file .*p.mrk.json"):
            load_landmarks(file(tmp_path / "p.mrk.json", text), IMAGE, "points")
    with pytest.raises(ValueError, match="need the image that they count in"):
        load_landmarks(file(tmp_path / "p.csv", "i,j,k\n1,2,3\n"), None)
    with pytest.raises(ValueError, match="ends in .csv or .fcsv"):
        save_landmarks(tmp_path / "p.txt", Landmarks(POINTS, ("a", "b")))
