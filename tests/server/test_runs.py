"""The server as a whole, with real TLS, real keys and real Flower clients."""

import numpy as np


def test_a_whole_run(make_server, add, initial):
    server = make_server(evaluation={"when": "start-middle-end"})
    one, two = server.enrol("one", add(1.0), users=100), server.enrol("two", add(4.0), users=200)
    server.start()
    one.start(), two.start()
    result = server.finish()
    for name, value in initial.items():
        np.testing.assert_allclose(result.arrays[name], value + 3 * 3.0, rtol=1e-6)
        assert result.arrays[name].dtype == np.float32
    lines = server.history()
    assert [(line["kind"], line["round"]) for line in lines] == [
        ("evaluate", 0),
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
        ("train", 3),
        ("evaluate", 3),
        ("deliver", 3),
    ]
    assert all(line["tenants"] == ["one", "two"] for line in lines)
    assert all(line["bytes_up"] > 0 and line["bytes_down"] > 0 for line in lines)
    print([line["seconds"] for line in lines])
    final = one.heard[-1]
    np.testing.assert_array_equal(final.arrays["head.bias"], result.arrays["head.bias"])
