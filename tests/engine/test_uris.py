import pytest

from engine.uris import child_uri, parent_uri, path_of


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/data", "a/b.jpg", "/data/a/b.jpg"),
        ("/data", "/other/b.jpg", "/other/b.jpg"),
        ("/data", "s3://bucket/b.jpg", "s3://bucket/b.jpg"),
        ("/data", "grün 100%#1.jpg", "/data/grün 100%#1.jpg"),
        ("s3://bucket/set/", "a/b.jpg", "s3://bucket/set/a/b.jpg"),
        ("s3://bucket", "b.jpg", "s3://bucket/b.jpg"),
        ("s3://bucket/set?region=eu-west-1", "b.jpg", "s3://bucket/set/b.jpg?region=eu-west-1"),
        ("s3://bucket/set", "grün 1#.jpg", "s3://bucket/set/gr%C3%BCn%201%23.jpg"),
        ("s3://bucket/set", "/local/b.jpg", "/local/b.jpg"),
    ],
)
def test_a_name_is_joined_to_a_folder_or_stands_for_itself(folder, name, joined):
    assert child_uri(folder, name) == joined


@pytest.mark.parametrize(
    ("uri", "parent"),
    [
        ("/data/list.txt", "/data"),
        ("s3://bucket/set/list.txt?region=eu-west-1", "s3://bucket/set?region=eu-west-1"),
        ("s3://bucket/list.txt", "s3://bucket"),
    ],
)
def test_the_parent_keeps_an_object_store_s_options(uri, parent):
    assert parent_uri(uri) == parent


def test_the_path_of_a_uri_is_decoded_and_without_options():
    path = path_of("s3://bucket/set/gr%C3%BCn.JPG?region=x")
    assert str(path) == "bucket/set/grün.JPG"
    assert path.suffix == ".JPG"
