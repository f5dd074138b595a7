"""Classes in words: lines and tables of numbers, names and counts."""

from diffusion_jax.reporting.classes import label, listed, moved, table


def test_a_class_is_named_by_its_number_and_its_name_if_that_is_another() -> None:
    names = ("cat", "1", "1", "a\x1b\nb", "x" * 300)
    assert [label(i, names) for i in range(4)] == ["0: cat", "1", "2: '1'", r"3: a\x1b\nb"]
    assert label(4, names, longest=10) == "4: xxxxxxxxx…"
    assert label(7, ()) == "7"


def test_few_classes_are_listed_whole_and_many_by_the_first_and_the_last() -> None:
    assert listed(("cat", "dog"), (1200, 3)) == "0: cat (1,200), 1: dog (3)"
    assert listed(("cat", "dog")) == "0: cat, 1: dog"
    many = listed([f"n{i}" for i in range(1000)], range(1000))
    assert many.startswith("0: n0 (0), 1: n1 (1), ") and many.endswith(", …, 999: n999 (999)")
    assert len(many) < 200


def test_a_table_has_a_row_a_class_and_says_what_is_not_known() -> None:
    assert table(("cat",), (3,)) == [{"label": 0, "name": "cat", "num_images": 3}]
    assert table((), (3, 0))[1] == {"label": 1, "name": None, "num_images": 0}
    assert table(("cat",), None) == [{"label": 0, "name": "cat", "num_images": None}]


def test_classes_that_have_moved_are_told_by_number_and_those_that_have_not_are_not() -> None:
    assert moved(("cat", "dog"), ["cat", "dog"]) is None
    assert moved(("1", "10", "2"), ("1", "2", "10")) == (
        "class 1 was '10' and is '2'; class 2 was '2' and is '10'"
    )
    assert moved(("cat",), ("cat", "d\nog")) == r"class 1 was none and is 'd\nog'"
    told = moved([str(i) for i in range(9)], ())
    assert told is not None and told.endswith("class 2 was '2' and is none; … (9 in all)")
