import pytest

pytest.register_assert_rewrite("tests.disks", "tests.runs")
