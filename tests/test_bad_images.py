"""A zoo of image files, good and bad: decoded by itself, listed, and through a real recording."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_zoo import Animal, bad, good, settle
from PIL import Image

from actors.decode import decode
from core.errors import SourceError, UnreadableImage
from pipeline import planted, sources_files
from pipeline.config import parse_config
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.planning import prepare
from pipeline.run import carry_out
from pipeline.rundir import Run
from pipeline.sources import read_index

GOOD, BAD = list(good()), list(bad())


def name_of(animal: Animal) -> str:
    return animal.image_id.encode("ascii", "backslashreplace").decode().replace("\n", " ")


@pytest.mark.parametrize("animal", GOOD, ids=name_of)
def test_a_good_image_is_read_as_the_pixels_that_were_put_into_it(animal: Animal) -> None:
    assert animal.pixels is not None
    found = np.asarray(decode(animal.data)).astype(int)
    assert found.shape == animal.pixels.shape
    assert np.abs(found - animal.pixels).max() <= animal.tolerance


@pytest.mark.parametrize("animal", BAD, ids=name_of)
def test_a_bad_image_is_refused_with_its_reason(animal: Animal) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(animal.data)
    assert caught.value.reason == animal.reason


#: What becomes of entries of a folder that are no files with content of their own.
ODD = {
    "b/points nowhere.jpg": "cannot be read: FileNotFoundError",
    "b/points at itself.jpg": "cannot be read: too many levels of symbolic links",
    "b/pipe.jpg": "cannot be read: NotARegularFile",
    "b/two gigabytes of nothing.jpg": "cannot be read: TooLarge",
    "b/vanishes after listing.jpg": "cannot be read: FileNotFoundError",
}


def settle_odd(folder: Path) -> None:
    (folder / "b/points nowhere.jpg").symlink_to("no such file.jpg")
    (folder / "b/points at itself.jpg").symlink_to("points at itself.jpg")
    (folder / "b/up").symlink_to("..")
    (folder / "b/link.png").symlink_to("../a/plain.png")
    os.mkfifo(folder / "b/pipe.jpg")
    with (folder / "b/two gigabytes of nothing.jpg").open("wb") as file:
        file.truncate(2 << 30)
    (folder / "b/vanishes after listing.jpg").write_bytes(GOOD[0].data)
    (folder / "b/notes.txt").write_text("not listed")
    (folder / "b/empty.jpg").mkdir()


def everything(folder: Path) -> dict[bytes, tuple[int, int, int]]:
    """Kind, size and time of all that is in a folder."""
    found = {}
    for where, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            facts = os.lstat(os.path.join(where, name))  # noqa: PTH118
            found[os.path.join(where, name)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns)  # noqa: PTH118
    return found


def test_the_whole_zoo_goes_through_a_recording(tmp_path: Path, local_ray: None) -> None:
    folder = tmp_path / "images"
    settle(folder, GOOD + BAD)
    settle_odd(folder)
    pixels = {animal.image_id: animal.pixels for animal in GOOD}
    pixels["b/link.png"] = pixels["a/plain.png"]
    for number, shade in enumerate(range(0, 240, 6)):  # enough for every split
        image_id = f"{'ab'[number % 2]}/shade {number:02d}.png"
        pixels[image_id] = np.full((48, 64, 3), shade, np.uint8)
        Image.fromarray(pixels[image_id]).save(folder / image_id)
    locked = folder / "a/locked.png"
    locked.write_bytes(GOOD[0].data)
    locked.chmod(0)
    reasons = {animal.image_id: animal.reason for animal in BAD} | ODD
    if os.access(locked, os.R_OK):  # the superuser may read it
        pixels["a/locked.png"] = pixels["a/plain.png"]
    else:
        reasons["a/locked.png"] = "cannot be read: PermissionError"

    sections = planted.config(
        tmp_path,
        images={"path": str(folder)},
        concepts=[{"name": "label", "kind": "labels"}],
        recordings={"shard_size": 16, "max_quarantined": 1.0},
    )
    plan = prepare(parse_config(sections, base=tmp_path))
    (folder / "b/vanishes after listing.jpg").unlink()
    before = everything(folder)
    run = Run(tmp_path / "run")
    carry_out(run, plan, ["record"])

    quarantined = {r["image_id"]: r["reason"] for r in run.read("quarantine").to_pylist()}
    assert quarantined == reasons
    assert everything(folder) == before
    recorded = run.read("activations")
    column = "act.neurons.avg"
    assert recorded["image_id"].to_pylist() == sorted(pixels, key=str.encode)
    assert run.read("images")["image_id"].to_pylist() == recorded["image_id"].to_pylist()
    network, transform = planted.network()
    tolerance = {animal.image_id: animal.tolerance for animal in GOOD}
    # A neuron is a weighted mean of grey levels: what a level may be off, times its weights.
    weight = float(network.neurons.weight.detach().abs().sum(dim=1).max()) / 255
    for image_id, found in zip(
        recorded["image_id"].to_pylist(), recorded[column].to_pylist(), strict=True
    ):
        wanted = pixels[image_id]
        assert wanted is not None
        with torch.inference_mode():
            expected = network(transform(Image.fromarray(wanted))[None])[0].numpy()
        off = 2e-3 * np.abs(expected).max(where=np.isfinite(expected), initial=1) + weight * (
            tolerance.get(image_id, 0)
        )
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=off, err_msg=image_id)


def test_files_of_any_name_are_fetched_from_where_the_index_says(tmp_path: Path) -> None:
    settle(tmp_path, GOOD)
    rows = read_index(ImagesConfig(path=str(tmp_path))).rows.to_pylist()
    assert {row["image_id"] for row in rows} == {animal.image_id for animal in GOOD}
    data = {animal.image_id: animal.data for animal in GOOD}
    for row in rows:
        assert fetch(row) == data[row["image_id"]]


def test_a_folder_whose_own_name_looks_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "summer [2019]*"
    settle(folder, GOOD[:3])
    rows = read_index(ImagesConfig(path=str(folder))).rows
    assert set(rows["image_id"].to_pylist()) == {animal.image_id for animal in GOOD[:3]}


def test_folders_behind_links_are_entered_once_and_under_their_own_name(tmp_path: Path) -> None:
    settle(tmp_path / "images", [Animal(b"real/x.png", GOOD[0].data)])
    settle(tmp_path / "elsewhere", [Animal(b"y.png", GOOD[0].data)])
    for link in ("again", "first"):
        (tmp_path / "images" / link).symlink_to("../elsewhere" if link == "first" else "real")
    (tmp_path / "images/real/loop").symlink_to("../..")
    rows = read_index(ImagesConfig(path=str(tmp_path / "images"))).rows
    assert rows["image_id"].to_pylist() == ["first/y.png", "real/x.png"]
    assert rows["label"].to_pylist() == ["first", "real"]


def test_a_folder_that_may_not_be_listed_is_refused_and_not_left_out() -> None:
    # Not in pytest's own folder, which other users may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settle(folder, GOOD[:3])
        (folder / "secret").mkdir(mode=0)
        folder.chmod(0o755)
        own = os.geteuid()
        if own == 0:
            os.seteuid(65534)  # the superuser may list everything
        try:
            with pytest.raises(SourceError, match=r"secret' cannot be listed .Permission denied"):
                read_index(ImagesConfig(path=name))
        finally:
            os.seteuid(own)


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sources_files.time, "sleep", waits.append)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "pipe", "missing"):
        with pytest.raises(OSError, match=name):
            sources_files.read_file(f"file://{tmp_path / name}")
    assert not waits
    (tmp_path / "short").write_bytes(b"12345")
    with pytest.raises(OSError, match="5 bytes where 9 were listed"):
        sources_files.read_file(f"file://{tmp_path / 'short'}", 0, 9)
    assert tuple(waits) == sources_files.RETRY_SECONDS
