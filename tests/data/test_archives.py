"""Folders in one file: zip and tar."""

import gc
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedquilt.core.errors import DataError
from fedquilt.data.loaders import load_table
from fedquilt.data.readers import archives, by_location


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of two classes in two splits."""
    for split, count in (("train", 3), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / split / label).mkdir(parents=True)
            for number in range(count):
                shade = 40 * number + (100 if label == "dog" else 0)
                Image.new("L", (4, 4), shade).save(tmp_path / "pets" / split / label / f"{number}.png")
    return tmp_path / "pets"


def packed(folder: Path, end: str) -> Path:
    """The folder in one file beside it."""
    path = folder.with_name(f"pets{end}")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if end == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, f"w:{'gz' if end.endswith('gz') else ''}") as tar:
            tar.add(folder, "pets")
    return path


@pytest.mark.parametrize("end", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_an_archive_of_pictures_is_its_folder(folder: Path, end: str) -> None:
    plain, made = load_table(str(folder)), load_table(str(packed(folder, end)))
    assert torch.equal(made.inputs, plain.inputs)
    assert torch.equal(made.labels, plain.labels)
    assert made.classes == plain.classes == ("cat", "dog")
    assert torch.equal(made.is_train, plain.is_train)
    assert (
        made.origin.location(0).file
        == f"{folder.parent}/pets{end}/{Path(*Path(plain.origin.location(0).file).parts[-4:])}"
    )


def test_the_pictures_are_there_as_long_as_their_columns(folder: Path) -> None:
    raws = archives.read_archive(
        packed(folder, ".zip"), lambda inside: by_location.read_location(str(inside), "", set())
    )
    kept = raws.pop("train").read
    raws.clear()
    gc.collect()
    picture = Path(kept("image")[0])
    assert picture.is_file()
    del kept
    gc.collect()
    assert not picture.exists()


def test_an_archive_of_tables_and_its_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(archives.tempfile, "tempdir", str(made))
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("train.csv", "text,label\nyes,1\nno,0\n")
        archive.writestr("test.csv", "text,label\nperhaps,1\n")
        archive.writestr("__MACOSX/._test.csv", b"\x00\x05")
    table = load_table(str(tmp_path / "rows.zip"))
    assert sorted(table.inputs) == ["no", "perhaps", "yes"]
    assert table.is_train.sum() == 2
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("train.csv", "text,label\nyes,1\nno,\n")
    with pytest.raises(DataError, match=r"rows\.zip/train\.csv"):
        load_table(str(tmp_path / "rows.zip"))
    del table
    assert [*made.iterdir()] == []  # nothing is left behind


@pytest.mark.parametrize("name", ["../out.csv", "/out.csv", "a/../../out.csv", "C:/out.csv", "..\\out.csv"])
@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_no_file_is_written_outside(tmp_path: Path, name: str, end: str) -> None:
    content = b"text,label\nyes,1\n"
    path = tmp_path / f"rows{end}"
    if end == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="leads out of the archive"):
        load_table(str(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("text,label\nsecret,1\n")
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        link = tarfile.TarInfo("train.csv")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.csv")
        tar.addfile(link)
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        info = zipfile.ZipInfo("train.csv")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(tmp_path / "secret.csv"))
    for name in ("rows.tar", "rows.zip"):
        with pytest.raises(DataError, match="holds no data"):
            load_table(str(tmp_path / name))


def test_what_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    def refused(name: str, said: str) -> None:
        with pytest.raises(DataError, match=said):
            load_table(str(tmp_path / name))

    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    refused("no.zip", "is no archive that can be read")
    (tmp_path / "no.tar.gz").write_bytes(b"\x1f\x8b nothing")
    refused("no.tar.gz", "is no archive that can be read")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.csv", bytes(64 << 20))
    refused("bomb.zip", "decompression bomb")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.csv", "text,label\n")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.csv", "text,label\n")
    refused("twice.zip", "holds 'a.csv' twice")
    content = bytearray((tmp_path / "twice.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    refused("locked.zip", "encrypted")


def test_a_huge_header_and_a_huge_unknown_member_of_a_tar_are_refused_before_they_are_unpacked(tmp_path):
    class Zeros:
        def read(self, size):
            return bytes(size)

    row = tarfile.TarInfo("rows.csv")
    row.size = 8
    header, unknown = tarfile.TarInfo("pax"), tarfile.TarInfo("unknown")
    header.type, header.size = tarfile.XHDTYPE, 2 << 20
    unknown.type, unknown.size = b"Z", 300 << 20
    for member, words in ((header, "a header in it has 2,097,152 bytes"), (unknown, "decompression bomb")):
        path = tmp_path / f"{member.name}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=9) as tar:
            tar.addfile(member, Zeros())
            tar.addfile(row, io.BytesIO(b"a,b\n1,2\n"))
        with pytest.raises(DataError, match=words):
            archives.read_archive(path, lambda folder: {})
