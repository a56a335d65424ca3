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
        (HEADER + "a,W5A8,1\n", r"t.csv: line 2: found configuration 'W5A8'; allowed: W8A8, .*, float; correct it$"),
        (HEADER + "a,W8A8,1\na,W8A8,2\n", r"t.csv: line 3: 'a' at W8A8 is given twice; keep one$"),
        (
            HEADER + "a,W8A8,fast\n",
            r"t.csv: line 2: found 'fast'; milliseconds from 0 to 1e\+09 are needed; correct it$",
        ),
        (HEADER + "a,W8A8,-1\n", r"t.csv: line 2: found '-1'; milliseconds"),
        (HEADER + "a,W8A8\n", r"t.csv: line 2: found None; milliseconds"),
        ("", r"t.csv: found the columns none; needed are layer, configuration, milliseconds, each once; correct them$"),
        (HEADER, r"t.csv: found no row; the times of all layers are needed; add them$"),
        (
            "layer,layer,configuration,milliseconds\na,b,W8A8,1\n",
            r"t.csv: found the columns layer, layer, .*, each once",
        ),
        (HEADER + ",W8A8,1\n", r"t.csv: line 2: found no name of a layer; each row has one; add it$"),
        (HEADER + "a\n", r"t.csv: line 2: found configuration None; allowed: W8A8"),
        (HEADER + "a,b,W8A8,1\n", r"t.csv: line 2: found more cells than columns; write names with commas in quotes$"),
        (HEADER + "a,W8A8,1e400\n", r"t.csv: line 2: found '1e400'; milliseconds from 0"),
        (HEADER + "a,W8A8,nan\n", r"t.csv: line 2: found 'nan'; milliseconds from 0"),
        (HEADER + "a,W8A8,1e10\n", r"t.csv: line 2: found '1e10'; milliseconds from 0"),
        (HEADER + "a,W8A8," + "9" * 5000 + "\n", r"t.csv: line 2: found '9+\.\.\.9+'; milliseconds from 0"),
        (HEADER + '"a,W8A8,1\n', r"t.csv: not CSV: invalid end of data; write it with the columns layer, "),
        ("la\x1byer,ms\n", r"t.csv: found the columns la\\x1byer, ms; needed are"),
        (HEADER + "a,W8\x00A8,1\n", r"t.csv: line 2: found configuration 'W8\\x00A8'; allowed"),
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
