"""Times of layers from a user's file."""

import pytest

from onnxcalib import ConfigError
from onnxcalib.planning.latency_table import read_latencies

HEADER = "layer,configuration,milliseconds\n"


def test_times_are_read_by_layer_and_configuration(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('milliseconds,layer,configuration,host\n0.5,"a,b",W8A8,x\n1e-1,"a,b",float,x\n')
    assert read_latencies(path) == {("a,b", "W8A8"): 0.5, ("a,b", "float"): 0.1}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "layer,ms\na,1\n",
            r"t.csv: found the columns layer, ms; needed are layer, configuration, milliseconds, each once",
        ),
        (HEADER + "a,W3A8,1\n", r"t.csv: line 2: found configuration 'W3A8'; allowed: W8A8, .*, float; correct it$"),
        (HEADER + "a,W8A8,1\na,W8A8,2\n", r"t.csv: line 3: 'a' at W8A8 is given twice; keep one$"),
        (
            HEADER + "a,W8A8,fast\n",
            r"t.csv: line 2: found 'fast'; milliseconds from 0 to 1e\+09 are needed; correct it$",
        ),
        (HEADER + "a,W8A8,-1\n", r"t.csv: line 2: found '-1'; milliseconds"),
        (HEADER + "a,W8A8\n", r"t.csv: line 2: found None; milliseconds"),
        ("\xff", r"t.csv: not UTF-8 text"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path, text, fault):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=fault):
        read_latencies(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.csv: no such file; give latencies a CSV file$"):
        read_latencies(tmp_path / "none.csv")
