"""The reader of torch's checkpoints: both formats, and files that lie or attack.

The fixtures were written by torch 2.13.0: one state_dict, by `torch.save` and with
`_use_new_zipfile_serialization=False`.
"""

import collections
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from slow import slow

from diffusion_jax.reading.torch_file import read_torch_file

FIXTURES = Path(__file__).parent / "fixtures"
BOTH = ("torch_zip.pth", "torch_stream.pth")


class Named:
    """Pickled as a name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Tensor:
    """Pickled as torch does, of a storage of float32."""

    def __init__(self, offset=0, shape=(2, 3), strides=(3, 1), length=6, kind="FloatStorage"):
        self.arguments, self.length, self.kind = (offset, shape, strides, False), length, kind


class Writer(getattr(pickle, "_Pickler")):  # noqa: B009
    """Pickler of such files without torch."""

    def persistent_id(self, obj):
        if isinstance(obj, Tensor):
            return None
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Tensor):
            self.save(Named("torch._utils", "_rebuild_tensor_v2"))
            storage = ("storage", Named("torch", obj.kind), "0", "cpu", obj.length)
            self.write(pickle.MARK)
            self.save(storage)
            for argument in (*obj.arguments, {}):
                self.save(argument)
            self.write(pickle.TUPLE + pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def pickled(tree) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(tree)
    return buffer.getvalue()


def archive(path, program, storage=bytes(24), *, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/data/0", storage)
        for name, content in extra:
            file.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("name", BOTH)
def test_both_formats_give_the_tensors_as_torch_holds_them(name):
    found = read_torch_file(FIXTURES / name)
    found = {key.removeprefix("state_dict."): value for key, value in found.items()}
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "matrix": base.ravel()[:6].reshape(2, 3),
        "transposed": base.T,
        "part": base[1:3, ::2],
        "scalar": np.int64(7),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": base[0, :2],
        "bool": np.array([True, False, True]),
    }
    dtypes = "float64", "float16", "bfloat16", "int32", "int16", "int8", "uint8"
    for dtype in dtypes:
        expected[dtype] = np.array([1, 2, 3], getattr(ml_dtypes, dtype, dtype))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def test_the_writer_of_these_tests_makes_files_that_are_read(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "x.pth", pickled({"a": {"b": Tensor()}}), numbers.tobytes())
    np.testing.assert_array_equal(read_torch_file(path)["a.b"], numbers.reshape(2, 3))


def test_lists_of_tensors_are_named_by_index_and_numbers_of_numpy_left_out(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    tree = {"ema": {"shadow": [Tensor(), 3, Tensor(shape=(3, 2), strides=(2, 1))]}, "lists": [[1]]}
    tree["groups"] = [{"lr": np.float64(1e-4), "betas": (0.9, 0.999)}]
    program = pickled(tree)
    assert b"multiarray" in program
    found = read_torch_file(archive(tmp_path / "x.pth", program, numbers.tobytes()))
    assert found.keys() == {"ema.shadow.0", "ema.shadow.2"}
    np.testing.assert_array_equal(found["ema.shadow.2"], numbers.reshape(3, 2))
    shared = [Tensor()]
    path = archive(tmp_path / "y.pth", pickled({"a": shared, "b": shared}), numbers.tobytes())
    with pytest.raises(ValueError, match="one list of tensors under two names"):
        read_torch_file(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, zipped):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    program, path = pickle.dumps({"a": Attack()}, protocol), tmp_path / "x.pth"
    if zipped:
        archive(path, program)
    else:
        path.write_bytes(program)
    with pytest.raises(ValueError, match="names|holds objects|not a checkpoint") as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(program)
    assert marker.exists()  # The attack works on a reader that runs it.


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_qtensor"),
        ("collections", "namedtuple"),
        ("torch", "storage.FloatStorage"),
    ],
)
def test_other_names_are_refused(tmp_path, module, name):
    path = archive(tmp_path / "x.pth", pickled({"a": Named(module, name)}))
    with pytest.raises(ValueError, match=f"it names {module}.{name}, which no state_dict does"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(offset=1), "a reaches beyond its storage"),
        (Tensor(shape=(2, 4)), "a reaches beyond its storage"),
        (Tensor(strides=(4, 1)), "a reaches beyond its storage"),
        (Tensor(shape=(10**9, 10**9), strides=(0, 0)), "a reaches beyond its storage"),
        (Tensor(offset=-1), "a tensor is damaged"),
        (Tensor(strides=(-3, 1)), "a tensor is damaged"),
        (Tensor(offset=2**70), "a tensor is damaged"),
        (Tensor(strides=(3, 1, 1)), "a tensor is damaged"),
        (Tensor(shape=(1,) * 40, strides=(1,) * 40), "a tensor has 40 axes"),
        (Tensor(length=7), "the numbers of a are cut off"),
        (Tensor(length=2**60), "the numbers of a are cut off"),
        (Tensor(kind="DoubleStorage"), "the numbers of a are cut off"),
        (Tensor(kind="ComplexFloatStorage"), "it names torch.ComplexFloatStorage"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, tensor, message):
    path = archive(tmp_path / "x.pth", pickled({"a": tensor}))
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (pickled([1]), {}, "it holds a list, not a state_dict"),
        (pickled(Tensor()), {}, "it holds a tensor, not a state_dict"),
        (pickled({"a": 1}) + b"junk", {"compression": zipfile.ZIP_DEFLATED}, "it is compressed"),
        (pickled({}), {"extra": [("constants.pkl", b"")]}, "it is a TorchScript program"),
        (pickled({}), {"extra": [("byteorder", b"big")]}, "little-endian"),
        (pickled({}), {"extra": [("more/data.pkl", b"")]}, "not one of torch"),
        (pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**6 + pickle.STOP, {}, "nested deeply"),
        (pickle.EMPTY_DICT + (b"(I0\n" + pickle.EMPTY_DICT) * 10**5, {}, "it is damaged"),
        (b"\x8a\xff" + b"\xff" * 300 + pickle.STOP, {}, "it is damaged"),
        (pickle.BINUNICODE + b"\xff\xff\xff\xff" + b"x", {}, "it is damaged"),
        (b"r\xff\xff\xff\xff", {}, "it is damaged"),
        (b"", {}, "it is damaged"),
    ],
)
def test_a_damaged_or_foreign_archive_is_refused_in_one_line(tmp_path, program, options, message):
    storage = bytes(10**4) if "compression" in options else bytes(24)
    path = archive(tmp_path / "x.pth", program, storage, **options)
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [9, 10**5])
def test_mappings_nested_deeply_are_refused(tmp_path, depth):
    program = b"}" + b"X\1\0\0\0a}" * depth + b"s" * depth + b"."
    with pytest.raises(ValueError, match="its mappings are nested deeper than 8"):
        read_torch_file(archive(tmp_path / "x.pth", program))


@pytest.mark.parametrize("levels", [1, 7, 60])
def test_mappings_that_share_others_are_refused_rather_than_walked_by_every_path(tmp_path, levels):
    tree = {"weight": Tensor()}
    for _ in range(levels):
        tree = {"a": tree, "b": tree}
    path = archive(tmp_path / "x.pth", pickled(tree))
    with pytest.raises(ValueError, match="one mapping under two names|nested deeper than 8"):
        read_torch_file(path)


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    tree = {}
    tree["a"] = tree
    with pytest.raises(ValueError, match="one mapping under two names"):
        read_torch_file(archive(tmp_path / "x.pth", pickled(tree)))


@pytest.mark.parametrize("key", ["a" * 501, ("a", "b"), None])
@pytest.mark.parametrize("value", [Tensor(), {"b": Tensor()}])
def test_names_that_no_tensor_has_are_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match="no text of at most 500 characters"):
        read_torch_file(archive(tmp_path / "x.pth", pickled({key: value})))


def test_one_list_of_pairs_is_not_copied_into_many_dicts(tmp_path):
    """Such a list, as Python 2 wrote, may be named again by a few bytes of the pickle."""
    pairs = pickled([[f"{i:04}", i] for i in range(5000)])[:-1] + b"q\0"
    named = b"ccollections\nOrderedDict\nq\1"
    again = b"".join(b"X\4\0\0\0" + b"%04d" % i + b"h\1h\0\x85R" for i in range(2000))
    tracemalloc.start()
    found = read_torch_file(archive(tmp_path / "x.pth", pairs + named + b"}(" + again + b"u."))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not found
    assert most < 30 * 2**20


def test_a_dict_of_pairs_as_python_2_wrote_it_is_read(tmp_path):
    tensor = pickled([["w", Tensor()]])[:-1]
    program = b"ccollections\nOrderedDict\n" + tensor[2:] + b"\x85R."
    assert read_torch_file(archive(tmp_path / "x.pth", program)).keys() == {"w"}


@pytest.mark.parametrize("name", BOTH)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, name):
    whole, path = (FIXTURES / name).read_bytes(), tmp_path / name
    for end in range(0, len(whole), 13):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError):
            read_torch_file(path)


@pytest.mark.parametrize("name", [BOTH[0], *map(slow, BOTH[1:])])
def test_a_flipped_byte_is_refused_or_read_as_arrays(tmp_path, name):
    whole, path = (FIXTURES / name).read_bytes(), tmp_path / name
    outcomes = collections.Counter()
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            outcomes[all(isinstance(v, np.ndarray) for v in read_torch_file(path).values())] += 1
        except ValueError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
    assert outcomes["refused"] > 0
    assert not outcomes[False]


@pytest.mark.parametrize("content", [b"", b"text", b"<html>", b"PK\3\4", b"\x80\2}."])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_torch_file(path)


def test_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(OSError, match=r"(?i)directory|regular"):
            read_torch_file(path)
