from bbu_train.data.same_bytes import HEAD_BYTES, first_of_each


def test_files_with_the_same_bytes_have_the_first_of_them(tmp_path):
    """Links, copies, and files that differ only at the end or only in their length."""
    contents = {"a": b"x" * HEAD_BYTES + b"1", "b": b"x" * HEAD_BYTES + b"2", "c": b"x" * HEAD_BYTES, "d": b"x" * 5000}
    contents |= {"copy of b": contents["b"], "e": b"y" * HEAD_BYTES + b"1"}
    paths = [tmp_path / name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    for name, make in (("symbolic", "symlink_to"), ("hard", "hardlink_to")):
        getattr(tmp_path / name, make)(tmp_path / "a")
        paths.append(tmp_path / name)
    first = first_of_each([*paths, tmp_path / "a"])
    assert {path.name: same.name for path, same in first.items() if path != same} == {
        "copy of b": "b",
        "symbolic": "a",
        "hard": "a",
    }


def test_a_file_that_cannot_be_read_equals_no_other(tmp_path):
    paths = [tmp_path / "missing", tmp_path / "missing too"]
    assert first_of_each(paths) == {path: path for path in paths}
