"""Images in Parquet files: the same as in class folders, each row group read once, faults by row."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from torchvision import transforms as tv

from actors.preprocessing import split_transform
from actors.views import View
from core.errors import SourceError, StoppedEarly
from pipeline import sources_files
from pipeline.concepts_config import ConceptsConfig
from pipeline.decoding import DecodeShard
from pipeline.explainers import image_scores, plan_explainer
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.sources import ImageIndex, read_index
from pipeline.sources_parquet import ParquetRows

CLASSES = ["cat", "dog", "newt"]
NUMBER = 60


def picture(number: int) -> bytes:
    """Noise, so that no two images are alike and none becomes small in a file."""
    rng = np.random.RandomState(number)
    sink = io.BytesIO()
    pixels = rng.randint(0, 256, (30 + number % 7, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(sink, "PNG" if number % 2 else "JPEG")
    return sink.getvalue()


PICTURES = [picture(number) for number in range(NUMBER)]
LABELS = [number % 3 for number in range(NUMBER)]
NAMES = [f"{(number * 37) % NUMBER}-{number}.img" for number in range(NUMBER)]


def structs(pictures: Sequence[bytes | None] = PICTURES) -> pa.Table:
    """The layout of Hugging Face, with the names of classes in the schema."""
    images = [{"bytes": b, "path": n} for b, n in zip(pictures, NAMES, strict=True)]
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": pa.array(LABELS, pa.int64())})
    facts = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": facts})


def plain(column: str = "img") -> pa.Table:
    return pa.table({column: PICTURES, "kind": [CLASSES[label] for label in LABELS]})


def write(path: Path, table: pa.Table, groups: Sequence[int]) -> Path:
    """Write a file with row groups of these sizes; the last holds what is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for size in (*groups, table.num_rows - sum(groups)):
            writer.write_table(table.slice(start, size), row_group_size=max(1, size))
            start += size
    return path


def view() -> View:
    steps = [tv.Resize(24), tv.CenterCrop(24), tv.ToTensor()]
    return split_transform(tv.Compose(steps)).view


def decoded(index: ImageIndex, size: int = 9) -> pa.Table:
    """What decode tasks make of an index, in blocks of some rows."""
    decode = DecodeShard({"v": view()})
    blocks = []
    for start in range(0, index.rows.num_rows, size):
        rows = index.rows.slice(start, size)
        numbers = pa.array([start] * rows.num_rows, pa.int32())
        block = rows.append_column("shard", numbers)
        blocks.append(decode(block.append_column("parts", pa.nulls(rows.num_rows, pa.string()))))
    return pa.concat_tables(blocks)


def read(path: Path | str, **settings: Any) -> ImageIndex:
    return read_index(ImagesConfig.model_validate({"path": str(path), **settings}))


@pytest.fixture
def folders(tmp_path: Path) -> ImageIndex:
    """The images as class folders, named so that they are listed in the order of their numbers."""
    for number, data in enumerate(PICTURES):
        path = tmp_path / "folders" / CLASSES[LABELS[number]] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return read(tmp_path / "folders")


@pytest.mark.parametrize("layout", ["structs", "plain"])
@pytest.mark.parametrize("groups", [[], [1, 13, 2], [7] * 4])
def test_images_and_labels_are_those_of_class_folders(
    tmp_path: Path, folders: ImageIndex, layout: str, groups: list[int]
) -> None:
    table, label = (structs(), "label") if layout == "structs" else (plain(), "kind")
    half = table.num_rows // 2
    for name, part in (("a", table.slice(0, half)), ("deep/b", table.slice(half))):
        write(tmp_path / "parquet" / f"{name}.parquet", part, groups)
    index = read(tmp_path / "parquet", label=label)
    assert index.rows["image_id"].to_pylist() == [
        *(f"a/{row:08d}" for row in range(half)),
        *(f"deep/b/{row:08d}" for row in range(half)),
    ]
    by_number = np.argsort(
        [int(p.rpartition("/")[2][:3]) for p in folders.rows["path"].to_pylist()]
    )
    expected = folders.rows.take(by_number)
    assert index.rows["label"].to_pylist() == expected["label"].to_pylist()
    ours, theirs = decoded(index), decoded(ImageIndex(expected, folders.attributes))
    assert theirs["reason"].null_count == NUMBER
    assert ours["reason"].equals(theirs["reason"])
    assert ours["view0"].to_pylist() == theirs["view0"].to_pylist()


def test_the_path_is_the_name_that_the_file_once_had(tmp_path: Path) -> None:
    index = read(write(tmp_path / "x.parquet", structs(), [50]))
    assert index.rows["path"].to_pylist() == [f"x.parquet/{name}" for name in NAMES]
    assert index.rows["label"].null_count == NUMBER


@pytest.mark.parametrize("order", ["forwards", "backwards", "random"])
def test_rows_may_be_fetched_in_any_order(tmp_path: Path, order: str) -> None:
    rows = read(write(tmp_path / "x.parquet", plain("bytes"), [3, 40])).rows.to_pylist()
    numbers = list(range(NUMBER))
    if order == "backwards":
        numbers.reverse()
    elif order == "random":
        np.random.RandomState(0).shuffle(numbers)
    opened = ParquetRows()
    assert [fetch(rows[n], opened) for n in numbers] == [PICTURES[n] for n in numbers]
    opened.close()
    assert fetch(rows[numbers[-1]]) == PICTURES[numbers[-1]]


class Counted(LocalFileSystem):  # type: ignore[misc]
    """Local files that count what is read of them."""

    protocol = "counted"
    bytes_read = 0

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        assert mode == "rb"
        return CountedFile(path)


class CountedFile(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        Counted.bytes_read += len(data)
        return data


def test_listing_reads_no_image_and_a_shard_reads_each_row_group_once(tmp_path: Path) -> None:
    fsspec.register_implementation("counted", Counted, clobber=True)
    # What follows the end of an image is not decoded; it makes the images large beside the footer.
    large = [data + np.random.RandomState(n).bytes(100_000) for n, data in enumerate(PICTURES)]
    path = tmp_path / "x.parquet"
    # A dictionary holds the first images of a row group, all of them in a file as small as this.
    pq.write_table(structs(large), path, row_group_size=20, use_dictionary=False)
    Counted.bytes_read = 0
    index = read(f"counted://{path}", label="label")
    assert 0 < Counted.bytes_read < 2 * len(large[0])
    for start, stop, groups in ((0, 20, 1), (5, 20, 1), (10, 30, 2), (0, 60, 3)):
        Counted.bytes_read = 0
        rows = index.rows.slice(start, stop - start)
        reasons = decoded(ImageIndex(rows, index.attributes), size=64)["reason"]
        assert reasons.null_count == stop - start
        assert Counted.bytes_read < 1.1 * groups * 20 * len(large[0])


def test_rows_without_bytes_are_given_a_reason_and_the_others_are_used(tmp_path: Path) -> None:
    table = structs(
        [None if n in (0, 17) else b"" if n == 4 else b for n, b in enumerate(PICTURES)]
    )
    images = table["image"].to_pylist()
    images[30] = None
    table = table.set_column(0, "image", pa.array(images, table.schema.field(0).type))
    index = read(write(tmp_path / "x.parquet", table, [16]), label="label")
    reasons = decoded(index)["reason"].to_pylist()
    assert {n: r for n, r in enumerate(reasons) if r} == dict.fromkeys((0, 4, 17, 30), "empty file")


def test_a_damaged_row_group_costs_its_own_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_files, "RETRY_SECONDS", (0.0, 0.0))
    path = write(tmp_path / "x.parquet", structs(), [20, 20])
    index = read(path, label="label")
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (chunk.total_compressed_size))
    assert (
        read(path, label="label")
        .rows.drop_columns("stamp")
        .equals(index.rows.drop_columns("stamp"))
    )
    for size in (9, 25, 60):
        reasons = decoded(index, size)["reason"].to_pylist()
        assert reasons[:20] + reasons[40:] == [None] * 40
        assert reasons[20:40] == ["cannot be read: DamagedRowGroup"] * 20


def test_a_file_that_has_become_shorter_loses_the_rows_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_files, "RETRY_SECONDS", (0.0, 0.0))
    path = write(tmp_path / "x.parquet", structs(), [20])
    index = read(path)
    write(path, structs().slice(0, 50), [20])
    reasons = decoded(index)["reason"].to_pylist()
    assert reasons[:50] == [None] * 50
    assert all(r.startswith("cannot be read") for r in reasons[50:])
    path.unlink()
    with pytest.raises(StoppedEarly, match="was there when the images were listed"):
        decoded(index)


def test_a_split_column_and_attributes_come_from_the_rows(tmp_path: Path) -> None:
    splits = [("train", "val", "test")[n % 3] for n in range(NUMBER)]
    furry = [n % 2 == 0 for n in range(NUMBER)]
    table = structs().append_column("part", [splits]).append_column("furry", [furry])
    table = table.append_column("caption", [["words"] * NUMBER])
    table = table.append_column("weight", [pa.array(range(NUMBER), pa.float32())])
    path = write(tmp_path / "x.parquet", table, [11])
    index = read(path, label="label", split={"column": "part"})
    assert index.rows["split"].to_pylist() == splits
    assert sorted(index.attributes.column_names) == ["furry", "part", "weight"]
    for columns, expected in ((None, [furry]), (["weight", "furry"], [list(range(NUMBER)), furry])):
        config = ConceptsConfig(name="a", kind="attributes", columns=columns)
        scores = image_scores(index, plan_explainer(config, index, None, []))
        found = scores.of(index.rows["image_id"].to_pylist())
        np.testing.assert_array_equal(found, np.array(expected, np.float32).T)


def test_attributes_that_a_file_lacks_are_null_in_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", structs(), [])
    write(tmp_path / "b.parquet", structs().append_column("furry", [[True] * NUMBER]), [])
    index = read(tmp_path, label="label")
    assert index.attributes["furry"].to_pylist() == [None] * NUMBER + [True] * NUMBER


def test_integers_without_names_are_labels_as_they_are_and_unknown_classes_are_none(
    tmp_path: Path,
) -> None:
    bare = structs().replace_schema_metadata(None)
    index = read(write(tmp_path / "x.parquet", bare, []), label="label")
    assert index.rows["label"].to_pylist() == [str(label) for label in LABELS]
    unknown = structs().set_column(1, "label", [pa.array([-1, None, *LABELS[2:]], pa.int64())])
    index = read(write(tmp_path / "x.parquet", unknown, []), label="label")
    assert index.rows["label"].to_pylist()[:3] == [None, None, CLASSES[LABELS[2]]]


def test_ids_stay_when_files_are_added_or_cut_otherwise_and_stamps_follow_the_file(
    tmp_path: Path,
) -> None:
    write(tmp_path / "b.parquet", structs(), [])
    before = read(tmp_path).rows
    write(tmp_path / "a.parquet", structs(), [])
    both = read(tmp_path).rows
    assert both.slice(NUMBER).equals(before)
    write(tmp_path / "b.parquet", structs(), [5, 5, 5])
    after = read(tmp_path).rows.slice(NUMBER)
    assert after["image_id"].equals(before["image_id"])
    assert not set(after["stamp"].to_pylist()) & set(before["stamp"].to_pylist())
    assert read(tmp_path, limit=NUMBER + 5).rows.equals(read(tmp_path).rows.slice(0, NUMBER + 5))


def test_a_column_is_chosen_by_its_name_or_by_the_configuration(tmp_path: Path) -> None:
    pair = pa.table({"left": PICTURES, "right # 2": PICTURES[::-1]})
    path = write(tmp_path / "x#1.parquet", pair, [])
    with pytest.raises(SourceError, match=r"'left', 'right # 2'\. Name one .* images\.image"):
        read(path)
    rows = read(path, image="right # 2").rows.to_pylist()
    assert fetch(rows[0]) == PICTURES[-1]
    table = pair.append_column("IMG", [PICTURES[5:] + PICTURES[:5]])
    assert fetch(read(write(path, table, [])).rows.to_pylist()[0]) == PICTURES[5]


def test_labels_may_be_bytes_that_are_text(tmp_path: Path) -> None:
    for name, kind in (("kind", b"cat"), ("junk", b"\xff")):
        table = structs().append_column(name, [[kind] * NUMBER])
        write(tmp_path / f"{name}.parquet", table, [])
    index = read(tmp_path / "kind.parquet", label="kind")
    assert set(index.rows["label"].to_pylist()) == {"cat"}
    with pytest.raises(SourceError, match=r"'junk' of .* holds binary, which is not text"):
        read(tmp_path / "junk.parquet", label="junk")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label": "lable"}, r"images\.label 'lable' is not in .* columns 'image', 'label'"),
        ({"split": {"column": "part"}}, r"images\.split\.column 'part' .* 'image', 'label'"),
        ({"image": "imag"}, r"images\.image 'imag' .* 'image', 'label'; close names: 'image'"),
        ({"image": "label"}, r"'label' is not a column of bytes"),
        ({"image": "image", "format": "folder"}, r"is read as 'folder'"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    write(tmp_path / "x.parquet", structs(), [])
    with pytest.raises(SourceError, match=words):
        read(tmp_path, **settings)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"kind": ["a"]}), path)
    with pytest.raises(SourceError, match=r"one column of images .* 'kind'; .*: none"):
        read(path, format="parquet")
    path.write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        read(path)
    features = {"label": {"names": CLASSES[:2], "_type": "ClassLabel"}}
    facts = json.dumps({"info": {"features": features}})
    write(path, structs().replace_schema_metadata({"huggingface": facts}), [])
    with pytest.raises(SourceError, match=r"has the class 2 .* names 2 classes"):
        read(path, label="label")


def test_a_manifest_in_parquet_is_still_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "m.parquet")
    assert fetch(read(tmp_path / "m.parquet").rows.to_pylist()[0]) == PICTURES[0]
    assert read(tmp_path).rows["path"].to_pylist() == ["a.jpg"]
