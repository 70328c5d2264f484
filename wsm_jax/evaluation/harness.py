"""Our models as EleutherAI's lm-evaluation-harness asks them; imported where tasks are asked for and nowhere else.

One object answers for all merges of a run: :meth:`LanguageModel.answer_with` says whose answers come next, and nothing
is compiled again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from jax.sharding import Mesh
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from wsm_jax.errors import UsageError
from wsm_jax.evaluation import decode, generate, journal, scorer
from wsm_jax.evaluation.generate import BATCH, Settings
from wsm_jax.evaluation.journal import Journal
from wsm_jax.evaluation.language import Language
from wsm_jax.evaluation.scorer import BATCH_TOKENS, Found, Pair
from wsm_jax.models.model import Model
from wsm_jax.parallel import sharding
from wsm_jax.parallel.sharding import RULES, Rules

NEW_TOKENS = 256  # of a text whose task does not say how many, as in lm-eval's own backends


class LanguageModel(TemplateLM):
    """A model whose parameters change.

    Every process asks the same and computes its part; process 0 keeps the answers and shows the progress.

    Args:
      model: what computes the logits; its context limits what is seen at once.
      language: the tokenizer, and what its texts begin and end with.
      mesh, rules: the devices, and what is spread over them.
      kept: finished requests.
      batch_tokens: of one forward pass.
      shown: where bars with the time that is left are written; None: nowhere.

    Attributes:
      language: its tokens.
      context: tokens that it sees at once.
      cut: contexts and continuations, as texts, of which the first tokens did not fit; of a text that is made the
        continuation is empty.
    """

    def __init__(
        self,
        model: Model,
        language: Language,
        mesh: Mesh,
        *,
        rules: Rules = RULES,
        kept: Journal | None = None,
        batch_tokens: int = BATCH_TOKENS,
        shown: TextIO | None = None,
    ):
        super().__init__()
        self._model, self.language, self._mesh, self._rules = model, language, mesh, rules
        self._kept, self._batch_tokens, self._shown = kept or Journal(), batch_tokens, shown
        self.context: int = model.config.context
        self._params: Any = None
        self._maker: decode.Decoder | None = None
        self._name = self._start = ""
        self.cut: set[tuple[str, str]] = set()

    def answer_with(self, params: Any, name: str) -> None:
        """From now on ``params``, called ``name``, answer."""
        self._params = sharding.placed(self._mesh, params, self._model.axes, self._rules)
        self._name, self._maker = name, None
        what = [repr(self._model.config), journal.fingerprint(self._params, self._mesh)]
        self._start = " ".join([*what, jax.__version__, jax.default_backend()])
        self.cut = set()

    def facts(self) -> dict[str, Any]:
        """What of the model decides its scores: tokens, dtype, context, batch."""
        tokenizer = self.language.tokenizer
        return {
            "bos": tokenizer.decode(tokenizer.bos) or "none",
            "before_an_empty_prompt": tokenizer.decode([self.prefix_token_id]),
            "tokenizer_hash": tokenizer.hash,
            "dtype": self._model.config.compute_dtype,
            "context": self.context,
            "batch_tokens": self._batch_tokens,
        }

    def was_cut(self, arguments: Sequence[Sequence[Any]]) -> bool:
        """Whether the first tokens of one of a question's prompts did not fit."""
        return any((one[0], one[1] if isinstance(one[1], str) else "") in self.cut for one in arguments if len(one) > 1)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.language.tokenizer.eot

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.language.first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, after those that the tokenizer puts first, once; without them where that is said."""
        tokenizer = self.language.tokenizer
        if add_special_tokens is False or not tokenizer.bos:
            return tokenizer.encode(string)
        if string.startswith(tokenizer.decode(tokenizer.bos)):
            return tokenizer.encode_marked(string)
        return tokenizer.bos + tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        for texts, given, answer in requests:
            if len(given) + len(answer) > self.context + 1:
                self.cut.add(texts)
        found = self.scores([(given, answer) for _, given, answer in requests])
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each token given as many before it as fit."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        return [one.logprob for one in self.scores([([self.prefix_token_id], text) for text in texts])]

    def scores(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Found]:
        """Log-probabilities of tokens given those before them; from the left as much is left out as does not fit.

        An answer longer than the context is scored in windows, every token once, with as many before it as fit.

        Raises:
          NonFiniteError: logits that are not finite.
        """
        windows = [self._windows(list(given), list(answer)) for given, answer in requests]
        keys = [[self._key("score", *map(_array, one)) for one in request] for request in windows]
        missing = {
            key: pair
            for request, names in zip(windows, keys, strict=True)
            for pair, key in zip(request, names, strict=True)
            if self._kept.get(key) is None
        }
        names, pairs = list(missing), list(missing.values())
        with self._bar(len(pairs), "scored") as advance:
            how = {"batch_tokens": self._batch_tokens, "rules": self._rules}
            for found in scorer.score(self._model, self._params, self._mesh, pairs, **how):
                self._kept.add({names[number]: list(one) for number, one in found.items()})
                advance(len(found))
        parts = [[Found(*self._kept.get(key)) for key in request] for request in keys]
        return [Found(sum(one.logprob for one in part), all(one.greedy for one in part)) for part in parts]

    def _windows(self, given: list[int], answer: list[int]) -> list[Pair]:
        room = self.context + 1 - len(answer)  # the last token is not read
        if room >= 1:
            return [Pair(tuple(given[-room:] or [self.prefix_token_id]), tuple(answer))]
        last = given[-1] if given else self.prefix_token_id
        cut = map(make_disjoint_window, get_rolling_token_windows(answer, last, self.context, 1))
        return [Pair(tuple(before), tuple(part)) for before, part in cut]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest texts after contexts, up to a stop string, an end or a number of tokens.

        Of a context as much is left out from the left as the text needs; it gets half of the model's context at most.

        Raises:
          UsageError: a task that draws its texts.
          NonFiniteError: logits that are not finite.
        """
        asked = []
        for request in requests:
            text, given = request.arguments
            how: Any = normalize_gen_kwargs(given, NEW_TOKENS)
            if how.get("do_sample"):
                raise UsageError(f"task {request.task_name} draws its texts (do_sample); only the likeliest are made")
            new = min(how["max_gen_toks"], self.context // 2)
            prompt = self.tok_encode(text) or [self.prefix_token_id]
            if len(prompt) > self.context - new:
                self.cut.add((text, ""))
            stop = tuple(dict.fromkeys(filter(None, how["until"])))
            asked.append((tuple(prompt[-(self.context - new) :]), Settings(new, stop=stop, ends=self.language.ends)))
        keys = [self._key("text", one.max_tokens, one.stop, one.ends, _array(prompt)) for prompt, one in asked]
        missing = {key: one for key, one in zip(keys, asked, strict=True) if self._kept.get(key) is None}
        with self._bar(len(missing), "written") as advance:
            for names, prompts, settings in _alike(missing):
                made = generate.generate(self._decoder(), self.language.tokenizer, prompts, settings)
                self._kept.add({name: one.text for name, one in zip(names, made, strict=True)})
                advance(len(names))
        return [self._kept.get(key) for key in keys]

    def _decoder(self) -> decode.Decoder:
        if self._maker is None:
            size = self.language.tokenizer.vocab_size
            self._maker = decode.decoder(self._model, self._params, self._mesh, self._rules, vocab_size=size)
        return self._maker

    def _key(self, *parts: Any) -> str:
        return journal.key(self._start, *parts)

    @contextlib.contextmanager
    def _bar(self, total: int, what: str) -> Iterator[Callable[[int], Any]]:
        if self._shown is None or not total:
            yield lambda _: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit="request", desc=f"{self._name}, {what}", file=self._shown) as bar:
            yield bar.update


def _array(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, np.int32)


def _alike(
    missing: dict[str, tuple[tuple[int, ...], Settings]],
) -> Iterator[tuple[list[str], list[tuple[int, ...]], Settings]]:
    """Batches of texts that are made in the same way, the longest prompts first: keys, prompts, settings."""
    for settings in dict.fromkeys(how for _, how in missing.values()):
        names = [key for key, (_, how) in missing.items() if how == settings]
        names.sort(key=lambda key: len(missing[key][0]), reverse=True)
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            yield batch, [missing[key][0] for key in batch], settings
