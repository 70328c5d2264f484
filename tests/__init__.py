import pytest

pytest.register_assert_rewrite("tests.buckets", "tests.disks", "tests.runs")
