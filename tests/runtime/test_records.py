"""Records survive JSON unchanged, and whatever does not fit is refused with the path of its field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.manifest import GraphSpec, ImageSpec, Manifest, Provenance, Template, TensorSpec
from edgevlm_runtime.records import read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str
    size: int | str = 3


@dataclass(frozen=True, kw_only=True)
class Tree:
    kind: Literal["oak", "ash"]
    height_m: float
    alive: bool
    rings: tuple[int, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    branches: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    best: Leaf | None = None


GOOD: dict[str, Any] = {"kind": "oak", "height_m": 3.5, "alive": True}

text = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**63 - 1)
leaves = st.builds(Leaf, name=text, size=integers | text)
trees = st.builds(
    Tree,
    kind=st.sampled_from(["oak", "ash"]),
    height_m=st.floats(allow_nan=False, allow_infinity=False),
    alive=st.booleans(),
    rings=st.lists(integers).map(tuple),
    leaves=st.lists(leaves, max_size=3).map(tuple),
    branches=st.dictionaries(text, st.lists(integers | text, max_size=3).map(tuple), max_size=3),
    best=st.none() | leaves,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_round_trip_through_json(tree: Tree) -> None:
    assert read_record(Tree, json.loads(json.dumps(write_record(tree))), "tree.json") == tree


def test_defaults_and_left_out_fields() -> None:
    tree = read_record(Tree, GOOD, "tree.json")
    assert (tree.rings, tree.leaves, tree.branches, tree.best) == ((), (), {}, None)
    assert "best" not in write_record(tree)
    assert read_record(Tree, GOOD | {"best": None}, "tree.json") == tree


def test_whole_numbers_are_floats() -> None:
    height = read_record(Tree, GOOD | {"height_m": 4}, "tree.json").height_m
    assert isinstance(height, float) and height == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "elm"}, "tree.json: kind: one of oak, ash is needed, not 'elm'"),
        ({"height_m": "tall"}, "tree.json: height_m: a number is needed, not 'tall'"),
        ({"height_m": True}, "tree.json: height_m: a number is needed, not True"),
        ({"height_m": float("nan")}, "tree.json: height_m: a finite number is needed, not nan"),
        ({"height_m": 10**400}, "tree.json: height_m: an integer of 64 bits is needed"),
        ({"alive": 1}, "tree.json: alive: true or false is needed, not 1"),
        ({"rings": 4}, "tree.json: rings: a list is needed, not 4"),
        ({"rings": [1, 2.0]}, "tree.json: rings[1]: an integer is needed, not 2.0"),
        ({"rings": [False]}, "tree.json: rings[0]: an integer is needed, not False"),
        ({"rings": None}, "tree.json: rings: a list is needed, not None"),
        ({"leaves": [{"size": 1}]}, "tree.json: leaves[0]: field 'name' is missing"),
        ({"leaves": [{"name": "a", "size": 1.5}]}, "tree.json: leaves[0].size: int or str is needed, not 1.5"),
        ({"branches": [1]}, "tree.json: branches: an object is needed, not [1]"),
        ({"branches": {"a": [None]}}, "tree.json: branches.a[0]: int or str is needed, not None"),
        ({"best": []}, "tree.json: best: an object is needed, not []"),
        ({"best": {"name": "\ud800"}}, "tree.json: best.name: valid Unicode is needed, not '\\ud800'"),
        ({"hieght_m": 3}, "tree.json: unknown field 'hieght_m', the nearest known one is 'height_m'"),
        ({"best": {"name": "a", "nam": "b"}}, "tree.json: best: unknown field 'nam', the nearest known one is 'name'"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedBundle) as error:
        read_record(Tree, GOOD | change, "tree.json")
    assert str(error.value) == message


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_not_an_object_or_empty(data: object) -> None:
    with pytest.raises(DamagedBundle, match=r"tree\.json: "):
        read_record(Tree, data, "tree.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["kind", "name"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*Tree.__dataclass_fields__, "other"]), json_values)
def test_any_json_is_read_or_refused_on_one_line(name: str, value: object) -> None:
    try:
        tree = read_record(Tree, GOOD | {name: value}, "tree.json")
    except DamagedBundle as error:
        assert "\n" not in str(error)
        str(error).encode()  # no half characters
    else:
        assert read_record(Tree, write_record(tree), "again") == tree


def test_manifest_round_trip() -> None:
    tensor = TensorSpec(name="crops", dtype="float32", shape=("crops", 3, 378, 378))
    graph = GraphSpec(file="vision.onnx", precision="int8", inputs=(tensor,), outputs=())
    manifest = Manifest(
        schema_version=1,
        name="tiny",
        family="test",
        description="",
        precision="int8",
        tasks=("caption",),
        graphs={"vision": graph},
        files={},
        provenance=Provenance(source="a", revision="b", license="c", date="d", tools={"torch": "2"}),
        image=ImageSpec(crop_px=378, resample="lanczos", mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    assert read_record(Manifest, json.loads(json.dumps(write_record(manifest))), "manifest.json") == manifest


def test_nested_records_are_plain_json() -> None:
    assert write_record(Template(prefix=(1, 2), suffix=())) == {"prefix": [1, 2], "suffix": []}
