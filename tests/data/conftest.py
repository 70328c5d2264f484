"""Two small corpora of real text: parts of the standard library, prepared once for all tests here."""

import pathlib
import sysconfig

import pytest

from wsm_jax.config import DataConfig
from wsm_jax.data.tokens import Corpus, prepare

_LIBRARY = pathlib.Path(sysconfig.get_path("stdlib"))
# Enough files that a fifth of them is never none.
FIRST = f"text:{_LIBRARY}/{{asyncio,email,http,json,logging,multiprocessing}}/*.py"
SECOND = (
    f"text:{_LIBRARY}/{{concurrent/futures,ctypes,curses,html,importlib,unittest,urllib,wsgiref,xml/dom,xml/sax}}/*.py"
)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> DataConfig:
    store = str(tmp_path_factory.mktemp("store"))
    return DataConfig(
        source=f"{FIRST}=0.75,{SECOND}=0.25",
        switch_source=f"{SECOND}=0.8,{FIRST}=0.2",
        tokenizer="bpe:512",
        store=store,
        validation_fraction=0.2,
        test_fraction=0.2,
    )


@pytest.fixture(scope="session")
def corpus(config: DataConfig) -> Corpus:
    return prepare(config)
