"""Tasks whose examples are of the question's own subject, as MMLU has them."""

from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask


class BySubject(ConfigurableTask):
    """A task that takes its examples, of all that its split has, from those of the same subject.

    Which column of a question names it is in the task's ``metadata``, under ``subject``.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})
        self._column = (self.config.metadata or {})["subject"]
        self._examples: dict[str, list[Any]] = {}
        for example in self.fewshot_docs():
            self._examples.setdefault(example[self._column], []).append(example)

    @property
    def fewest(self) -> int:
        """Examples of the subject that has the fewest, of those that are asked."""
        subjects = {*self.eval_docs[self._column]}
        return min(len(self._examples.get(subject, [])) for subject in subjects)

    def fewshot_context(self, doc: Any, *args: Any, **options: Any) -> Any:
        """The prompt of a question, with its examples."""
        self.sampler.replace_df(self._examples.get(doc[self._column], []))
        return super().fewshot_context(doc, *args, **options)
