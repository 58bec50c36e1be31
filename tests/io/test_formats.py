# SPDX-License-Identifier: Apache-2.0
"""Images of other formats than NIfTI lie where ITK and SimpleITK place them, and errors say what is wrong with them."""

import locale

import itk
import numpy as np
import pytest

from common.io.formats import open_file
from common.io.images import load_grid, load_image, load_label, save_image
from common.io.itk_files import own_locale

sitk = pytest.importorskip("SimpleITK")

SPACING, ORIGIN = (0.7, 1.9, 2.6), (-21.5, 33.0, 8.25)
TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
LEFT_HANDED = TURN * [1, 1, -1]


def written(path, values, direction=TURN, spacing=SPACING, origin=ORIGIN):
    """A file that SimpleITK writes; values are (X, Y[, Z])."""
    dims = values.ndim
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing[:dims])
    image.SetOrigin(origin[:dims])
    image.SetDirection(np.asarray(direction)[:dims, :dims].ravel().tolist())
    sitk.WriteImage(image, str(path))
    return image


def random(shape, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 900, shape).astype(dtype)


def check_places(image, reference):
    """Every corner of the grid lies where SimpleITK says."""
    dims = image.array.dim()
    for corner in np.ndindex(*[2] * dims):
        index = [int(c * (n - 1)) for c, n in zip(corner, image.array.shape, strict=True)]
        expected = np.array(reference.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1][:dims]
        position = image.affine @ [*index, *[0] * (3 - dims), 1]
        np.testing.assert_allclose(position[:dims], expected, atol=2e-3)


@pytest.mark.parametrize("direction", [np.eye(3), TURN, LEFT_HANDED], ids=["straight", "oblique", "left-handed"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz"])
def test_volumes_of_all_formats_lie_where_simpleitk_places_them(tmp_path, name, direction):
    values = random((7, 6, 5))
    reference = written(tmp_path / name, values, direction)
    image = load_image(tmp_path / name)
    np.testing.assert_array_equal(image.array.numpy(), values)
    np.testing.assert_allclose(image.spacing, SPACING, rtol=1e-5)
    check_places(image, reference)
    grid = load_grid(tmp_path / name)
    assert grid.array.device.type == "meta" and grid.array.shape == values.shape


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_planes_stay_two_dimensional(tmp_path, name):
    values, turn = random((7, 6), np.float32), np.array([[0.6, -0.8], [0.8, 0.6]])
    reference = written(tmp_path / name, values, turn)
    image = load_image(tmp_path / name)
    np.testing.assert_array_equal(image.array.numpy(), values)
    check_places(image, reference)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_keep_their_type(tmp_path, dtype):
    values = random((5, 4, 3), dtype)
    written(tmp_path / "label.nrrd", values)
    label = load_label(tmp_path / "label.nrrd")
    np.testing.assert_array_equal(label.array.numpy(), values)
    assert label.stored == dtype
    save_image(tmp_path / "again.nii.gz", label.array, label, dtype=label.stored)
    assert load_label(tmp_path / "again.nii.gz").array.equal(label.array)


def series(folder, values, names="slice_{}.dcm", uid="1.2.826.0.1.3680043.2.1125.1", places=None):
    """A DICOM series of slices that lie obliquely; files are named against their order in space."""
    folder.mkdir(exist_ok=True)
    count = values.shape[2]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(count):
        place = index if places is None else places[index]
        position = np.array(ORIGIN) + TURN[:, 2] * SPACING[2] * place
        image = sitk.GetImageFromArray(np.ascontiguousarray(values[:, :, index].T))
        image.SetSpacing(SPACING[:2])
        tags = {
            "0008|0060": "MR", "0020|000d": uid, "0020|000e": f"{uid}.1", "0008|0018": f"{uid}.2.{index}",
            "0020|0032": "\\".join(f"{x:.8f}" for x in position), "0020|0013": str(index + 1),
            "0020|0037": "\\".join(f"{x:.8f}" for x in (*TURN[:, 0], *TURN[:, 1])), "0018|0050": str(SPACING[2]),
        }  # fmt: skip
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / names.format(count - index)))
        writer.Execute(image)
    return folder


@pytest.fixture(autouse=True)
def restored_locale():
    """SimpleITK's own reader and writer of DICOM change it."""
    with own_locale():
        yield


def test_a_dicom_series_is_one_volume_in_the_order_of_its_positions(tmp_path):
    values = random((8, 7, 5))
    turn = TURN if np.linalg.det(TURN) > 0 else TURN * [1, 1, -1]
    folder = series(tmp_path / "series", values)
    (folder / "notes.txt").write_text("not a slice")
    image = load_image(folder, "moving")
    stored = image.array.numpy()
    if np.linalg.det(TURN) < 0:  # slices are sorted along the cross product of the rows and columns
        stored = stored[:, :, ::-1]
    np.testing.assert_array_equal(stored, values)
    np.testing.assert_allclose(image.spacing, SPACING, rtol=1e-4)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    check_places(image, reader.Execute())
    assert np.linalg.det(turn) > 0


def test_reading_dicom_leaves_the_process_locale_as_it_is(tmp_path):
    """GDCM sets it to "C", and open() without an encoding then takes files for ASCII."""
    folder, before = series(tmp_path / "series", random((8, 7, 5))), locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    load_image(folder)
    load_image(next(folder.iterdir()))
    assert locale.setlocale(locale.LC_CTYPE) == before
    (tmp_path / "η.txt").write_text("η")
    assert (tmp_path / "η.txt").read_bytes() == "η".encode()


def test_one_dicom_file_is_an_image(tmp_path):
    values = random((8, 7, 1))
    (file,) = series(tmp_path / "series", values).iterdir()
    image = load_image(file.rename(tmp_path / "IM0001"))
    assert image.slice_axis
    np.testing.assert_array_equal(image.array.numpy(), values[:, :, 0])


def test_two_series_in_a_folder_are_refused(tmp_path):
    for number in (1, 2):
        series(tmp_path / "series", random((8, 7, 3)), names=f"{number}_{{}}.dcm", uid=f"1.2.3.{number}")
    with pytest.raises(ValueError, match="fixed: expected .* one DICOM series; .* holds 2 .*3 files like .*own"):
        load_image(tmp_path / "series", "fixed")


def test_a_series_that_lacks_a_slice_is_refused(tmp_path):
    folder = series(tmp_path / "series", random((8, 7, 4)), places=[0, 1, 3, 4])
    with pytest.raises(ValueError, match=r"moving: expected evenly spaced slices; .* 2.6 to 5.2 mm apart"):
        load_image(folder, "moving")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_what_itk_cannot_read_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"NRRD0005\nnot a header\n" if name.endswith("nrrd") else b"ObjectType = Image\n")
    with pytest.raises(ValueError, match=f"moving: expected a readable image .*ITK cannot read .*{name}"):
        load_image(tmp_path / name, "moving")


def test_values_cut_short_are_refused(tmp_path):
    written(tmp_path / "a.mhd", random((9, 8, 7)))
    raw = next(path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw"))
    raw.unlink()
    with pytest.raises(ValueError, match="fixed: .*a.mhd .*lack the file of its values"):
        load_image(tmp_path / "a.mhd", "fixed")


def test_sequences_colours_and_values_that_are_not_finite_are_refused(tmp_path):
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((3, 4, 5, 6), np.float32), isVector=False), str(tmp_path / "time.nrrd")
    )
    with pytest.raises(ValueError, match=r"moving: expected an image of shape .*time.nrrd has shape \(6, 5, 4, 3\)"):
        load_image(tmp_path / "time.nrrd", "moving")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), str(tmp_path / "rgb.mha"))
    with pytest.raises(ValueError, match="moving: expected one value a voxel; .*rgb.mha holds 3"):
        load_image(tmp_path / "rgb.mha", "moving")
    values = random((5, 4, 3), np.float32)
    values[0, 0, 0] = np.nan
    written(tmp_path / "nan.nrrd", values)
    with pytest.raises(ValueError, match="moving: expected finite values; .*nan.nrrd holds 1 NaN"):
        load_image(tmp_path / "nan.nrrd", "moving")
    written(tmp_path / "half.nrrd", random((5, 4, 3), np.float32) + 0.5)
    with pytest.raises(ValueError, match="moving_label: expected whole numbers"):
        load_label(tmp_path / "half.nrrd", "moving_label")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ElementSpacing = 1 0 1", "readable image|size above 0"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "readable image|affine"),
    ],
)
def test_voxels_without_a_size_are_refused(tmp_path, line, message):
    header = (
        f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n{line}\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(header.encode() + bytes(range(8)))
    with pytest.raises(ValueError, match=f"moving: .*({message})"):
        load_image(tmp_path / "a.mha", "moving")


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fixed: expected an image .*\.nrrd.*nowhere does not exist"):
        open_file(tmp_path / "nowhere", "fixed")


def test_itk_reads_the_values_in_the_same_order(tmp_path):
    values = random((4, 5, 6), np.float32)
    written(tmp_path / "a.nrrd", values)
    again = itk.array_from_image(itk.imread(str(tmp_path / "a.nrrd"))).T
    np.testing.assert_array_equal(load_image(tmp_path / "a.nrrd").array.numpy(), again)
