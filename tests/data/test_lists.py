"""Lists of pairs as people have them, from tests/media/hf_ip2p: read, or refused in one line."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from ivid2vid_jax.data.clip_pairs import ClipSettings
from ivid2vid_jax.data.readers import ShapesReader, open_reader
from ivid2vid_jax.errors import UserError
from tests.support.media import MEDIA

FOLDER = MEDIA / "hf_ip2p"
CLIPS = ClipSettings(64)


def reader(path, *columns):
    return open_reader(str(path), None, CLIPS, ShapesReader(1, 0, "train"), columns)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "name",
    [
        "good_crlf_bom.csv",
        "other_names.csv",
        "semicolon.csv",
        "windows_paths.csv",
        "header_blanks.csv",
        "utf16.csv",
        "quoted_paths.csv",
        "metadata.jsonl",
        "metadata2.jsonl",
    ],
)
def test_lists_that_people_have(name):
    """Byte order marks, other delimiters and encodings, blanks, backslashes, column names."""
    lists = reader(FOLDER / name)
    items = lists.items()
    assert len(items) >= 4 and all(item.instruction for item in items)
    for number in (0, 1):
        triplet = lists.read(items[number])
        expected = pixels(FOLDER / "original_images" / f"{number}.jpg")
        np.testing.assert_array_equal(triplet.source[0], expected)
        expected = pixels(FOLDER / "edited_images" / f"{number}.jpg")
        np.testing.assert_array_equal(triplet.edited[0], expected)


def test_equal_rows_have_equal_ids_in_any_dialect():
    ids = [[i.id for i in reader(FOLDER / f"{n}.csv").items()] for n in ("semicolon", "utf16")]
    assert ids[0] == ids[1] == [item.id for item in reader(FOLDER / "good_crlf_bom.csv").items()]


def test_a_hugging_face_image_folder(tmp_path):
    shutil.copytree(FOLDER / "original_images", tmp_path / "original_images")
    shutil.copytree(FOLDER / "edited_images", tmp_path / "edited_images")
    shutil.copy(FOLDER / "metadata.jsonl", tmp_path)
    lists = reader(tmp_path)
    assert lists.read(lists.items()[0]).instruction == "make it blue"


def test_parquet_with_embedded_images():
    """Also after it was sent to a worker process."""
    lists = reader(MEDIA / "train-00000-of-00001.parquet")
    items = lists.items()
    assert len(items) == 6
    triplet = pickle.loads(pickle.dumps(lists)).read(items[2])
    np.testing.assert_array_equal(triplet.source[0], pixels(FOLDER / "original_images" / "2.jpg"))
    np.testing.assert_array_equal(triplet.edited[0], pixels(FOLDER / "edited_images" / "2.jpg"))


def test_phone_photos_stay_aligned_with_their_edits():
    """The source is turned by EXIF, the edit is stored upright, one of them in 16 bit."""
    lists = reader(MEDIA / "exif_pairs" / "p.csv")
    for item in lists.items():
        triplet = lists.read(item)
        assert triplet.source.shape == triplet.edited.shape
    with Image.open(MEDIA / "exif_pairs" / "tgt.png") as image:
        edited = np.asarray(image.convert("RGB")).astype(int)
    triplet = lists.read(lists.items()[0])
    assert np.abs(triplet.edited[0].astype(int) - edited).mean() < 2


def test_columns_can_be_named(tmp_path):
    text = (FOLDER / "good_crlf_bom.csv").read_text(encoding="utf-8-sig")
    text = text.replace("src_video,tgt_video,prompt", "before,after,text", 1)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"row 2 has no src_video.*before, after, text.*--columns"):
        reader(tmp_path / "list.csv").items()
    items = reader(tmp_path / "list.csv", "src=before", "tgt=after", "prompt=text").items()
    assert items[0].source == "original_images/0.jpg"
    with pytest.raises(UserError, match=r"--columns source=before"):
        reader(tmp_path / "list.csv", "source=before")


@pytest.mark.parametrize(
    ("name", "message"), [("urls.csv", r"is a URL"), ("abs.csv", r"no such file")]
)
def test_rows_that_cannot_be_read(name, message):
    lists = reader(FOLDER / name)
    with pytest.raises(UserError, match=message):
        lists.read(lists.items()[0])
