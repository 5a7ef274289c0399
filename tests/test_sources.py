"""Image indexes: what is listed, in which order, and that the bytes are where the index says."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import ConceptError, SourceError
from pipeline.concepts_config import ConceptsConfig
from pipeline.explainers import plan_explainer
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.plan import cut_shards
from pipeline.sources import read_index


def picture(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (4, 4), shade).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number, name in enumerate(["dog/b.png", "cat/a.png", "cat/deep/c.JPG", "notes.txt"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "images"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        members: dict[str, bytes] = {}
        for n in range(4):
            members[f"k{n}.png"] = picture(10 * shard + n)
            members[f"k{n}.json"] = json.dumps({"class": f"c{n % 2}", "n": n}).encode()
        write_tar(folder / f"s{shard}.tar", members)
    return folder


def test_folders_are_listed_in_id_order_with_the_folder_as_label(folders: Path) -> None:
    index = read_index(ImagesConfig(path=str(folders)))
    rows = index.rows.to_pylist()
    assert [r["image_id"] for r in rows] == ["cat/a.png", "cat/deep/c.JPG", "dog/b.png"]
    assert [r["label"] for r in rows] == ["cat", "deep", "dog"]
    for row in rows:
        assert fetch(row) == (folders / row["path"]).read_bytes()


def test_webdataset_members_are_found_where_the_index_says(tars: Path) -> None:
    index = read_index(ImagesConfig(path=str(tars), label="class"))
    rows = index.rows.to_pylist()
    assert len(rows) == 12
    for row in rows:
        shard, _, member = row["path"].partition("/")
        with tarfile.open(tars / shard) as tar:
            file = tar.extractfile(member)
            assert file is not None
            assert fetch(row) == file.read()
        assert row["label"] == f"c{int(row['image_id'][-1]) % 2}"


def test_limit_takes_the_first_images_in_id_order(tars: Path) -> None:
    whole = read_index(ImagesConfig(path=str(tars), label="class")).rows
    part = read_index(ImagesConfig(path=str(tars), label="class", limit=5)).rows
    assert part.equals(whole.slice(0, 5))


def test_a_manifest_brings_labels_splits_and_attributes(folders: Path) -> None:
    table = {
        "path": ["dog/b.png", "cat/a.png"],
        "kind": ["d", "c"],
        "part": ["train", "test"],
        "furry": [False, True],
    }
    pq.write_table(pa.table(table), folders / "m.parquet")
    config = ImagesConfig.model_validate(
        {"path": str(folders / "m.parquet"), "label": "kind", "split": {"column": "part"}}
    )
    index = read_index(config)
    assert index.rows["image_id"].to_pylist() == ["cat/a.png", "dog/b.png"]
    assert index.rows["label"].to_pylist() == ["c", "d"]
    assert index.rows["split"].to_pylist() == ["test", "train"]
    assert index.attributes["furry"].to_pylist() == [True, False]
    assert fetch(index.rows.to_pylist()[0]) == (folders / "cat/a.png").read_bytes()


def test_a_csv_manifest_is_the_same_as_a_parquet_one(folders: Path) -> None:
    (folders / "m.csv").write_text("path,kind\ndog/b.png,d\ncat/a.png,c\n")
    pq.write_table(
        pa.table({"path": ["dog/b.png", "cat/a.png"], "kind": ["d", "c"]}), folders / "m.parquet"
    )
    one, two = (
        read_index(ImagesConfig(path=str(folders / name), label="kind")).rows
        for name in ("m.csv", "m.parquet")
    )
    assert one.equals(two)


DAY = datetime.date(2026, 1, 2)
ODD = {
    "day": pa.array([DAY, DAY]),
    "moment": pa.array([datetime.datetime(2026, 1, 2, 3, 4), None], pa.timestamp("s")),
    "price": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.25")]),
    "name": pa.array([b"d", b"c"]),
    "bytes": pa.array([b"\xff\xd8", b"\x00"]),
    "box": pa.array([[1, 2], [3]]),
    "half": pa.array([0.5, 1.5], pa.float16()),
}


@pytest.mark.parametrize("label", [None, "day", "moment", "price", "name"])
def test_columns_of_any_type_may_lie_beside_images_and_dates_and_numbers_are_labels(
    folders: Path, label: str | None
) -> None:
    table = pa.table({"path": ["dog/b.png", "cat/a.png"], **ODD})
    pq.write_table(table, folders / "m.parquet")
    index = read_index(
        ImagesConfig(path=str(folders / "m.parquet"), format="manifest", label=label)
    )
    shard = cut_shards(index, 2)[0]
    assert list(shard.attributes) == ["half"]
    texts = {
        None: [None, None],
        "day": ["2026-01-02", "2026-01-02"],
        "moment": [None, "2026-01-02 03:04:00.000"],
        "price": ["2.25", "1.50"],
        "name": ["c", "d"],
    }
    assert index.rows["label"].to_pylist() == texts[label]


def test_a_csv_manifest_may_have_dates_and_times(folders: Path) -> None:
    rows = ["path,day,at", "dog/b.png,2026-01-02,2026-01-02 03:04:05", "cat/a.png,2026-01-03,"]
    (folders / "m.csv").write_text("\n".join(rows))
    index = read_index(ImagesConfig(path=str(folders / "m.csv"), label="day"))
    assert cut_shards(index, 2)[0].attributes == {}
    assert index.rows["label"].to_pylist() == ["2026-01-03", "2026-01-02"]


@pytest.mark.parametrize("column", ["bytes", "box"])
def test_a_column_that_is_no_text_is_refused_as_label_or_split(folders: Path, column: str) -> None:
    table = pa.table({"path": ["dog/b.png", "cat/a.png"], **ODD})
    pq.write_table(table, folders / "m.parquet")
    source = {"path": str(folders / "m.parquet"), "format": "manifest"}
    for asked in ({"label": column}, {"split": {"column": column}}):
        config = ImagesConfig.model_validate({**source, **asked})
        with pytest.raises(SourceError, match=rf"column '{column}' of .* holds (binary|list)"):
            read_index(config)


@pytest.mark.parametrize("column", ["day", "moment", "price", "bytes", "box"])
def test_a_column_that_is_no_number_is_refused_as_a_concept(folders: Path, column: str) -> None:
    table = pa.table({"path": ["dog/b.png", "cat/a.png"], **ODD})
    pq.write_table(table, folders / "m.parquet")
    index = read_index(ImagesConfig(path=str(folders / "m.parquet"), format="manifest"))
    config = ConceptsConfig(name="a", kind="attributes", columns=[column])
    with pytest.raises(ConceptError, match=rf"'{column}' of the manifest holds .* expected bool"):
        plan_explainer(config, index, None, [])


def test_manifests_with_unlike_columns_of_one_name_are_refused(folders: Path) -> None:
    (folders / "lists").mkdir()
    for name, kind in (("a", "3"), ("b", "x")):
        (folders / f"lists/{name}.csv").write_text(f"path,kind\n../{name}.png,{kind}\n")
    with pytest.raises(SourceError, match="unlike types"):
        read_index(ImagesConfig(path=str(folders / "lists"), format="manifest"))


def test_the_stamp_changes_when_a_file_does(folders: Path) -> None:
    before = read_index(ImagesConfig(path=str(folders))).rows["stamp"].to_pylist()
    (folders / "cat/a.png").write_bytes(picture(200) + b" ")
    after = read_index(ImagesConfig(path=str(folders))).rows["stamp"].to_pylist()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "does not exist"),
        (lambda d: (d / "x").mkdir(), "holds neither images nor"),
        (lambda d: ((d / "x").mkdir(), (d / "x" / "a.txt").write_text("x")), "neither images"),
        (lambda d: ((d / "x").mkdir(), (d / "x/a.tar").write_bytes(b"junk" * 999)), "readable tar"),
    ],
)
def test_a_source_without_images_is_refused(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(SourceError, match=words):
        read_index(ImagesConfig(path=str(tmp_path / "x")))


def test_a_label_key_that_is_not_there_offers_the_closest(tars: Path) -> None:
    with pytest.raises(SourceError, match=r"'clas'.*close names: 'class'"):
        read_index(ImagesConfig(path=str(tars), label="clas"))


def test_an_image_listed_twice_is_refused(folders: Path) -> None:
    (folders / "m.csv").write_text("path\ncat/a.png\ncat/a.png\n")
    with pytest.raises(SourceError, match="more than once"):
        read_index(ImagesConfig(path=str(folders / "m.csv")))


def test_the_real_tars_hold_what_tarfile_says(shared: Path) -> None:
    tar = shared / "data/tiny-imagenet/tiny-imagenet-003.tar"
    index = read_index(ImagesConfig(path=str(tar), label="wnid"))
    assert index.rows.num_rows == 2000
    with tarfile.open(tar) as opened:
        for row in index.rows.slice(0, 2000).take([0, 777, 1999]).to_pylist():
            file = opened.extractfile(row["path"].partition("/")[2])
            assert file is not None
            assert fetch(row) == file.read()
            assert row["label"] in row["path"]


def test_a_sample_with_two_images_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"k.png": picture(1), "k.mask.png": picture(2)})
    with pytest.raises(SourceError, match=r"two images for the key 'k'.*k\.mask\.png"):
        read_index(ImagesConfig(path=str(tmp_path)))
